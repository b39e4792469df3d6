"""What the commands share: choosing sources, a progress line, one JSON document, waiting."""

import json
import time
from argparse import ArgumentParser
from collections.abc import Iterator
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.core.serializers.json import DjangoJSONEncoder
from django.db import DEFAULT_DB_ALIAS, OperationalError

from django_evervec import contract
from django_evervec.contract import Source
from django_evervec.errors import EvervecError

PAGE_SIZE = 2000
"""Rows looked at in one short transaction."""
POLL_SECONDS = 0.5
LOCKED_SECONDS = 0.5


class EmbeddingCommand(BaseCommand):
    """A command over sources."""

    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The options that all commands have."""
        parser.add_argument("sources", nargs="*", metavar="SOURCE", help="names of sources; default: all")
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="alias of the database")
        parser.add_argument("--json", action="store_true", help="print one JSON document")

    def execute(self, *args: Any, **options: Any) -> str | None:
        """One clear line where something is wrong."""
        try:
            return super().execute(*args, **options)
        except EvervecError as error:
            raise CommandError(str(error)) from error

    def chosen(self, options: dict[str, Any]) -> list[Source]:
        """The sources that were named, or all."""
        known = {source.name: source for source in contract.sources(options["database"])}
        unknown = [name for name in options["sources"] if name not in known]
        if unknown or not known:
            raise CommandError(
                f"no source named {', '.join(unknown)}: there are {', '.join(known) or 'none'}"
                if unknown
                else "nothing is watched: put WatchModel into a migration"
            )
        return [known[name] for name in options["sources"] or known]

    def progress(self, line: str) -> None:
        """Say how far it is, on stderr: over and over on a terminal, else not."""
        if self.stderr.isatty():
            self.stderr.write(f"\r\033[K{line}", ending="")

    def progress_ends(self) -> None:
        """Leave the progress line."""
        self.progress("")

    def refire_all(self, source: Source, using: str, *, force: bool, rate: float | None = None) -> int:
        """Enqueue page by page; returns how many. A rate is set with the first of them: it ends when nothing waits."""
        after: str | None = None
        scanned = enqueued = 0
        while True:
            page = self._when_unlocked(source, using, force, after, None if enqueued else rate)
            scanned, enqueued, after = scanned + page.scanned, enqueued + page.enqueued, page.last_key
            self.progress(f"{source.name}: {scanned} rows looked at, {enqueued} enqueued")
            if page.scanned < PAGE_SIZE:
                self.progress_ends()
                return enqueued

    def _when_unlocked(
        self, source: Source, using: str, force: bool, after: str | None, rate: float | None
    ) -> contract.Page:
        while True:
            try:
                return contract.refire_page(using, source.name, force=force, after=after, limit=PAGE_SIZE, rate=rate)
            except OperationalError as error:
                if getattr(error.__cause__, "sqlstate", None) != "55P03":  # lock_not_available
                    raise
            time.sleep(LOCKED_SECONDS)

    def wait(self, chosen: list[Source], using: str) -> None:
        """Wait until what is enqueued by now has left the outbox, or is given up, or paused."""
        until = contract.last_version(using)
        for source in chosen:
            for left in _pending(source, using, until):
                self.progress(f"{source.name}: {left} items are left")
            self.progress_ends()

    def report(self, options: dict[str, Any], enqueued: dict[str, int], doing: str) -> None:
        """Say what was enqueued, and with --wait what is left; exit code 1 when some of it failed."""
        counts = {row["source"]: row for row in contract.status(options["database"])}
        told: list[dict[str, Any]] = [
            {"source": name, "enqueued": number} | {key: counts[name][key] for key in ("pending", "failed", "paused")}
            for name, number in enqueued.items()
        ]
        if options["json"]:
            self.print_json({"sources": told})
        else:
            for row in told:
                left = "{pending} pending, {failed} failed{stopped}".format(**row, stopped=", paused" * row["paused"])
                self.stdout.write(f"{row['source']}: {row['enqueued']} items {doing}; {left}")
        failed = sum(row["failed"] for row in told)
        if options["wait"] and failed:
            raise CommandError(f"{failed} items failed: check_embedding_status tells why", returncode=1)

    def print_json(self, document: object) -> None:
        """One document on stdout."""
        self.stdout.write(json.dumps(document, cls=DjangoJSONEncoder))


def _pending(source: Source, using: str, until: int) -> Iterator[int]:
    while True:
        current = next((row for row in contract.sources(using) if row.name == source.name), None)
        left = contract.pending(using, source.name, until)
        yield left
        if not current or current.paused or not (left or current.filling):
            return
        time.sleep(POLL_SECONDS)
