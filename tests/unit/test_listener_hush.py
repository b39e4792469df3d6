import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import structlog

from evervec.errors import ConfigurationError, DatabaseError, ServiceUnreachableError
from listener import hush
from listener.backoff import Backoff
from listener.hush import AFTERWARDS, BURST, CALM_SECONDS, FIRST_SECONDS, LONGEST_SECONDS, RATE, Allowance, Hush


class Lab:
    """A clock, and a bell that can be silenced."""

    def __init__(self) -> None:
        self.now = 100.0
        self.hushes: list[float] = []
        self.looks = 0
        self.harmless = True
        self.taken = False
        self.error: Exception | None = None
        self.tries = 0
        self.silencer = Hush(lambda: self.harmless, self.over, lambda: self.now)

    def over(self) -> None:
        self.looks += 1

    async def hush(self, seconds: float) -> bool:
        self.tries += 1
        if self.error:
            raise self.error
        if not self.taken:
            self.hushes.append(round(seconds, 3))
            self.now += seconds
        return not self.taken

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.silencer.run(self))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def hear(self, count: float, per_second: float) -> None:
        """So many useless rings, evenly."""
        for _ in range(int(count)):
            self.now += 1 / per_second
            self.silencer.useless()
            for _ in range(10):
                await asyncio.sleep(0)


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.001)


def test_an_allowance_is_a_burst_and_a_rate(lab: Lab) -> None:
    allowance = Allowance(10, 5, lambda: lab.now)
    assert [allowance.take() for _ in range(7)] == [True] * 5 + [False] * 2
    lab.now += 0.2
    assert [allowance.take() for _ in range(3)] == [True, True, False]
    lab.now += 1000
    assert [allowance.take() for _ in range(7)] == [True] * 5 + [False] * 2
    allowance.begin_with(2)
    assert [allowance.take() for _ in range(3)] == [True, True, False]


async def test_little_that_is_useless_is_borne(lab: Lab) -> None:
    async with lab.running():
        await lab.hear(1000, 0.9 * RATE)
        lab.now += 10
        await lab.hear(BURST, 1e6)
    assert lab.hushes == []


async def test_a_flood_is_hushed_for_longer_while_it_goes_on_and_looked_after_each_time(lab: Lab) -> None:
    async with lab.running():
        await lab.hear(BURST, 1000)
        assert lab.hushes == []
        await lab.hear(1, 1000)
        assert lab.hushes == [FIRST_SECONDS]
        assert lab.looks == 1
        for hushes in range(2, 7):
            await lab.hear(AFTERWARDS, 1000)
            assert len(lab.hushes) == lab.looks == hushes - 1
            await lab.hear(1, 1000)
            assert len(lab.hushes) == lab.looks == hushes
        assert lab.hushes == [0.1, 0.15, 0.225, 0.25, 0.25, LONGEST_SECONDS]
        # It is over; the next one begins with a short hush.
        lab.now += CALM_SECONDS + BURST / RATE
        await lab.hear(BURST, 1000)
        assert len(lab.hushes) == 6
        await lab.hear(1, 1000)
    assert lab.hushes[-1] == FIRST_SECONDS
    assert lab.silencer.hushed == 7


async def test_of_a_flood_little_is_heard(lab: Lab) -> None:
    async with lab.running():
        began, heard = lab.now, 0
        while lab.now < began + 10:
            await lab.hear(1, 1000)
            heard += 1
    assert heard / 10 < 40


async def test_it_does_not_hush_while_that_would_do_harm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hush, "REFUSED_SECONDS", 0.001)
    lab.harmless = False
    async with lab.running():
        await lab.hear(1000, 1000)
        assert (lab.hushes, lab.looks) == ([], 0)
        await asyncio.sleep(0.01)
        lab.harmless = True
        await lab.hear(1, 1)
        assert lab.hushes == [], "what was refused is not made up for"
        await lab.hear(BURST, 1000)
        await until(lambda: lab.hushes == [FIRST_SECONDS])


async def test_a_bell_that_somebody_keeps_silent_is_looked_after_as_well(lab: Lab) -> None:
    lab.taken = True
    async with lab.running():
        await lab.hear(BURST + 2, 1000)
        assert (lab.hushes, lab.silencer.hushed, lab.looks) == ([], 0, 1)


@pytest.mark.parametrize("error", [DatabaseError("permission denied", sqlstate="42501"), ConfigurationError("old")])
async def test_a_database_that_refuses_is_told_of_once_and_asked_more_and_more_rarely(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(lab.silencer, "_backoff", Backoff(first=0.001, longest=0.01))
    lab.error = error
    with structlog.testing.capture_logs() as logs:
        async with lab.running():
            while lab.tries < 4:
                await lab.hear(BURST, 1000)
                await asyncio.sleep(0.001)
            lab.error = None
            while not lab.hushes:
                await lab.hear(BURST, 1000)
                await asyncio.sleep(0.001)
    assert [entry["log_level"] for entry in logs] == ["warning"]


async def test_a_lost_database_ends_it(lab: Lab) -> None:
    lab.error = ServiceUnreachableError()
    for _ in range(int(BURST) + 1):
        lab.silencer.useless()
    with pytest.raises(ServiceUnreachableError):
        await lab.silencer.run(lab)
