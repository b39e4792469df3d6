"""What watching a table would take."""

from typing import NamedTuple

from evervec.model import ModelSpec


class WatchPlan(NamedTuple):
    """What `evervec.watch` would do, and to how much; nothing of it is done."""

    source: str
    relation: str
    alters: bool
    """The source is there already."""
    model: str
    revision: str
    dimension: int
    prompt: str
    destination: str
    added_table: str | None
    """The table that is made for the vectors; None where there is one."""
    added_columns: list[str]
    replaced_columns: list[str]
    """Columns that are dropped and made anew."""
    dropped_indexes: list[str]
    """Indexes that go with those."""
    exact: bool
    """Whether the counts are exact; of a large table they are estimates."""
    rows: int
    eligible: int
    fitting: int
    """Vectors that are right as they are."""
    stale: int
    """Vectors that are not, and are replaced one by one."""
    cleared: int
    """Vectors that go with their column, and are not found until they are there again."""
    bytes: int
    """Of the table, without what is stored apart."""
    texts: list[str]
    """Contents of some items, to try the model with."""

    @property
    def to_embed(self) -> int:
        """The items that get a new vector."""
        return self.eligible - self.fitting

    @property
    def spec(self) -> ModelSpec:
        """The model, as the encoder wants it."""
        return ModelSpec(self.model, self.revision, self.dimension, self.prompt)
