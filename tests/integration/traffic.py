"""Users who read and write a table in tight loops, and how long each of their statements took."""

import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg import sql

_WAITED = re.compile(r"acquired .* after ([\d.]+) ms")


@dataclass
class Waits:
    """The worst of one phase, in milliseconds."""

    statements: int = 0
    slowest: float = 0.0
    longest_lock: float = 0.0

    def __str__(self) -> str:
        return (
            f"{self.statements} statements, slowest {self.slowest:.0f} ms, longest wait for a lock "
            f"{self.longest_lock:.0f} ms"
        )


@dataclass
class Traffic:
    """Connections in tight loops. PostgreSQL itself reports how long each waited for a lock, whatever else was slow."""

    conninfo: str
    pause: float = 0.0
    """Seconds between two statements of a connection."""
    _phase: Waits = field(default_factory=Waits)
    _stop: threading.Event = field(default_factory=threading.Event)
    _errors: list[BaseException] = field(default_factory=list)

    @contextmanager
    def of(self, *statements: str) -> Iterator[None]:
        """Run each of these in a loop of its own, with a growing number as $1."""
        threads = [threading.Thread(target=self._loop, args=(statement,)) for statement in statements]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    @contextmanager
    def phase(self) -> Iterator[Waits]:
        """Count what the statements take from now on."""
        self._phase = Waits()
        yield self._phase
        self._phase = Waits()

    def _loop(self, statement: str) -> None:
        try:
            with psycopg.connect(self.conninfo, autocommit=True) as connection:
                connection.add_notice_handler(self._note)
                connection.execute("SET client_min_messages = log")
                connection.execute("SET log_lock_waits = on")
                connection.execute("SET deadlock_timeout = '10ms'")
                for number in itertools.count():
                    if self._stop.wait(self.pause):
                        return
                    phase, started = self._phase, time.perf_counter()
                    connection.execute(sql.SQL(statement), {"n": number})
                    phase.slowest = max(phase.slowest, (time.perf_counter() - started) * 1000)
                    phase.statements += 1
        except BaseException as error:  # noqa: BLE001 - raised where the traffic ends
            self._errors.append(error)

    def _note(self, diagnosis: psycopg.errors.Diagnostic) -> None:
        waited = _WAITED.search(diagnosis.message_primary or "")
        if waited:
            self._phase.longest_lock = max(self._phase.longest_lock, float(waited[1]))


@contextmanager
def in_background(work: Callable[[], Any]) -> Iterator[None]:
    """Do something in a thread, and raise at the end what it raised."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]
