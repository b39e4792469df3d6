"""Similarity search: eligible items only, cosine distances, and a query embedded as the items are."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from django.db import ProgrammingError, connection
from django.test import override_settings

from django_evervec import embedder
from django_evervec.errors import EmbedderUnavailableError, NotWatchedError, QueryError
from django_evervec.search import find_similar_items
from django_evervec.sources import embedded
from items.models import Item
from tests.conftest import PROGRAM
from tests.lab import evervec, paused, settle
from tests.test_commands import without_triggers
from tests.test_writes import item
from tests.things.models import Note

without_dashboard = override_settings(EVERVEC_DASHBOARD_URL="")


def tools() -> None:
    Item.objects.bulk_create(
        [
            item("Impact drill", description="Goes through concrete walls, with bits"),
            item("Cordless screwdriver", description="Two batteries, 18 volts"),
            item("Fondue set", description="For cheese and six people"),
            item("Sleeping bag", description="Warm enough for autumn in the mountains"),
        ]
    )
    settle()


def test_the_nearest_to_a_text() -> None:
    tools()
    found = find_similar_items("something to make holes in a wall", limit=2, model=Item)
    assert found[0].name == "Impact drill"
    assert len(found) == 2
    assert 0 < found[0].distance < found[1].distance < 2


def test_they_are_those_of_evervecs_own_search() -> None:
    tools()
    query = "camping in the cold"
    told = evervec("search", "items_item", query, "--limit", "3")["results"]
    found = Item.objects.similar_to(query, limit=3)
    assert [str(one.pk) for one in found] == [hit["key"] for hit in told]
    assert [one.distance for one in found] == pytest.approx([hit["distance"] for hit in told], abs=1e-5)


def test_a_side_tables_nearest_to_a_text() -> None:
    for title in ("Bread", "Milk", "A draft"):
        Note.objects.create(title=title)
    settle()
    assert Note.objects.similar_to("Milk")[0].title == "Milk"
    assert Note.objects.similar_to("Milk")[0].distance == pytest.approx(0, abs=1e-6)
    assert {note.title for note in Note.objects.similar_to("A draft")} == {"Bread", "Milk"}


def test_filters_come_before_the_limit() -> None:
    tools()
    Item.objects.filter(name__in=["Fondue set", "Sleeping bag"]).update(views=1)
    settle()
    found = Item.objects.filter(views=1).similar_to("a drill", limit=1)
    assert found[0].name in ("Fondue set", "Sleeping bag")


def test_similar_to_an_item_leaves_it_out() -> None:
    tools()
    drill = Item.objects.get(name="Impact drill")
    found = list(Item.objects.similar_to(drill, limit=10))
    assert drill not in found
    assert found[0].name == "Cordless screwdriver"


def test_an_item_without_a_vector_is_near_to_nothing() -> None:
    tools()
    with paused():
        new = item("New")
        new.save()
        assert list(Item.objects.similar_to(new)) == []


def test_only_what_is_active_and_of_the_present_model_is_found() -> None:
    tools()
    drill = Item.objects.get(name="Impact drill")
    with paused():
        # Each still has its vector.
        Item.objects.filter(name="Fondue set").update(active=False)
        Item.objects.filter(name="Sleeping bag").update(description="\u2003\n")
        without_triggers("UPDATE items_item SET embedding_model = 'of last year' WHERE name = 'Cordless screwdriver'")
        assert list(Item.objects.similar_to(drill)) == []
        assert [one.name for one in Item.objects.nearest_to(drill.embedding)] == ["Impact drill"]
        assert {one.name for one in Item.objects.eligible()} == {"Impact drill", "Cordless screwdriver"}


def test_the_index_is_used() -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE INDEX nearest ON items_item USING hnsw (embedding vector_cosine_ops)")
        try:
            cursor.execute("SET enable_seqscan = off")
            assert "nearest" in Item.objects.nearest_to([0.1] * 512)[:10].explain()
        finally:
            cursor.execute("RESET enable_seqscan")
            cursor.execute("DROP INDEX nearest")


def test_a_role_with_few_rights_can_search() -> None:
    tools()
    drill = Item.objects.get(name="Impact drill")
    with connection.cursor() as cursor:
        cursor.execute(
            "CREATE ROLE website; GRANT SELECT ON items_item, evervec.source TO website; "
            "GRANT USAGE ON SCHEMA evervec TO website; GRANT EXECUTE ON FUNCTION evervec.whitespace() TO website"
        )
        try:
            cursor.execute("SET ROLE website")
            assert len(Item.objects.similar_to(drill)) == 3
            with pytest.raises(ProgrammingError, match="permission denied"):
                Item.objects.generate_embeddings()
        finally:
            cursor.execute("RESET ROLE; DROP OWNED BY website; DROP ROLE website")


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_blank_query(text: str) -> None:
    with pytest.raises(QueryError, match="no text to search for"):
        Item.objects.similar_to(text)


def test_a_model_that_is_not_watched() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT evervec.watch('items_item', '{name}', source => 'second', embedding => 'other', model => 'stub:8')"
        )
        try:
            assert embedded(Item).source.name == "items_item"
            assert embedded(Item, name="second").source.model == "stub:8"
            with pytest.raises(NotWatchedError, match=r"items\.Item has no field for the column other"):
                Item.objects.similar_to("text", source="second")
            with pytest.raises(NotWatchedError, match="is not watched"):
                embedded(Item, name="third")
        finally:
            cursor.execute("SELECT evervec.unwatch('second')")
            cursor.execute(
                "ALTER TABLE items_item DROP other, DROP other_hash, DROP other_model, DROP other_embedded_at"
            )


class Fault(http.server.BaseHTTPRequestHandler):
    """A dashboard that answers what it is told to."""

    answer: ClassVar[tuple[int, str]]
    asked: ClassVar[list[tuple[str, str | None, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, self.headers["Authorization"], body))
        status, text = self.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@contextmanager
def faulty(status: int, answer: Any) -> Iterator[str]:
    Fault.answer = status, answer if isinstance(answer, str) else json.dumps(answer)
    server = http.server.HTTPServer(("127.0.0.1", 0), Fault)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (401, {"error": "no"}, "answers 401: check EVERVEC_DASHBOARD_TOKEN"),
        (404, {"error": "no source has this name"}, "answers 404: no source has this name"),
        (503, {"error": "the model cannot be loaded"}, "answers 503: the model cannot be loaded"),
        (500, "<html>", "answers 500: Internal Server Error"),
        (200, "<html>", "does not answer"),
        (200, {"model": "bundled:use-multilingual-v3", "embeddings": [[0.1] * 3]}, "has 3 dimensions, .* have 512"),
        (200, {"model": "another", "embeddings": [[0.1] * 512]}, "embeds 'items_item' with 'another'"),
    ],
)
def test_a_dashboard_that_cannot_do_it_is_a_clear_error(status: int, answer: Any, message: str) -> None:
    with (
        faulty(status, answer) as address,
        override_settings(EVERVEC_DASHBOARD_URL=address, EVERVEC_DASHBOARD_TOKEN="secret"),
        pytest.raises(EmbedderUnavailableError, match=message) as error,
    ):
        Item.objects.similar_to("a drill")
    assert Fault.asked[-1] == (
        "/api/embed", "Bearer secret", {"source": "items_item", "texts": ["a drill"]}
    )  # fmt: skip
    assert "secret" not in str(error.value)


@override_settings(EVERVEC_DASHBOARD_URL="http://127.0.0.1:9")
def test_a_dashboard_that_is_away() -> None:
    with pytest.raises(EmbedderUnavailableError, match=r"does not answer at http://127.0.0.1:9 .*: start it"):
        Item.objects.similar_to("a drill")


@without_dashboard
def test_nothing_that_could_embed_a_query(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVERVEC_DASHBOARD_URL", raising=False)
    with pytest.raises(EmbedderUnavailableError, match=r"set EVERVEC_DASHBOARD_URL to evervec's dashboard$"):
        Item.objects.similar_to("a drill")
    source = replace(embedded(Item).source, model="sentence-transformers/all-MiniLM-L6-v2")
    with pytest.raises(EmbedderUnavailableError, match=r"or pip install 'django-evervec\[sentence-transformers\]'$"):
        embedder.embed_query(source, "a drill")


def test_in_process_it_is_the_same_vector() -> None:
    """With sentence-transformers, which evervec's own environment has: the vector that evervec computes."""
    python = PROGRAM.with_name("python")
    paths = [str(Path(embedder.__file__).parents[1]), *(path for path in sys.path if path.endswith("site-packages"))]
    done = subprocess.run(
        [python, Path(__file__).with_name("in_process.py"), *paths],
        check=False,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "EVERVEC_DASHBOARD_URL": ""},
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.9999
