"""build/bench.json: the figures of all benchmarks, one flat object of numbers."""

import json
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
FIGURES = BUILD / "bench.json"
CACHE = BUILD / "bench"
"""What a benchmark downloads and what its servers write."""


def read_figures() -> dict[str, float]:
    """The figures of the runs so far; none before the first run."""
    figures: dict[str, float] = json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}
    return figures


def merge_figures(figures: Mapping[str, float]) -> None:
    """Put these figures beside, or in the place of, those of earlier runs."""
    write_json(FIGURES, dict(sorted((read_figures() | dict(figures)).items())))


def write_json(path: Path, content: object) -> None:
    """Write the file at once: whoever reads it meanwhile finds the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)
