"""The admin: how rows stand, a filter, and actions that are one statement each."""

import re

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from django_evervec.errors import NotWatchedError
from django_evervec.managers import EmbeddedQuerySet
from items.models import Item
from tests.lab import assert_right, outbox, paused, settle, until, unwalked
from tests.test_commands import without_triggers
from tests.test_writes import item
from tests.things.models import Note, Poem

ITEMS = "/admin/items/item/"
POEMS = "/admin/things/poem/"


def states(page: str) -> dict[str, str]:
    """What the list says of each row, by the text of its link."""
    rows = re.findall(
        r'<th class="field-[^>]*><a [^>]*>(.*?)</a>.*?<td class="field-embedding_status">(.*?)</td>', page, re.S
    )
    return {name: re.sub(r"<[^>]+>", "", status) for name, status in rows}


def show(client: Client, address: str) -> dict[str, str]:
    answer = client.get(address)
    assert answer.status_code == 200
    return states(answer.content.decode())


def act(client: Client, action: str, rows: list[int], *, across: bool = False, address: str = ITEMS) -> str:
    """Choose rows (or, across, all of them), do it, and return the message."""
    form = {"action": action, "_selected_action": rows, "select_across": int(across), "index": 0}
    answer = client.post(address, form, follow=True)
    assert answer.status_code == 200
    [message] = answer.context["messages"]
    return str(message)


def test_the_list_says_how_each_item_stands_and_why(admin: Client) -> None:
    item("Fresh").save()
    item("Inactive", active=False).save()
    item("Blank", description=" ").save()
    settle()
    with paused(), unwalked():
        item("Waiting").save()
        without_triggers("UPDATE items_item SET description = 'unseen' WHERE name = 'Fresh'")
        shown = show(admin, ITEMS)
    assert shown["Inactive"] == "ineligible inactive"
    assert shown["Blank"] == "ineligible description is blank"
    assert re.fullmatch(r"stale no vector yet; waiting for 0\sminutes, the source is paused", shown["Waiting"])
    assert re.fullmatch(
        r"stale changed since it was embedded 0\sminutes ago; not in the outbox: generate its embedding", shown["Fresh"]
    )
    Item.objects.generate_embeddings()
    settle()
    assert re.fullmatch(r"fresh embedded 0\sminutes ago", show(admin, ITEMS)["Fresh"])


def test_a_failed_one_says_after_what(admin: Client) -> None:
    Poem.objects.create(text="evervec-poison")
    settle()
    [shown] = show(admin, POEMS).values()
    assert re.fullmatch(r"failed given up 0\sminutes ago after 2 attempts: \S.*", shown)


def test_one_statement_tells_how_a_page_of_rows_stands(admin: Client) -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(100)])
    with CaptureQueriesContext(connection) as statements:
        assert len(show(admin, ITEMS)) == 100
    assert len([query for query in statements if "explain_item" in query["sql"]]) == 1
    assert not any('"items_item"."embedding",' in query["sql"] for query in statements)


@pytest.fixture
def one_of_each(admin: Client) -> Client:
    Poem.objects.create(text="Inactive is none of these")
    Poem.objects.create(text="evervec-poison")
    settle()
    return admin


def test_the_filter(one_of_each: Client) -> None:
    fresh, failed = Poem.objects.order_by("pk")
    with paused("things_poem"):
        stale, forced = Poem.objects.create(text="New"), fresh
        Poem.objects.filter(pk=forced.pk).regenerate_embeddings()
        found = {
            state: set(
                one_of_each.get(f"{POEMS}?embedding={state}").context["cl"].queryset.values_list("pk", flat=True)
            )
            for state in ("fresh", "stale", "failed", "nonsense")
        }
    assert found["fresh"] == {fresh.pk}
    assert found["stale"] == {stale.pk}
    assert found["failed"] == {failed.pk}
    assert found["nonsense"] == {fresh.pk, stale.pk, failed.pk}


def test_generate_embeddings(admin: Client) -> None:
    made = Item.objects.bulk_create([item(f"Thing {number}") for number in range(4)])
    settle()
    with paused(), unwalked():
        without_triggers("UPDATE items_item SET description = 'Loaded'")
        said = act(admin, "generate_embeddings", [made[0].pk, made[1].pk])
        assert said == "2 items to be embedded; all others are fresh."
        assert outbox() == sorted(str(one.pk) for one in made[:2])


def test_regenerate(admin: Client) -> None:
    made = Item.objects.bulk_create([item(f"Thing {number}") for number in range(3)])
    settle()
    before = Item.objects.get(pk=made[0].pk).embedded_at
    assert act(admin, "regenerate_embeddings", [made[0].pk]) == "1 item to be embedded anew."
    until(lambda: Item.objects.get(pk=made[0].pk).embedded_at != before)
    assert_right(fresh=3)


