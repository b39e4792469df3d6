"""Whoever writes the table, and however: each row's vector is soon that of its content."""

from django.db import connection, transaction
from django.test import Client

from items.models import Item
from tests.lab import assert_right, evervec, outbox, paused, settle


def item(name: str = "Ladder", **values: object) -> Item:
    return Item(**{"name": name, "description": "Six metres", "category": "tools", "type": "lend"} | values)


def vector_of(pk: int) -> list[float] | None:
    return Item.objects.get(pk=pk).embedding


def test_save() -> None:
    ladder = item()
    ladder.save()
    assert_right(fresh=1)
    first = vector_of(ladder.pk)
    ladder.description = "Three metres, made of wood"
    ladder.save()
    assert_right(fresh=1)
    assert vector_of(ladder.pk) != first


def test_bulk_create() -> None:
    Item.objects.bulk_create([item(f"Thing {number}") for number in range(150)])
    assert_right(fresh=150)
    [found] = evervec("verify", "items_item", "--sample", "150")["sources"]
    assert (found["ok"], found["sampled"]) == (True, 150)


def test_queryset_update() -> None:
    made = Item.objects.bulk_create([item(f"Thing {number}") for number in range(10)])
    settle()
    Item.objects.filter(pk__in=[one.pk for one in made[:5]]).update(description="Quite another text")
    assert_right(fresh=10)


def test_raw_sql() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO items_item (name, description, category, type, status, active, views, created_at) "
            "VALUES ('Drill', 'With bits', 'tools', 'lend', 'available', true, 0, now())"
        )
    assert_right(fresh=1)
    with connection.cursor() as cursor:
        cursor.execute("UPDATE items_item SET name = 'Hammer drill'")
    assert_right(fresh=1)


def test_admin_form(admin: Client) -> None:
    form = {"name": "Saw", "description": "Old", "category": "tools", "type": "give", "status": "available", "views": 0}
    assert admin.post("/admin/items/item/add/", form | {"active": "on"}).status_code == 302
    assert_right(fresh=1)
    pk, first = Item.objects.values_list("pk", "embedding").get()
    changed = form | {"active": "on", "description": "New and sharp"}
    assert admin.post(f"/admin/items/item/{pk}/change/", changed).status_code == 302
    assert_right(fresh=1)
    assert vector_of(pk) != first


def test_a_transaction_that_rolls_back_leads_to_nothing() -> None:
    kept = item()
    kept.save()
    settle()
    before = Item.objects.values("embedding", "embedded_at").get()
    with paused():
        with transaction.atomic():
            item("Never there").save()
            Item.objects.update(description="Never so")
            assert len(outbox()) == 2
            transaction.set_rollback(True)
        assert outbox() == []
    assert_right(fresh=1)
    assert Item.objects.values("embedding", "embedded_at").get() == before


def test_what_becomes_inactive_or_blank_is_not_embedded() -> None:
    item("Inactive", active=False).save()
    item("Blank", description="  ").save()
    item("Well").save()
    assert_right(fresh=1)
    assert [one.name for one in Item.objects.exclude(embedding=None)] == ["Well"]
