"""The example's pages."""

import pytest
from django.test import Client, override_settings

from items.models import Item
from tests.lab import settle
from tests.test_writes import item


@pytest.fixture
def drill() -> Item:
    Item.objects.bulk_create([item("Schlagbohrmaschine"), item("Zelt für fünf", description="Wasserdicht")])
    drill = item("Impact drill", description="For walls")
    drill.save()
    settle()
    return drill


def test_an_item_and_those_like_it(drill: Item) -> None:
    page = Client().get(f"/items/{drill.pk}/")
    assert [one.name for one in page.context["similar"]] == ["Schlagbohrmaschine", "Zelt für fünf"]
    assert b"<h1>Impact drill</h1>" in page.content
    assert Client().get("/items/0/").status_code == 404


def test_all_items_and_a_search(drill: Item) -> None:
    assert Client().get("/").context["items"][0] == drill
    page = Client().get("/", {"q": "camping"})
    assert page.context["items"][0].name == "Zelt für fünf"


@pytest.mark.usefixtures("drill")
@override_settings(EVERVEC_DASHBOARD_URL="http://127.0.0.1:9")
def test_a_search_that_nothing_can_embed_says_so() -> None:
    page = Client().get("/", {"q": "<b>camping"})
    assert page.status_code == 200
    assert b"start it, or check EVERVEC_DASHBOARD_URL" in page.content
    assert b"<b>camping" not in page.content
