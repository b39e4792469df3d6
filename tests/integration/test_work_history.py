"""What was done, minute by minute: told by workers, kept for a day, shown for an hour."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple, Self

import psycopg
import pytest
from structlog.testing import capture_logs

from activities import tally
from db.connection import open_pool
from db.sources import Sources
from db.work import WorkMinute
from evervec.latency import LATENCY_BUCKETS, LATENCY_COUNTS
from tests.integration.contract import Lab, connect, value
from tests.integration.pipeline import DESTINATIONS, WAIT_SECONDS, Site, new_table, until

RECORD = "SELECT evervec.record_work(%s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[])"
KEPT = "SELECT embedded, skipped, failed, latency FROM evervec.work WHERE source = %s ORDER BY minute"


def record(lab: Lab, sources: Sequence[str], latency: Sequence[int], *counts: int) -> None:
    embedded, skipped, failed = counts
    many = len(sources)
    lab.run(RECORD, [list(sources), [embedded] * many, [skipped] * many, [failed] * many, list(latency) * many])


def test_what_is_told_adds_up(lab: Lab) -> None:
    name = lab.watched().name
    lab.run("UPDATE evervec.work SET minute = minute - interval '1 min'")
    record(lab, [name], [1, 0, 2], 3, 4, 5)
    record(lab, [name], [0, 1, 1], 2, 0, 1)
    record(lab, [], [], 1, 1, 1)
    kept = lab.run(KEPT, [name])
    # The two may fall into two minutes.
    assert [sum(row[n] for row in kept) for n in range(3)] == [5, 4, 6]
    assert [sum(row[3][n] for row in kept) for n in range(3)] == [1, 1, 3]
    assert value(lab.connection, "SELECT bool_and(minute = date_trunc('minute', minute)) FROM evervec.work_history")


def test_old_rows_go_when_a_minute_begins_and_the_view_shows_an_hour(lab: Lab) -> None:
    name = lab.watched().name
    for age in ("10 minutes", "2 hours", "24 hours", "26 hours"):
        lab.run("INSERT INTO evervec.work SELECT %s, now() - %s::interval, 1, 0, 0, '{1}'", [name, age])
    record(lab, [name], [1], 1, 0, 0)
    assert len(lab.run(KEPT, [name])) == 4
    assert len(lab.run("SELECT minute FROM evervec.work_history WHERE source = %s", [name])) == 2


def test_only_sources_that_there_are_have_a_history(lab: Lab) -> None:
    source = lab.watched()
    record(lab, ["no such source", source.name], [1], 1, 0, 0)
    assert lab.run("SELECT source FROM evervec.work WHERE source = 'no such source'") == []
    lab.watch(prompt="another")
    assert len(lab.run(KEPT, [source.name])) == 1
    lab.run("SELECT evervec.unwatch(%s)", [source.name])
    assert lab.run(KEPT, [source.name]) == []


def test_a_source_that_is_being_altered_is_passed_over_without_a_wait(lab: Lab) -> None:
    source = lab.watched()
    with connect(lab.conninfo) as other, other.transaction(force_rollback=True):
        other.execute("DELETE FROM evervec.source WHERE name = %s", [source.name])
        record(lab, [source.name], [1], 1, 0, 0)
    assert lab.run(KEPT, [source.name]) == []


def test_counts_that_do_not_belong_together_are_refused(lab: Lab) -> None:
    name = lab.watched().name
    with pytest.raises(psycopg.errors.NotNullViolation):
        lab.run(RECORD, [[name], [1], [1], [], [1]])


def test_the_database_documents_the_classes_of_latency(lab: Lab) -> None:
    comment = value(
        lab.connection,
        "SELECT col_description('evervec.work'::regclass, attnum) FROM pg_attribute "
        "WHERE attrelid = 'evervec.work'::regclass AND attname = 'latency'",
    )
    assert ", ".join(f"{bound:g}" for bound in LATENCY_BUCKETS) in comment


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address, max_attempts=1) as site:
        yield site


async def history(site: Site, source: str | None = None) -> list[WorkMinute]:
    async with open_pool(site.conninfo, size=1, application_name="test") as pool:
        return await Sources(pool).work_history(source)


class Totals(NamedTuple):
    """Sums over all minutes. A step that runs twice counts twice, so there may be more than there is to do."""

    embedded: int
    skipped: int
    failed: int
    timed: int
    """Vectors whose latency is known."""

    @classmethod
    async def of(cls, site: Site, source: str | None = None) -> Self:
        rows = await history(site, source)
        return cls(
            sum(row.embedded for row in rows),
            sum(row.skipped for row in rows),
            sum(row.failed for row in rows),
            sum(sum(row.latency) for row in rows),
        )


@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.parametrize("threshold", [1, 64], ids=["sweep", "live"])
async def test_a_workers_work_is_in_the_history(
    site: Site, destination: str, threshold: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 0.1)
    table = await new_table(site, destination)

    async def reached(enough: Callable[[Totals], bool]) -> Totals:
        told: list[Totals] = []

        async def look() -> bool:
            told.append(await Totals.of(site, table.source))
            return enough(told[-1])

        await until(look)
        await table.settled()
        return told[-1]

    async with site.running(sweep_threshold=threshold):
        await table.settled()  # a first fill that comes after the rows tries those that failed once more
        await table.do("INSERT INTO {t} VALUES (1, 'drill'), (2, 'saw'), (3, 'evervec-poison')")
        first = await reached(lambda told: told.embedded >= 2 and told.failed == 1)
        assert first.timed == first.embedded
        # An edit and its undo, before anybody looks: nothing to embed.
        await table.do("UPDATE {t} SET name = 'an edit' WHERE id = 1; UPDATE {t} SET name = 'drill' WHERE id = 1")
        second = await reached(lambda told: told.skipped > first.skipped)
        assert (second.failed, second.timed) == (1, second.embedded)
    rows = await history(site, table.source)
    assert {len(row.latency) for row in rows} == {LATENCY_COUNTS}
    assert await history(site) == rows


async def test_latency_is_counted_from_the_first_enqueue(site: Site) -> None:
    table = await new_table(site, "column")
    await table.do("INSERT INTO {t} VALUES (1, 'drill')")
    await site.run("UPDATE evervec.outbox SET queued_at = queued_at - interval '20 minutes'")
    async with site.running():
        await table.fresh()
    rows = await history(site, table.source)  # more than one where a minute has begun meanwhile
    assert {LATENCY_BUCKETS[n] for row in rows for n, count in enumerate(row.latency) if count} == {1800}


async def test_what_was_done_last_is_told_when_a_worker_stops(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 3600.0)
    monkeypatch.setattr(tally, "CLOSE_SECONDS", WAIT_SECONDS)
    table = await new_table(site, "column")
    async with site.running():
        await table.fill(3)
        await table.fresh()
        assert await history(site) == []
    told = await Totals.of(site)
    assert told.embedded == told.timed >= 3


async def test_work_goes_on_where_it_cannot_be_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "FLUSH_SECONDS", 0.01)
    table = await new_table(site, "column")
    await site.run("DROP FUNCTION evervec.record_work")
    with capture_logs() as logs:
        async with site.running():
            for number in range(3):
                await table.fill(3) if not number else await table.do("UPDATE {t} SET name = %s || id", str(number))
                await table.fresh()
                await asyncio.sleep(0.05)
    assert len([line for line in logs if line["event"] == "what was done could not be recorded"]) == 1
