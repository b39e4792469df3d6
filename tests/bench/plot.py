"""The figures as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from tests.bench.figures import FIGURES

GOOD, BAD, OURS, THEIRS, NAIVE = "#2a9d61", "#d1495b", "#2a6f97", "#a3b1bf", "#e09f3e"
FARTHEST = 10.0
"""A figure that is better than asked for by more than this factor is drawn like one by this factor."""


def draw(figures: Mapping[str, float], details: Mapping[str, Any], path: Path) -> None:
    """Draw what there is of: every figure beside what is asked for, latencies, and what writers pay."""
    # The same figures give the same file.
    mpl.rcParams["svg.hashsalt"] = "evervec"
    picture = Picture(figsize=(13, 8), layout="constrained")
    axes = picture.subplot_mosaic([["asked", "latency"], ["asked", "writers"]], width_ratios=[1.2, 1])
    _draw_asked(axes["asked"], figures)
    _draw_latency(axes["latency"], details.get("latency", {}).get("repetitions", {}))
    _draw_writers(axes["writers"], figures)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, metadata={"Date": None})


def _draw_asked(axes: Axes, figures: Mapping[str, float]) -> None:
    """How far each figure is on the good or the bad side of what is asked for."""
    found = [
        (figure, figures[figure.key], score)
        for figure in reversed(FIGURES)
        if figure.key in figures and (score := figure.score(figures[figure.key])) is not None
    ]
    lengths = [min(max(score, 1 / FARTHEST), FARTHEST) for _figure, _value, score in found]
    colours = [GOOD if figure.is_met(value) else BAD for figure, value, _score in found]
    rows = range(len(found))
    axes.barh(rows, [length - 1 for length in lengths], left=1, color=colours, height=0.6)
    axes.set_yticks(rows, [figure.key for figure, _value, _score in found], fontsize=8)
    for row, (figure, value, _score), length in zip(rows, found, lengths, strict=True):
        axes.annotate(
            f"{value:,.4g}  ({figure.asked_text})",
            (max(length, 1.0), row),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_xscale("log")
    axes.set_xlim(0.3, FARTHEST * 2.5)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_title("measured (asked for); to the right of the line is better", fontsize=10)


def _draw_latency(axes: Axes, repetitions: Mapping[str, Sequence[float]]) -> None:
    """What share of the edits had their vector within so many milliseconds."""
    for key, name, colour in (
        ("latency_idle_ms", "idle", OURS),
        ("latency_busy_ms", "with a backfill running", NAIVE),
    ):
        values = sorted(repetitions.get(key, ()))
        shares = [(number + 1) / len(values) for number in range(len(values))]
        axes.step(values, shares, where="post", label=name, color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds from commit to vector, 20 of them debounce", fontsize=8)
    axes.set_ylabel("share of the edits", fontsize=8)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    axes.set_title("how soon an edit's vector is there", fontsize=10)


def _draw_writers(axes: Axes, figures: Mapping[str, float]) -> None:
    """Transactions a second that are left with each kind of trigger."""
    kinds = (("", "evervec", OURS), ("_pgai", "as pgai", THEIRS), ("_notify", "NOTIFY always", NAIVE))
    statements = (("content", "one-row updates of the content"), ("other", "of another column"))
    for place, (suffix, name, colour) in enumerate(kinds):
        values = [figures.get(f"write_ratio_{statement}{suffix}", 0.0) for statement, _label in statements]
        bars = axes.bar([number + (place - 1) * 0.27 for number in range(2)], values, 0.25, label=name, color=colour)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(statements)), [label for _key, label in statements], fontsize=8)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, 1.25)
    axes.legend(fontsize=8, loc="upper left", ncols=3)
    axes.set_title("what writers keep of their transactions/s (1: no trigger)", fontsize=10)
