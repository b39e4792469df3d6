"""An instance in memory holds the vector of when it was loaded, and never brings it back."""

import json
import random
from pathlib import Path

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from django_evervec.errors import ReadOnlyFieldError
from items.models import Item
from tests.lab import assert_right, outbox, paused, settle
from tests.test_writes import item

FIELDS = ("embedding", "embedding_hash", "embedding_model", "embedded_at")


def stored(one: Item) -> dict[str, object]:
    return Item.objects.filter(pk=one.pk).values(*FIELDS).get()


def test_an_instance_from_before_the_first_vector_leaves_it() -> None:
    early = item()
    early.save()
    settle()
    vector = stored(early)
    assert vector["embedding"] is not None
    assert early.embedding is None
    early.views = 5
    early.save()
    assert stored(early) == vector
    assert outbox() == []


def test_a_stale_instance_leaves_a_newer_vector() -> None:
    item().save()
    settle()
    stale = Item.objects.get()
    Item.objects.regenerate_embeddings()
    settle()
    newer = stored(stale)
    assert newer["embedded_at"] != stale.embedded_at
    stale.views = 7
    stale.save()
    assert stored(stale) == newer


def test_a_stale_instance_that_brings_an_old_text_back_gets_its_vector() -> None:
    item().save()
    settle()
    stale, current = Item.objects.get(), Item.objects.get()
    current.name = "Something quite different"
    current.save()
    settle()
    between = stored(current)
    with paused():
        stale.views = 3
        stale.save()
        assert Item.objects.get().name == "Ladder"
        assert stored(stale) == between  # the row has its former text, and not yet its vector
    assert_right(fresh=1)
    assert stored(stale)["embedding_hash"] == stale.embedding_hash


def test_a_stale_instance_is_saved_while_another_edit_waits() -> None:
    item().save()
    settle()
    stale = Item.objects.get()
    with paused():
        Item.objects.update(name="Written meanwhile")
        stale.description = "And this by an instance that knows nothing of it"
        stale.save()
    assert_right(fresh=1)


def test_update_fields_names_it_in_vain() -> None:
    item().save()
    settle()
    one = Item.objects.get()
    before = stored(one)
    one.embedding, one.embedding_hash = [1.0] * 512, "forged"
    one.save(update_fields=["embedding", "embedding_hash", "views"])
    assert stored(one) == before
    one.refresh_from_db()
    assert one.embedding == before["embedding"]


def test_a_vector_that_is_brought_along_is_not_inserted() -> None:
    with paused():
        forged = {"embedding": [1.0] * 512, "embedding_hash": "forged", "embedding_model": "mine"}
        Item.objects.create(name="A", description="a", category="c", type="t", **forged)
        Item.objects.bulk_create([item(**forged)])
        assert set(Item.objects.values_list(*FIELDS)) == {(None, None, None, None)}
    assert_right(fresh=2)


def test_a_copy_of_a_row_has_no_vector_of_its_own_yet() -> None:
    item().save()
    settle()
    copy = Item.objects.get()
    copy.pk, copy.name = None, "Copied and renamed"
    copy._state.adding = True
    with paused():
        copy.save()
        assert stored(copy)["embedding"] is None
    assert_right(fresh=2)


@pytest.mark.parametrize("field", FIELDS)
def test_bulk_update_and_update_refuse(field: str) -> None:
    item().save()
    settle()
    one = Item.objects.get()
    with pytest.raises(ReadOnlyFieldError, match="written by evervec alone"):
        Item.objects.bulk_update([one], [field])
    with pytest.raises(ReadOnlyFieldError):
        Item.objects.update(**{field: getattr(one, field)})


def test_bulk_update_of_other_fields() -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(3)])
    settle()
    many = list(Item.objects.all())
    for one in many:
        one.description = f"Now {one.name}"
    Item.objects.bulk_update(many, ["description"])
    assert_right(fresh=3)


def test_no_statement_of_a_save_contains_the_vector() -> None:
    item().save()
    settle()
    one = Item.objects.get()
    with CaptureQueriesContext(connection) as statements:
        one.save()
    [update] = [query["sql"] for query in statements if query["sql"].startswith("UPDATE")]
    assert str(one.embedding[0])[:8] not in update
    assert '"embedding" = ("items_item"."embedding")' in update or '"embedding" = "items_item"."embedding"' in update


def test_fixtures_leave_the_columns_out(tmp_path: Path) -> None:
    item().save()
    settle()
    fixture = tmp_path / "items.json"
    call_command("dumpdata", "items", output=str(fixture))
    [dumped] = json.loads(fixture.read_text())
    assert not set(FIELDS) & set(dumped["fields"])
    Item.objects.all().delete()
    call_command("loaddata", str(fixture), verbosity=0)
    assert_right(fresh=1)
    call_command("loaddata", str(fixture), verbosity=0)  # over the rows that are there
    assert_right(fresh=1)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_saves_of_stale_instances_in_any_order(seed: int) -> None:
    """Ten instances of three rows, some of them old, are edited and saved while rows are embedded."""
    dice = random.Random(seed)
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(3)])
    held: list[Item] = []
    for number in range(80):
        if len(held) < 10:
            held.append(dice.choice(list(Item.objects.all())))
        one = dice.choice(held)
        match dice.randrange(6):
            case 0:
                one.name = f"Thing {dice.randrange(5)}"
            case 1:
                one.views = number
            case 2:
                held.remove(one)
            case 3:
                Item.objects.filter(pk=one.pk).update(description=f"Text {dice.randrange(5)}")
            case 4:
                settle()
            case 5:
                Item.objects.filter(pk=one.pk).regenerate_embeddings()
        one.save()
    assert_right(fresh=3)
