"""What a run tells in the end."""

from collections import defaultdict
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from tests.chaos.run import Report, Struck

SHOWN = 20
COLUMNS = ("source", "rows", "eligible", "fresh", "stale", "failed", "orphaned", "sampled", "mismatched")


def tell(report: Report, console: Console) -> bool:
    """Print the tables of a run; whether all is as it should be."""
    console.print(_faults(report))
    console.print(
        _counts(f"{report.rate:.1f} writes/s for {report.seconds:.0f} s", "transactions", _transactions(report))
    )
    console.print(_counts("what workers did", "items", report.findings.outcomes))
    console.print(_verified(report))
    settled = "never" if report.settled is None else f"{report.settled:.0f} s"
    console.print(f"settled in {settled}; {report.findings.compared} rows compared with the ledger")
    wrong = report.wrong
    for line in wrong[:SHOWN]:
        console.print(f"WRONG: {line}", style="red", markup=False)
    console.print(f"seed {report.orders.seed}: {'all is well' if not wrong else f'{len(wrong)} things are wrong'}")
    return not wrong


def _faults(report: Report) -> Table:
    table = Table(title=f"{len(report.struck)} faults, seed {report.orders.seed}")
    for name in ("fault", "times", "seconds in all", "longest", "committed meanwhile"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    kinds: dict[str, list[Struck]] = defaultdict(list)
    for one in report.struck:
        kinds[one.strike.kind].append(one)
    for kind, struck in kinds.items():
        seconds = [one.seconds for one in struck]
        committed = sum(one.committed for one in struck)
        table.add_row(kind, str(len(struck)), f"{sum(seconds):.0f}", f"{max(seconds):.0f}", str(committed))
    return table


def _transactions(report: Report) -> dict[str, int]:
    return {**report.tally.outcomes, "failed for another reason": len(report.tally.errors)}


def _counts(title: str, name: str, counts: Mapping[str, int]) -> Table:
    table = Table(title=title)
    table.add_column(name)
    table.add_column("", justify="right")
    for outcome, count in sorted(counts.items()):
        table.add_row(outcome, str(count))
    return table


def _verified(report: Report) -> Table:
    table = Table(title="evervec verify, everything embedded anew")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "source" else "right")
    for source in report.findings.verified:
        table.add_row(*(str(source[name]) for name in COLUMNS))
    return table
