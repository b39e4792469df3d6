"""The sums of a worker, and a database that does not take them."""

import asyncio
import time
from collections.abc import Mapping
from typing import cast

import pytest
from structlog.testing import capture_logs

from activities import tally
from activities.tally import Tally
from db.items import Items, WriteBack
from db.work import Work
from evervec.errors import DatabaseError
from evervec.latency import LATENCY_BUCKETS, LATENCY_COUNTS, latency_bucket
from evervec.messages import Outcome
from evervec.metrics import Lane


class FakeHistory:
    """Takes what is told, or raises what the test wants."""

    def __init__(self) -> None:
        self.told: list[Mapping[str, Work]] = []
        self.error: Exception | None = None
        self.stuck = False
        self.attempts = 0
        self.asked = asyncio.Event()

    async def record_work(self, done: Mapping[str, Work]) -> None:
        self.attempts += 1
        self.asked.set()
        if self.stuck:
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        self.told.append(done)


def tally_for(history: FakeHistory) -> Tally:
    return Tally(cast("Items", history))


def test_each_latency_has_one_bucket() -> None:
    assert list(LATENCY_BUCKETS) == sorted(set(LATENCY_BUCKETS))
    for number, bound in enumerate(LATENCY_BUCKETS):
        assert latency_bucket(bound) == number
        assert latency_bucket(bound + 1e-6) == number + 1
    assert latency_bucket(-1.0) == 0  # a clock that was set back
    assert latency_bucket(1e9) == LATENCY_COUNTS - 1


async def test_outcomes_become_sums() -> None:
    history = FakeHistory()
    outcomes = {str(number): outcome for number, outcome in enumerate(Outcome)}
    waited = 20.0  # in the midst of a wide class
    queued_at = time.monotonic() - waited
    async with tally_for(history) as sums:
        sums.stored("items", Lane.LIVE, [WriteBack(key, 1, queued_at=queued_at) for key in outcomes], outcomes)
        # It was not in the outbox: there is no latency.
        sums.stored("items", Lane.LIVE, [WriteBack("x", None)], {"x": Outcome.EMBEDDED})
        sums.failed("others", Lane.SWEEP, attempts=3, given_up=2)
    latency = [0] * LATENCY_COUNTS
    latency[latency_bucket(waited)] = 1
    assert history.told == [{"items": Work(embedded=2, skipped=3, failed=0, latency=latency), "others": Work(failed=2)}]


async def test_it_tells_now_and_then_and_not_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 0.01)
    history = FakeHistory()
    async with tally_for(history) as sums:
        for number in range(1, 3):
            sums.failed("items", Lane.LIVE, attempts=1, given_up=number)
            async with asyncio.timeout(30):
                await history.asked.wait()
            history.asked.clear()
        await asyncio.sleep(0.05)
    assert history.told == [{"items": Work(failed=1)}, {"items": Work(failed=2)}]


async def test_a_database_that_takes_nothing_is_complained_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 0.001)
    history = FakeHistory()
    history.error = DatabaseError("no function", sqlstate="42883")
    with capture_logs() as logs:
        async with tally_for(history) as sums:
            async with asyncio.timeout(30):
                while history.attempts < 3:
                    sums.failed("items", Lane.LIVE, attempts=1, given_up=1)
                    await asyncio.sleep(0.001)
            history.error = None
            sums.failed("items", Lane.LIVE, attempts=5, given_up=5)
    assert [(line["event"], line["error"]) for line in logs] == [
        ("what was done could not be recorded", "DatabaseError [42883]")
    ]
    assert history.told[-1]["items"].failed >= 5


async def test_a_stop_does_not_wait_long_for_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "CLOSE_SECONDS", 0.01)
    history = FakeHistory()
    history.stuck = True
    async with asyncio.timeout(30):
        async with tally_for(history) as sums:
            sums.failed("items", Lane.LIVE, attempts=1, given_up=1)
    assert history.attempts == 1
