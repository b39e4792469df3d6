import pytest

from cli.pace import WINDOW_SECONDS, Pace


def looked(*looks: tuple[float, int]) -> Pace:
    pace = Pace()
    for now, waiting in looks:
        pace.look(now, waiting)
    return pace


@pytest.mark.parametrize(
    ("looks", "rate", "left"),
    [
        ([], None, None),
        ([(0, 10)], None, None),
        ([(0, 10), (2, 10)], None, None),
        ([(0, 10), (2, 20)], None, None),
        ([(5, 100), (15, 50)], 5.0, 10.0),
        ([(0, 100), (10, 50), (20, 0)], 5.0, 0.0),
        # More came meanwhile, but less is there than before.
        ([(0, 100), (10, 150), (20, 80)], 1.0, 80.0),
    ],
)
def test_rate_and_time_left(looks: list[tuple[float, int]], rate: float | None, left: float | None) -> None:
    pace = looked(*looks)
    assert (pace.rate, pace.seconds_left) == (rate, left)


def test_what_was_long_ago_does_not_count() -> None:
    slow_then_quick = [(float(second), 10_000 - second) for second in range(100)]
    slow_then_quick += [(100.0 + second, 9_900 - 10 * second) for second in range(int(WINDOW_SECONDS) + 2)]
    assert looked(*slow_then_quick).rate == pytest.approx(10)
