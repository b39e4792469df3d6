"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements. The defaults are those of the figures that are published."""

    rows: int = 5_000
    """Real texts of a backfill with a model."""
    repetitions: int = 5
    stub_rows: int = 100_000
    probe_texts: int = 256
    """Texts in a round of the comparison of backends."""
    open_items: int = 40
    """Items whose edits are timed."""
    edits: int = 240
    busy_rows: int = 20_000
    """The backfill that runs beside the edits."""
    writer_rows: int = 50_000
    """Rows of each table that pgbench writes."""
    bulk_rows: int = 20_000
    """Rows of one UPDATE."""
    round_seconds: int = 8
    noop_edits: int = 1_000
    lock_seconds: float = 30.0
    small_rows: int = 10_000
    scale_rows: int = 1_000_000


QUICK = Plan(
    rows=96,
    repetitions=1,
    stub_rows=1_000,
    probe_texts=16,
    open_items=8,
    edits=16,
    busy_rows=400,
    writer_rows=500,
    bulk_rows=300,
    round_seconds=1,
    noop_edits=60,
    lock_seconds=3.0,
    small_rows=300,
    scale_rows=1_500,
)
"""For a look whether everything still runs: its figures mean nothing."""
