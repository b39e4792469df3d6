"""`manage.py load_items FILE`: fill the empty table with the things of evervec's demo, in plain SQL."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand
from django.db import connection

from items.models import Item

COLUMNS = "name, description, category, type, status, active, views, created_at"


class Command(BaseCommand):
    """Runs the demo's file in a schema of its own, and copies what it made."""

    help = "Fill the empty table of items from the demo's SQL file."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The file."""
        parser.add_argument("file", type=Path)

    def handle(self, *_: Any, file: Path, **__: Any) -> None:
        """Load, unless there are items already."""
        if Item.objects.exists():
            return
        columns = COLUMNS.replace("description", "coalesce(description, '')")
        with connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA demo; SET search_path = demo")
            cursor.execute(file.read_text(encoding="utf-8"))
            cursor.execute("RESET search_path")
            cursor.execute(f"INSERT INTO items_item ({COLUMNS}) SELECT {columns} FROM demo.items ORDER BY id")  # noqa: S608
            cursor.execute("DROP SCHEMA demo CASCADE")
        self.stdout.write(f"{Item.objects.count()} items")
