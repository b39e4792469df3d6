"""How far a sweep is, as it was seen."""

from datetime import UTC, datetime
from typing import Any

import pytest

from dashboard.sweeps import SHOWN_SECONDS, Sweeps, SweepView, Track
from evervec.messages import SweepStatus

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def status(items: int, **changes: Any) -> SweepStatus:
    values = {
        "source": "items",
        "started_at": BEGAN,
        "pass_number": 1,
        "items": items,
        "embedded": items,
        "unchanged": 0,
        "failed": 0,
        "locked": 0,
        "others": 0,
        "rate": None,
        "items_per_second": 7.0,
        "last_error": None,
    }
    return SweepStatus(**(values | changes))


def seen(track: Track) -> SweepView:
    assert track.view
    return track.view


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def track(clock: Clock) -> Track:
    return Track(clock)


def test_at_first_the_rate_is_what_the_sweep_says(track: Track) -> None:
    track.running(status(100), left=300)
    assert (seen(track).share, seen(track).rate) == (0.25, 7.0)
    assert seen(track).seconds_left == pytest.approx(300 / 7)


def test_then_it_is_that_of_the_last_seconds(track: Track, clock: Clock) -> None:
    for second in range(100):
        clock.now = float(second)
        # Ten a second, then fifty.
        track.running(status(10 * min(second, 50) + 50 * max(second - 50, 0)), left=500)
    assert seen(track).rate == pytest.approx(50)
    assert seen(track).seconds_left == pytest.approx(10)


def test_another_sweep_begins_anew(track: Track, clock: Clock) -> None:
    track.running(status(1000), left=0)
    clock.now = 10.0
    track.running(status(5, started_at=BEGAN.replace(hour=1)), left=95)
    assert (seen(track).share, seen(track).rate) == (0.05, 7.0)


def test_what_is_over_is_whole_and_forgotten_after_a_while(track: Track, clock: Clock) -> None:
    track.running(status(60), left=40)
    track.over()
    assert (seen(track).share, seen(track).running, seen(track).done, seen(track).left) == (1.0, False, 100, 0)
    clock.now = SHOWN_SECONDS / 2
    track.over()
    assert not track.forgotten
    clock.now = SHOWN_SECONDS + 1
    assert track.forgotten


def test_nothing_was_seen() -> None:
    assert Sweeps().views == []
    assert Track(Clock()).forgotten
