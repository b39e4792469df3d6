"""The charts of the last hour: what was done a second, and how long vectors took; geometry for the templates' SVG."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import NamedTuple

from dashboard.words import duration, number
from db.work import WorkMinute
from evervec.latency import LATENCY_BUCKETS

MINUTES = 60
WIDTH, HEIGHT = 420, 130
LEFT, RIGHT, TOP, BOTTOM = 52, 6, 8, 20
COLUMN = (WIDTH - LEFT - RIGHT) / MINUTES
LEAST_SECONDS = 5.0
"""Of a minute that has just begun."""
LEAST_LATENCY = 0.05
LATENCY_TICKS = (0.1, 1.0, 10.0, 60.0, 600.0, 3600.0)


class Frame(NamedTuple):
    """Where the charts lie within their SVG."""

    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    column: float = round(COLUMN * 0.9, 1)


class Tick(NamedTuple):
    """A line across a chart, and what it stands for."""

    y: float
    label: str


class Bar(NamedTuple):
    """A minute's column."""

    x: float
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class RateChart:
    """Items embedded a second, a column a minute."""

    bars: list[Bar]
    ticks: list[Tick]
    summary: str


@dataclass(frozen=True, slots=True)
class LatencyChart:
    """How long vectors took from the commit, on a logarithmic scale: `points` of polylines.

    Another polyline begins where nothing was done for a minute or more.
    """

    median: list[str]
    slow: list[str]
    """Of the slowest twentieth, the quickest."""
    ticks: list[Tick]
    summary: str


@dataclass(frozen=True, slots=True)
class SourceCharts:
    """One source's last hour."""

    source: str
    rate: RateChart
    latency: LatencyChart


def charts(history: Iterable[WorkMinute], now: datetime | None = None) -> list[SourceCharts]:
    """The charts of every source that something was done of."""
    moment = now or datetime.now(UTC)
    return [
        SourceCharts(source, _rate_chart(list(minutes), moment), _latency_chart(list(minutes), moment))
        for source, minutes in _by_source(history)
    ]


def quantile(latency: Sequence[int], share: float) -> float | None:
    """The seconds within which that share of the vectors came, read off their classes; None where there are none."""
    rest = share * sum(latency)
    if not rest:
        return None
    for bucket, count in enumerate(latency):
        if count and rest <= count:
            lower = LATENCY_BUCKETS[bucket - 1] if bucket else 0.0
            upper = LATENCY_BUCKETS[bucket] if bucket < len(LATENCY_BUCKETS) else lower
            return lower + (upper - lower) * rest / count
        rest -= count
    return LATENCY_BUCKETS[-1]


def _by_source(history: Iterable[WorkMinute]) -> Iterator[tuple[str, list[WorkMinute]]]:
    for source, minutes in groupby(sorted(history), key=lambda minute: minute.source):
        yield source, list(minutes)


def _rate_chart(minutes: Sequence[WorkMinute], now: datetime) -> RateChart:
    rates = {_column(one.minute, now): one.embedded / _length(one.minute, now) for one in minutes}
    top = _round_up(max(rates.values(), default=0.0))
    bars = []
    for column, rate in sorted(rates.items()):
        height = _space() * rate / top
        if 0 <= column < MINUTES and rate:
            bars.append(Bar(round(LEFT + column * COLUMN, 1), round(TOP + _space() - height, 1), round(height, 1)))
    ticks = [Tick(TOP + _space() * (1 - share), _plain(top * share)) for share in (0.0, 0.5, 1.0)]
    done, most = sum(one.embedded for one in minutes), max(rates.values(), default=0.0)
    return RateChart(bars, ticks, f"{number(done)} embedded in the last hour, at most {_plain(most)} a second")


def _latency_chart(minutes: Sequence[WorkMinute], now: datetime) -> LatencyChart:
    medians = {_column(one.minute, now): quantile(one.latency, 0.5) for one in minutes}
    slow = {_column(one.minute, now): quantile(one.latency, 0.95) for one in minutes}
    largest = max((value for value in slow.values() if value), default=1.0)
    ceiling = next((tick for tick in LATENCY_TICKS[1:] if tick >= largest), max(largest, LATENCY_TICKS[-1]))
    ticks = [Tick(_log_y(tick, ceiling), duration(tick)) for tick in LATENCY_TICKS if tick <= ceiling]
    every = [sum(counts) for counts in zip(*(one.latency for one in minutes), strict=True)] if minutes else []
    return LatencyChart(
        _lines(medians, ceiling),
        _lines(slow, ceiling),
        ticks,
        f"half within {duration(quantile(every, 0.5))}, 95% within {duration(quantile(every, 0.95))}",
    )


def _lines(values: dict[int, float | None], ceiling: float) -> list[str]:
    """A polyline for each stretch of minutes without a gap."""
    lines: list[list[str]] = []
    before = -2
    for column, value in sorted(values.items()):
        if value is None or not 0 <= column < MINUTES:
            continue
        if column != before + 1:
            lines.append([])
        x = LEFT + (column + 0.5) * COLUMN
        lines[-1].append(f"{x:.1f},{_log_y(value, ceiling):.1f}")
        before = column
    # A line of one point is not seen: give it a length.
    return [" ".join(line if len(line) > 1 else [line[0], _moved(line[0], COLUMN / 2)]) for line in lines]


def _moved(point: str, by: float) -> str:
    x, y = point.split(",")
    return f"{float(x) + by:.1f},{y}"


def _log_y(value: float, ceiling: float) -> float:
    share = math.log(max(value, LEAST_LATENCY) / LEAST_LATENCY) / math.log(ceiling / LEAST_LATENCY)
    return round(TOP + _space() * (1 - min(share, 1.0)), 1)


def _space() -> int:
    return HEIGHT - TOP - BOTTOM


def _column(minute: datetime, now: datetime) -> int:
    """0 for the minute an hour ago, MINUTES - 1 for the present one."""
    return MINUTES - 1 - round((now.replace(second=0, microsecond=0) - minute) / timedelta(minutes=1))


def _length(minute: datetime, now: datetime) -> float:
    """Seconds of a minute that are over."""
    return min(max((now - minute).total_seconds(), LEAST_SECONDS), 60.0)


def _round_up(value: float) -> float:
    """1, 2 or 5 times a power of ten."""
    if value <= 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999)


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == round(value) else f"{value:.2g}"  # noqa: PLR2004 - two digits