def test_retry_failed(admin: Client) -> None:
    poison = Poem.objects.create(text="evervec-poison")
    settle()
    with paused("things_poem"):
        said = act(admin, "retry_embeddings", [poison.pk], address=POEMS)
        assert said == "1 item that had failed tried again."
        assert outbox("things_poem") == [str(poison.pk)]
        assert show(admin, f"{POEMS}?embedding=failed") == {}


@pytest.mark.parametrize("action", ["generate_embeddings", "regenerate_embeddings", "retry_embeddings"])
def test_ten_thousand_rows_are_one_statement(admin: Client, action: str) -> None:
    with paused():
        with connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")
            Item.objects.bulk_create([item(f"Thing {number}") for number in range(10_000)])
            cursor.execute("RESET session_replication_role")
        if action == "retry_embeddings":
            Item.objects.generate_embeddings()
            with connection.cursor() as cursor:
                cursor.execute(
                    "UPDATE evervec.outbox SET state = 'failed', failed_at = now() WHERE source = 'items_item'"
                )
        first = Item.objects.first()
        assert first
        with CaptureQueriesContext(connection) as statements:
            said = act(admin, action, [first.pk], across=True)
        assert said.startswith("10000 items ")
        calls = [query["sql"] for query in statements if "evervec.re" in query["sql"]]
        assert len(calls) == 1
        assert len(calls[0]) < 500  # the keys did not leave the database
        assert len(outbox()) == 10_000
        with CaptureQueriesContext(connection) as statements:
            assert getattr(EmbeddedQuerySet, action)(Item.objects.all()) in (10_000, 0)
        assert len(statements) == 2  # which source this is, and the one
        Item.objects.all().delete()


def test_a_table_that_is_not_watched_is_said_to_be_so() -> None:
    with pytest.raises(
        NotWatchedError, match=r"auth.User is not watched: put WatchModel\('User', …\) into a migration"
    ):
        EmbeddedQuerySet(User).generate_embeddings()


def test_a_list_without_a_source_is_a_list(admin: Client) -> None:
    Poem.objects.create(text="Roses")
    settle()
    with connection.cursor() as cursor:
        cursor.execute("SELECT evervec.unwatch('things_poem')")
    try:
        [shown] = show(admin, POEMS).values()
        assert shown.startswith("unknown things.Poem is not watched: put WatchModel")
        said = act(admin, "generate_embeddings", [Poem.objects.get().pk], address=POEMS)
        assert said.startswith("things.Poem is not watched: put WatchModel")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("SELECT evervec.watch('things_poem', '{text}', model => 'stub:16')")


def test_the_actions_come_beside_those_of_the_project(admin: Client) -> None:
    Note.objects.create(title="Shopping")
    offered = dict(admin.get("/admin/things/note/").context["action_form"].fields["action"].choices)
    assert {"archive", "generate_embeddings", "regenerate_embeddings", "retry_embeddings"} <= set(offered)


def test_who_may_only_look_has_no_actions() -> None:
    User.objects.filter(username="viewer").delete()
    viewer = User.objects.create_user("viewer", is_staff=True)
    viewer.user_permissions.set(Permission.objects.filter(codename="view_item"))
    client = Client()
    client.force_login(viewer)
    item().save()
    settle()
    page = client.get(ITEMS)
    assert page.status_code == 200
    assert b"Regenerate" not in page.content
    client.post(ITEMS, {"action": "regenerate_embeddings", "_selected_action": [Item.objects.get().pk]})
    assert outbox() == []


def test_the_page_of_an_item_says_how_it_stands(admin: Client) -> None:
    made = item()
    made.save()
    settle()
    page = admin.get(f"{ITEMS}{made.pk}/change/").content.decode()
    assert re.search(r"<b class=\"evervec-fresh\">fresh</b> <small>embedded 0\sminutes ago", page)
    assert admin.get(f"{ITEMS}add/").status_code == 200


def test_a_side_tables_states(admin: Client) -> None:
    Note.objects.create(title="Embedded")
    settle()
    with paused("things_note"):
        Note.objects.create(title="Waiting")
        Note.objects.create(title="A draft")
        Note.objects.create(title="Put away", archived=True)
        shown = {name: status.split()[0] for name, status in show(admin, "/admin/things/note/").items()}
        assert shown == {"Embedded": "fresh", "Waiting": "stale", "A draft": "ineligible", "Put away": "ineligible"}
        assert list(show(admin, "/admin/things/note/?embedding=fresh")) == ["Embedded"]
        assert list(show(admin, "/admin/things/note/?embedding=stale")) == ["Waiting"]


def test_the_sources_are_listed(admin: Client) -> None:
    page = admin.get("/admin/evervec/sourcestatus/").content.decode()
    assert "items_item" in page
    assert "bundled:use-multilingual-v3" in page
    assert admin.get("/admin/evervec/sourcestatus/add/").status_code == 403
