"""`manage.py generate_embeddings`: have what is stale embedded."""

from argparse import ArgumentParser
from typing import Any

from django_evervec.management.base import EmbeddingCommand


class Command(EmbeddingCommand):
    """Enqueues the stale items of each source, page by page."""

    help = "Have all active items embedded that have no embedding, or an old one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        super().add_arguments(parser)
        parser.add_argument(
            "--rate", type=float, help="embed at most so many items a second until nothing waits any more"
        )
        parser.add_argument("--wait", action="store_true", help="until they are embedded; exit code 1 when some failed")

    def handle(self, *_: Any, **options: Any) -> None:
        """Enqueue, and wait if asked."""
        using, chosen = options["database"], self.chosen(options)
        enqueued = {source.name: self.refire_all(source, using, force=False, rate=options["rate"]) for source in chosen}
        if options["wait"]:
            self.wait(chosen, using)
        self.report(options, enqueued, "to be embedded")
