from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from db.outbox import OutboxItem
from evervec.errors import DatabaseError
from listener.unheard import IDLE_SECONDS, LATE_SECONDS, REST, Unheard


@dataclass
class Outbox:
    """With items that were enqueued at some moment; reading it takes as long as it says."""

    now: float = 1000.0
    enqueued: dict[str, float] = field(default_factory=dict)
    takes: float = 0.01
    fails: bool = False
    reads: int = 0
    others: int = 1

    async def last_version(self) -> int:
        return self.others + len(self.enqueued)

    async def newest(self, source: str, seconds: float, limit: int) -> list[OutboxItem]:
        if self.fails:
            raise DatabaseError("no such function", sqlstate="42883")
        since = self.now - seconds
        self.now += self.takes
        self.reads += 1
        return [OutboxItem(source, key, "hash", 1) for key, at in self.enqueued.items() if at > since][:limit]


@dataclass
class Live:
    """A live lane that takes whatever it is given."""

    threshold: int = 2
    sweeping: list[str] = field(default_factory=lambda: ["items"])
    told: list[str] = field(default_factory=list)

    def unheard(self, items: Sequence[OutboxItem], seen_at: float) -> None:
        assert seen_at > 0
        self.told += [item.item_key for item in items]


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def live() -> Live:
    return Live()


@pytest.fixture
def unheard(outbox: Outbox, live: Live) -> Unheard:
    return Unheard(live, lambda: outbox.now)


async def test_what_is_enqueued_while_a_sweep_is_open_goes_live(outbox: Outbox, live: Live, unheard: Unheard) -> None:
    outbox.enqueued["before"] = outbox.now - 1
    await unheard.step(outbox)
    outbox.now += 1
    outbox.enqueued["edited"] = outbox.now - 0.5
    await unheard.step(outbox)
    assert live.told == ["edited"]


async def test_what_commits_late_is_found_for_a_while(outbox: Outbox, live: Live, unheard: Unheard) -> None:
    for _ in range(10):
        await unheard.step(outbox)
        outbox.now += 1
        outbox.others += 1
    outbox.enqueued |= {"late": outbox.now - LATE_SECONDS, "too late": outbox.now - LATE_SECONDS - 2}
    await unheard.step(outbox)
    assert live.told == ["late"]


async def test_bulk_work_is_left_to_the_sweep_for_good(outbox: Outbox, live: Live, unheard: Unheard) -> None:
    await unheard.step(outbox)
    outbox.now += 1
    outbox.enqueued = {str(number): outbox.now for number in range(100)}
    outbox.now += 1
    await unheard.step(outbox)
    outbox.enqueued = {"99": outbox.now - 1}
    outbox.now += 1
    await unheard.step(outbox)
    assert live.told == []
    outbox.enqueued["edited"] = outbox.now - 0.1
    await unheard.step(outbox)
    assert live.told == ["edited"]


async def test_a_sweep_that_opens_anew_begins_anew(outbox: Outbox, live: Live, unheard: Unheard) -> None:
    await unheard.step(outbox)
    live.sweeping = []
    await unheard.step(outbox)
    outbox.enqueued["before"] = outbox.now
    outbox.now += 1
    live.sweeping = ["items"]
    await unheard.step(outbox)
    await unheard.step(outbox)
    assert live.told == []


async def test_it_reads_a_small_part_of_the_time(outbox: Outbox, live: Live, unheard: Unheard) -> None:
    assert await unheard.step(outbox) == IDLE_SECONDS
    outbox.takes = 0.5
    assert await unheard.step(outbox) == pytest.approx(REST * 0.5)
    live.sweeping = []
    assert await unheard.step(outbox) == IDLE_SECONDS


async def test_it_does_not_read_while_nobody_enqueues(outbox: Outbox, live: Live, unheard: Unheard) -> None:
    for _ in range(100):
        await unheard.step(outbox)
        outbox.now += 1
    assert outbox.reads <= LATE_SECONDS + 2
    outbox.enqueued |= {"edited": outbox.now - 0.5, "late": outbox.now - LATE_SECONDS}
    for _ in range(100):
        await unheard.step(outbox)
        outbox.now += 1
    assert set(live.told) == {"edited", "late"}
    assert outbox.reads <= 2 * (LATE_SECONDS + 2)


async def test_a_database_of_an_earlier_version_is_asked_more_and_more_rarely(outbox: Outbox, unheard: Unheard) -> None:
    outbox.fails = True
    with capture_logs() as logs:
        rests = [await unheard.step(outbox) for _ in range(8)]
    assert rests[-1] > 10 * rests[0]
    assert [line["log_level"] for line in logs] == ["warning"]
    outbox.fails = False
    assert await unheard.step(outbox) == IDLE_SECONDS
