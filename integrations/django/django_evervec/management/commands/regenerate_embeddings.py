"""`manage.py regenerate_embeddings`: embed again though nothing changed."""

from argparse import ArgumentParser
from typing import Any

from django.core.management.base import CommandError

from django_evervec import contract
from django_evervec.management.base import EmbeddingCommand


class Command(EmbeddingCommand):
    """Enqueues some items, or all, whether stale or not."""

    help = "Have items embedded anew, though nothing changed. Old vectors are found until the new ones are there."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        super().add_arguments(parser)
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--ids", help="keys with commas between, of the one source")
        which.add_argument("--all", action="store_true", help="all active items")
        parser.add_argument("--wait", action="store_true", help="until they are embedded; exit code 1 when some failed")

    def handle(self, *_: Any, **options: Any) -> None:
        """Enqueue, and wait if asked."""
        using, chosen = options["database"], self.chosen(options)
        if options["all"]:
            enqueued = {source.name: self.refire_all(source, using, force=True) for source in chosen}
        else:
            if len(chosen) != 1:
                raise CommandError(f"name one of the sources: {', '.join(source.name for source in chosen)}")
            keys = [key.strip() for key in options["ids"].split(",") if key.strip()]
            missing = [
                key for key, found in contract.explanations(using, chosen[0].name, keys).items() if not found.row_exists
            ]
            if missing:
                raise CommandError(f"{chosen[0].name} has no row with the key {', '.join(missing[:10])}")
            enqueued = {chosen[0].name: contract.refire(using, chosen[0].name, keys, force=True)}
        if options["wait"]:
            self.wait(chosen, using)
        self.report(options, enqueued, "to be embedded anew")
