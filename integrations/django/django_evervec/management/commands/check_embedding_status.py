"""`manage.py check_embedding_status`: how many items have the embedding that they should."""

from argparse import ArgumentParser
from typing import Any

from django_evervec import contract
from django_evervec.management.base import EmbeddingCommand

COLUMNS = ["source", "eligible", "fresh", "stale", "pending", "failed", "coverage", "model"]


class Command(EmbeddingCommand):
    """Counts of each source, and the items that were given up."""

    help = "Report how many items have their embedding, what waits, and what failed and why."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        super().add_arguments(parser)
        parser.add_argument("--failures", type=int, default=20, metavar="N", help="name N failed items at most")

    def handle(self, *_: Any, **options: Any) -> None:
        """Read and print."""
        using = options["database"]
        chosen = [source.name for source in self.chosen(options)]
        counts = [row for row in contract.status(using) if row["source"] in chosen]
        failures = contract.failures(using, chosen, options["failures"])
        if options["json"]:
            self.print_json({"sources": counts, "failures": failures})
            return
        rows = [COLUMNS, *([_shown(row, column) for column in COLUMNS] for row in counts)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            self.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        for failure in failures:
            self.stdout.write("{source} {key}: failed after {attempts} attempts: {error}".format(**failure))


def _shown(row: dict[str, Any], column: str) -> str:
    if column == "coverage":
        return f"{row[column]:.1%}"
    paused = " (paused)" if column == "source" and row["paused"] else ""
    return f"{row[column]}{paused}"
