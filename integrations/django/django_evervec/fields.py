"""The columns that evervec writes. Django reads them, and no save() writes them.

An INSERT leaves them empty. An UPDATE keeps what the database has: an instance that was loaded before the last
write-back holds an old vector, and must not bring it back.
"""

from typing import Any

from django.db.models import DateTimeField, F, Field, Model, TextField
from django.db.models.expressions import Col
from pgvector.django import VectorField

from django_evervec import conf
from django_evervec.errors import ReadOnlyFieldError

FIXED = {"null": True, "blank": True, "editable": False, "serialize": False}


class WrittenByEvervec(Field):
    """A column that only evervec's write-back changes. Fixtures do not contain it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | FIXED)

    def deconstruct(self) -> tuple[str, str, list[Any], dict[str, Any]]:
        """Without the options that are always the same."""
        name, path, args, kwargs = super().deconstruct()
        return name, path, list(args), {option: value for option, value in kwargs.items() if option not in FIXED}

    def pre_save(self, model_instance: Model, add: bool) -> Any:  # noqa: ARG002 - whatever the instance holds
        """Nothing for a new row, for another one what the row has."""
        return None if add else F(self.attname)

    def get_db_prep_save(self, value: Any, connection: Any) -> Any:  # noqa: ARG002 - as Django calls it
        """Nothing, or the column itself; all else is refused: bulk_update() and update() of this field."""
        if value is None or (isinstance(value, Col) and value.target == self):
            return value
        raise ReadOnlyFieldError(
            f"{self.model._meta.label}.{self.name} is written by evervec alone: leave it out, "
            "regenerate_embeddings() embeds again"
        )


class EmbeddingField(WrittenByEvervec, VectorField):
    """The vector, a list of floats; its dimension is the setting EVERVEC_DIMENSION where none is given.

    A changed dimension alters nothing by itself: the WatchModel of the same migration replaces the column.
    """

    non_db_attrs = (*Field.non_db_attrs, "dimensions")

    def __init__(self, *args: Any, dimensions: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, dimensions=dimensions or conf.dimension(), **kwargs)


class EmbeddingTextField(WrittenByEvervec, TextField):
    """A text beside the vector: the hash of the content that was embedded, or the model that did it."""


class EmbeddingTimeField(WrittenByEvervec, DateTimeField):
    """When the vector was written."""
