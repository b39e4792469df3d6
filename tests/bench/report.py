"""The figures for people: a table, a plot, and both in docs/. `python -m tests.bench.report [--publish]`."""

import argparse
import shutil
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from tests.bench.figures import FIGURES, Figure
from tests.bench.plot import draw
from tests.bench.results import BUILD, ROOT, read_details, read_figures

PLOT = BUILD / "bench.svg"
DOCUMENT = ROOT / "docs" / "benchmarks.md"
PUBLISHED_PLOT = DOCUMENT.with_suffix(".svg")
BEGIN, END = "<!-- figures: written by `make bench-publish` -->\n", "<!-- end of figures -->\n"


def main() -> None:
    """Print the table and draw the plot; with --publish, put both into docs/."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report", description=__doc__)
    parser.add_argument("--publish", action="store_true", help="write docs/benchmarks.md and docs/benchmarks.svg")
    arguments = parser.parse_args()
    report()
    if arguments.publish:
        publish()


def report() -> None:
    """Print the table of all figures that there are, and draw the plot."""
    console = Console()
    console.print(_table())
    missing = [figure.key for figure in FIGURES if figure.key not in read_figures()]
    if missing:
        console.print(f"not measured: {', '.join(missing)}", style="yellow", highlight=False)
    draw(read_figures(), read_details(), PLOT)
    console.print(f"{PLOT}", highlight=False)


def publish() -> None:
    """Put the table and the plot of the last run into docs/."""
    head, _begin, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
    tail = rest.partition(END)[2]
    DOCUMENT.write_text(f"{head}{BEGIN}{_markdown()}{END}{tail}", encoding="utf-8")
    shutil.copyfile(PLOT, PUBLISHED_PLOT)


def _measured() -> Iterator[tuple[Figure, float]]:
    figures = read_figures()
    for figure in FIGURES:
        if figure.key in figures:
            yield figure, figures[figure.key]


def _table() -> Table:
    table = Table(title="evervec, measured", title_justify="left")
    for column in ("figure", "measured", "asked for", ""):
        table.add_column(column, no_wrap=True, justify="left" if column in {"figure", ""} else "right")
    table.add_column("how")
    for figure, value in _measured():
        style = {True: "green", False: "red"}.get(figure.is_met(value), "")  # type: ignore[arg-type]
        table.add_row(figure.key, _number(value), figure.asked_text, figure.verdict(value), figure.how, style=style)
    return table


def _markdown() -> str:
    lines = [f"{_where()}\n", "| figure | measured | asked for | | how |", "|---|--:|--:|---|---|"]
    for figure, value in _measured():
        lines.append(
            f"| `{figure.key}` | {_number(value)} | {figure.asked_text} | {figure.verdict(value)} | {figure.how} |"
        )
    return "\n".join(lines) + "\n"


def _where() -> str:
    """On what the figures were measured, and when."""
    details = list(read_details().values())
    if not details:
        return ""
    machine, versions = details[-1]["machine"], details[-1]["versions"]
    days = sorted({found["ended_at"][:10] for found in details})
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gb']} GB, {machine['system']}, "
        f"{' to '.join(days[:: max(len(days) - 1, 1)])}; {packages}."
    )


def _number(value: float) -> str:
    """With as many digits as tell something."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.4f}" if 0.99 < value < 1 else f"{value:.3g}"


if __name__ == "__main__":
    main()
