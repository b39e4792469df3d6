"""A multilingual model: queries in one language find items in the other, among 200 real ones."""

from io import StringIO

import pytest
from django.core.management import call_command

from items.models import Item
from tests.conftest import REPOSITORY
from tests.lab import settle

GERMAN_FOR_ENGLISH = {
    "Maschine, mit der man Speiseeis selber macht": "Ice cream maker",
    "Luftentfeuchter gegen feuchte Wände": "Dehumidifier",
    "Hochdruckreiniger für die Terrasse": "Pressure washer",
    "Fernglas, um Vögel zu beobachten": "Birdwatching binoculars",
    "Jemand, der morgens mit dem Hund spazieren geht": "Dog walking before work",
    "Kleidung für Schwangere": "Maternity clothes, size 12 to 14",
}
ENGLISH_FOR_GERMAN = {
    "a wooden sledge for the snow": "Holzschlitten",
    "something to hang between two trees and lie in": "Hängematte für zwei Bäume",
    "table tennis for outdoors": "Tischtennisplatte, wetterfest",
    "maths tutoring before the exams": "Mathe-Nachhilfe bis zum Abitur",
    "guitar lessons for beginners": "Gitarrenunterricht für Einsteiger",
    "ironing board": "Bügelbrett, extra breit",
}
WANTED = GERMAN_FOR_ENGLISH | ENGLISH_FOR_GERMAN


@pytest.fixture
def items() -> None:
    call_command("load_items", REPOSITORY / "cli" / "demo" / "items.sql", stdout=StringIO())
    assert Item.objects.count() == 200
    settle()


@pytest.mark.usefixtures("items")
def test_queries_find_items_of_the_other_language() -> None:
    places = {}
    for query, name in WANTED.items():
        found = [item.name for item in Item.objects.similar_to(query, limit=200)]
        assert name in found
        places[query] = found.index(name) + 1
    assert sum(place <= 3 for place in places.values()) >= 10, places
