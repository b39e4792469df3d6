"""What the tests share: waiting until nothing waits any more, and having the vectors checked by evervec itself."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from django.db import connection

from django_evervec import contract
from tests.conftest import PROGRAM

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


def assert_right(source: str = "items_item", *, fresh: int) -> None:
    """After what waits: so many eligible items, each vector that of its content, embedded anew to compare."""
    settle()
    [found] = evervec("verify", source, "--sample", "1000")["sources"]
    assert (found["eligible"], found["fresh"], found["sampled"], found["mismatched"]) == (fresh, fresh, fresh, 0), found
    assert found["ok"]


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


def outbox(source: str = "items_item") -> list[str]:
    """The keys that wait."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT item_key FROM evervec.outbox WHERE source = %s ORDER BY item_key", [source])
        return [key for (key,) in cursor.fetchall()]
