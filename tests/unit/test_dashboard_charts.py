"""The charts' geometry and the quantiles."""

from datetime import UTC, datetime, timedelta

import pytest

from dashboard.charts import HEIGHT, WIDTH, charts, quantile
from db.work import WorkMinute
from evervec.latency import LATENCY_BUCKETS, LATENCY_COUNTS, latency_bucket

NOW = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


def counts(*seconds: float) -> list[int]:
    latency = [0] * LATENCY_COUNTS
    for one in seconds:
        latency[latency_bucket(one)] += 1
    return latency


def minute(ago: int, embedded: int, *seconds: float, source: str = "items") -> WorkMinute:
    at = NOW.replace(second=0) - timedelta(minutes=ago)
    return WorkMinute(source, at, embedded, 0, 0, counts(*seconds))


def test_nothing_was_done() -> None:
    assert charts([], NOW) == []
    assert quantile(counts(), 0.5) is None


@pytest.mark.parametrize("share", [0.01, 0.5, 0.95, 1.0])
def test_a_quantile_lies_in_its_class(share: float) -> None:
    for bucket, upper in enumerate(LATENCY_BUCKETS):
        lower = LATENCY_BUCKETS[bucket - 1] if bucket else 0
        found = quantile(counts(upper, upper, upper), share)
        assert found is not None
        assert lower < found <= upper * 1.001


def test_quantiles_are_in_order() -> None:
    latency = counts(*[0.08] * 90, *[4.0] * 9, 100_000)
    assert quantile(latency, 0.5) == pytest.approx(0.05 + 0.05 * 50 / 90)
    assert quantile(latency, 0.95) == pytest.approx(3 + 2 * 5 / 9)
    assert quantile(latency, 1.0) == LATENCY_BUCKETS[-1]


def test_a_minute_is_a_column_and_the_present_one_counts_as_far_as_it_is() -> None:
    [one] = charts([minute(1, 120, 0.2), minute(0, 60, 0.2)], NOW)
    assert [bar.height for bar in one.rate.bars] == [one.rate.bars[0].height] * 2
    assert one.rate.bars[0].x < one.rate.bars[1].x
    assert [tick.label for tick in one.rate.ticks] == ["0", "1", "2"]
    assert "180 embedded" in one.rate.summary


def test_everything_stays_within_the_frame() -> None:
    [one] = charts([minute(n, n * 1000, 0.01 * 2**n, 1e6) for n in range(0, 75, 3)], NOW)
    for bar in one.rate.bars:
        assert 0 <= bar.x < WIDTH
        assert 0 <= bar.y <= bar.y + bar.height <= HEIGHT
    for line in (*one.latency.median, *one.latency.slow):
        for point in line.split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= WIDTH
            assert 0 <= y <= HEIGHT


def test_a_line_is_broken_where_nothing_was_done() -> None:
    [one] = charts([minute(n, 1, 0.2) for n in (9, 8, 7, 3, 2)], NOW)
    assert [len(line.split()) for line in one.latency.median] == [3, 2]
    [one] = charts([minute(5, 1, 0.2)], NOW)
    assert [len(line.split()) for line in one.latency.median] == [2]


def test_each_source_has_its_own() -> None:
    found = charts([minute(1, 1, 0.2, source="b"), minute(1, 1, 0.2, source="a"), minute(2, 1, 0.2, source="b")], NOW)
    assert [one.source for one in found] == ["a", "b"]
