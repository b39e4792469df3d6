"""What the tests share: waiting until nothing waits any more, and a second opinion about every vector."""

import json
import math
import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from django.db import connection

from django_evervec import contract
from django_evervec.sources import embedded
from items.models import Item
from tests.conftest import PROGRAM
from tests.things.models import Note, NoteEmbedding

WAIT_SECONDS = 120.0
"""A bound, for machines that have much else to do."""


def until(condition: Callable[[], Any], seconds: float = WAIT_SECONDS) -> Any:
    """Wait until the condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("the condition does not come true")
        time.sleep(0.05)
    return result


def settle() -> None:
    """Wait until no item waits: each is embedded, or given up."""
    until(lambda: not any(row["pending"] for row in contract.status("default")))


def evervec(*arguments: str) -> Any:
    """A command of evervec's own, its JSON; for what it says of the table, and not what the code under test says."""
    done = subprocess.run(
        [PROGRAM, *arguments, "--json"],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout)


@dataclass(frozen=True)
class Rule:
    """What the content of a row is, and whether it is embedded, said once more in Python."""

    fields: tuple[str, ...]
    eligible: Callable[[Any], bool]
    vector: Callable[[Any], Any] = lambda row: row

    def content(self, row: Any) -> str:
        return " | ".join(text for name in self.fields if (text := getattr(row, name)).strip())


def beside(note: Note) -> Any:
    return NoteEmbedding.objects.filter(note=note).first() or NoteEmbedding()


RULES: dict[Any, Rule] = {
    Item: Rule(
        ("name", "description", "category", "type", "status"),
        lambda item: item.active and bool(item.name.strip()) and bool(item.description.strip()),
    ),
    Note: Rule(("title", "body"), lambda note: not note.archived and "draft" not in note.title, beside),
}


def assert_right(model: Any = Item, *, fresh: int) -> None:
    """After what waits: so many eligible rows, each with the vector that the dashboard gives for its content now."""
    settle()
    rule, source = RULES[model], embedded(model).source
    rows = [row for row in model.objects.all() if rule.eligible(row)]
    assert len(rows) == fresh
    expected = vectors_of(source.name, [rule.content(row) for row in rows])
    for row, vector in zip(rows, expected, strict=True):
        stored = rule.vector(row)
        assert stored.embedding_model == source.model_label
        assert cosine(stored.embedding, vector) > 0.9999, f"{row}: not the vector of its content"
    [counts] = contract.status("default", source.name)
    assert (counts["eligible"], counts["fresh"], counts["pending"], counts["failed"]) == (fresh, fresh, 0, 0)


def vectors_of(source: str, texts: list[str]) -> list[list[float]]:
    """What evervec's dashboard makes of the texts."""
    vectors: list[list[float]] = []
    for first in range(0, len(texts), 256):
        body = json.dumps({"source": source, "texts": texts[first : first + 256]}).encode()
        address = f"{os.environ['EVERVEC_DASHBOARD_URL']}/api/embed"
        with urllib.request.urlopen(
            urllib.request.Request(address, body, {"Content-Type": "application/json"})
        ) as answer:
            vectors += json.load(answer)["embeddings"]
    return vectors


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


@contextmanager
def paused(source: str = "items_item") -> Any:
    """Nothing is embedded meanwhile; what changes is recorded."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT evervec.pause(%s)", [source])
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT evervec.resume(%s)", [source])


@contextmanager
def unwalked(source: str = "items_item") -> Any:
    """No walk over the table meanwhile: the safety net's, every five minutes, finds what no trigger saw."""
    lock = "(731031242, id) FROM evervec.source WHERE name = %s"
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_lock{lock}", [source])
    try:
        yield
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_advisory_unlock{lock}", [source])


def outbox(source: str = "items_item") -> list[str]:
    """The keys that wait."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT item_key FROM evervec.outbox WHERE source = %s ORDER BY item_key", [source])
        return [key for (key,) in cursor.fetchall()]
