"""The commands, with progress and --json."""

import io
import json
import sys
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from items.models import Item
from tests.lab import assert_right, outbox, paused, settle
from tests.test_writes import item
from tests.things.models import Poem


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments: str, stderr: Any = None) -> str:
    out = io.StringIO()
    call_command(*arguments, stdout=out, stderr=stderr or sys.stderr)
    return out.getvalue()


def without_triggers(statement: str) -> None:
    """What a bulk load with triggers off leaves: the outbox knows nothing of it."""
    with connection.cursor() as cursor:
        cursor.execute(f"SET session_replication_role = replica; {statement}; RESET session_replication_role")


def test_generate_embeddings_finds_what_no_trigger_saw() -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(5)])
    settle()
    with paused():
        without_triggers("UPDATE items_item SET description = 'Loaded' WHERE name IN ('Thing 1', 'Thing 2')")
        told = json.loads(run("generate_embeddings", "items_item", "--json"))
        assert told == {"sources": [{"source": "items_item", "enqueued": 2, "pending": 2, "failed": 0, "paused": True}]}
    assert_right(fresh=5)


def test_generate_embeddings_waits_and_tells_how_far_it_is() -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(100)])
    terminal = Terminal()
    told = run("generate_embeddings", "--wait", stderr=terminal)
    assert "items_item: 100 rows looked at" in terminal.getvalue()
    assert "items are left" in terminal.getvalue()
    assert "items to be embedded; 0 pending, 0 failed" in told
    assert outbox() == []
    assert_right(fresh=100)


def test_a_rate_is_set_until_nothing_waits() -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(3)])
    settle()
    rate = "SELECT rate FROM evervec.source WHERE name = 'items_item'"
    with paused():
        without_triggers("UPDATE items_item SET description = 'Loaded'")
        run("generate_embeddings", "items_item", "--rate", "50")
        with connection.cursor() as cursor:
            cursor.execute(rate)
            assert cursor.fetchone() == (50.0,)
    assert_right(fresh=3)


def test_regenerate_embeddings_of_some() -> None:
    made = Item.objects.bulk_create([item(f"Thing {number}") for number in range(4)])
    settle()
    before = dict(Item.objects.values_list("pk", "embedded_at"))
    chosen = [made[0].pk, made[2].pk]
    run("regenerate_embeddings", "items_item", "--ids", ",".join(map(str, chosen)), "--wait")
    after = dict(Item.objects.values_list("pk", "embedded_at"))
    assert {pk for pk in after if after[pk] != before[pk]} == set(chosen)
    assert_right(fresh=4)


def test_regenerate_embeddings_of_all() -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(4)])
    item("Inactive", active=False).save()
    settle()
    before = set(Item.objects.exclude(embedding=None).values_list("pk", "embedded_at"))
    told = json.loads(run("regenerate_embeddings", "items_item", "--all", "--wait", "--json"))
    assert told["sources"][0]["enqueued"] == 4
    assert not before & set(Item.objects.values_list("pk", "embedded_at"))


def test_what_failed_is_told_and_is_exit_code_1() -> None:
    poison = Poem.objects.create(text="evervec-poison")
    Poem.objects.create(text="Roses")
    with pytest.raises(CommandError, match="1 items failed: check_embedding_status tells why") as failed:
        run("generate_embeddings", "things_poem", "--wait")
    assert failed.value.returncode == 1
    told = json.loads(run("check_embedding_status", "things_poem", "--json"))
    [counts] = told["sources"]
    assert (counts["eligible"], counts["fresh"], counts["stale"], counts["failed"]) == (2, 1, 1, 1)
    [failure] = told["failures"]
    assert (failure["source"], failure["key"], failure["attempts"]) == ("things_poem", str(poison.pk), 2)
    shown = run("check_embedding_status", "things_poem")
    assert shown.splitlines()[1].split() == ["things_poem", "2", "1", "1", "0", "1", "50.0%", "stub:16"]
    assert f"things_poem {poison.pk}: failed after 2 attempts: {failure['error']}" in shown


def test_check_embedding_status_of_all_sources() -> None:
    told = json.loads(run("check_embedding_status", "--json"))
    assert [counts["source"] for counts in told["sources"]] == ["items_item", "things_note", "things_poem"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate_embeddings", "nothing"], "no source named nothing: there are items_item, things_note, things_poem"),
        (["regenerate_embeddings", "items_item", "--ids", "999999"], "items_item has no row with the key 999999"),
        (["regenerate_embeddings", "--ids", "1"], "name one of the sources: items_item, things_note, things_poem"),
        (["regenerate_embeddings", "items_item"], "--ids --all is required"),
        (["check_embedding_status", "--database", "scratch"], "evervec is not in this database"),
    ],
)
def test_mistakes_are_one_clear_line(arguments: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        run(*arguments)
