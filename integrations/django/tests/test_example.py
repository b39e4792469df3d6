"""The example's pages, and how it is started."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.test import Client, override_settings

from items.models import Item
from tests.conftest import PROGRAM
from tests.lab import settle, until
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


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the user under whom PostgreSQL runs can reach."""
    with tempfile.TemporaryDirectory(prefix="django-evervec-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_one_command_starts_it_all_and_stops_it(reachable: Path) -> None:
    """What `make django-example` runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    run = Path(__file__).parents[1] / "example" / "run.py"
    data_dir = reachable / "data"
    unset = {"DJANGO_SETTINGS_MODULE", *(name for name in os.environ if name.startswith("EVERVEC_"))}
    process = subprocess.Popen(
        [sys.executable, run, "--evervec", PROGRAM, "--data-dir", data_dir, "--address", address],
        env={name: value for name, value in os.environ.items() if name not in unset},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        page = until(lambda: get(f"http://{address}/items/1/") or process.poll() is not None)
        assert process.poll() is None
        assert "<h1>Schlagbohrmaschine mit Bohrersatz</h1>" in page
        until(lambda: "Cordless drill, the good one" in (get(f"http://{address}/items/1/") or ""))
        # The first search makes the dashboard load the model, and a page waits for that for 30 s at most.
        until(lambda: "Akkuschrauber" in (get(f"http://{address}/?q=cordless+screwdriver") or ""))
    finally:
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, output
    assert not (data_dir / "env").exists()
    assert get(f"http://{address}/") is None


def get(address: str) -> str | None:
    try:
        with urllib.request.urlopen(address) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return None
