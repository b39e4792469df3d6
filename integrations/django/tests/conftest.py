"""A real Django project on a real stack: `evervec up` gives PostgreSQL, Temporal, listener, worker and dashboard.

EVERVEC_PROGRAM is the program, by default that of the repository's environment.
"""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import django
import psycopg
import pytest
from django.core.management import call_command
from django.test import Client
from django.test.utils import setup_test_environment, teardown_test_environment

REPOSITORY = Path(__file__).parents[3]
PROGRAM = Path(os.environ.get("EVERVEC_PROGRAM", REPOSITORY / ".venv" / "bin" / "evervec"))
START_SECONDS = 120.0


class Stack:
    """`evervec up` on a directory of its own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="django-evervec-"))
        self.directory.chmod(0o755)
        self.log = self.directory / "up.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        # A bad item is given up soon.
        environment = os.environ | {"EVERVEC_MAX_ATTEMPTS": "2", "HF_HUB_OFFLINE": "1"}
        for name in ("EVERVEC_DATABASE_URL", "EVERVEC_TEMPORAL_ADDRESS", "EVERVEC_DASHBOARD_URL"):
            environment.pop(name, None)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "up", "--data-dir", self.directory / "data"], stdout=log, stderr=log, env=environment
            )
        addresses = self.directory / "data" / "env"
        deadline = time.monotonic() + START_SECONDS
        while not addresses.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"`evervec up` does not come up:\n{self.log.read_text()}")
            time.sleep(0.1)
        os.environ.update(item.split("=", 1) for item in shlex.split(addresses.read_text()))

    def stop(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
        shutil.rmtree(self.directory, ignore_errors=True)


stack = Stack()


def pytest_sessionstart() -> None:
    """Before tests are collected, since they import models."""
    stack.start()
    with psycopg.connect(os.environ["EVERVEC_DATABASE_URL"], autocommit=True) as connection:
        connection.execute("CREATE DATABASE scratch")
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    django.setup()
    setup_test_environment()
    call_command("migrate", verbosity=0)


def pytest_unconfigure() -> None:
    """Whatever happened."""
    if django.apps.apps.ready:
        teardown_test_environment()
    stack.stop()


def pytest_report_header() -> str:
    return f"Django {django.__version__} on {PROGRAM}"


@pytest.fixture(autouse=True)
def empty_tables() -> None:
    """Each test begins with empty tables, and an empty outbox."""
    from items.models import Item  # noqa: PLC0415 - Django is ready now
    from tests.things.models import Note, Poem  # noqa: PLC0415

    for model in (Item, Note, Poem):
        model.objects.all().delete()


@pytest.fixture
def admin() -> Client:
    """A browser's session of somebody who may do everything."""
    from django.contrib.auth.models import User  # noqa: PLC0415 - as above

    User.objects.filter(username="admin").delete()
    client = Client()
    client.force_login(User.objects.create_superuser("admin", password="admin"))
    return client
