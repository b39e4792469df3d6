import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
from temporalio.service import RPCError, RPCStatusCode

from db.outbox import OutboxItem
from evervec.errors import DatabaseError, ServiceUnreachableError
from evervec.settings import Settings
from listener import route, sent, window
from listener.backoff import Backoff
from listener.debounce import Key
from listener.lookout import PAGE, PAGES, Lookout
from listener.route import Router
from listener.sent import Sent
from listener.window import Window


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Outbox:
    """An outbox in memory: items in the order of their keys."""

    def __init__(self, *items: OutboxItem) -> None:
        self.items = {Key(item.source, item.item_key): item for item in items}
        self.reads = 0
        self.error: Exception | None = None

    def add(self, *items: OutboxItem) -> None:
        self.items |= {Key(item.source, item.item_key): item for item in items}

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        if self.error:
            error, self.error = self.error, None
            raise error
        return [self.items[Key(*key)] for key in keys if Key(*key) in self.items]

    async def read(self, after: tuple[str, str] | None, limit: int) -> list[OutboxItem]:
        self.reads += 1
        return [self.items[key] for key in sorted(self.items) if after is None or key > after][:limit]


class Temporal:
    """Takes signals; refuses them while `refusal` is set."""

    def __init__(self) -> None:
        self.signals: list[OutboxItem] = []
        self.refusal: Exception | None = None
        self.asked = 0
        self.most_at_once = 0
        self.busy = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, item: OutboxItem) -> None:
        self.asked += 1
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        try:
            await self.gate.wait()
            if self.refusal:
                raise self.refusal
            self.signals.append(item)
        finally:
            self.busy -= 1


def item(key: str, *, source: str = "items", version: int = 1, content_hash: str = "h") -> OutboxItem:
    return OutboxItem(source, key, content_hash, version)


def items(count: int, source: str = "items") -> list[OutboxItem]:
    return [item(f"{number:06}", source=source) for number in range(count)]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def temporal() -> Temporal:
    return Temporal()


@pytest.fixture
def router(temporal: Temporal, clock: Clock) -> Router:
    prompt = Settings(debounce_ms=0, debounce_max_ms=0, sweep_threshold=4)
    return Router(prompt, temporal, lambda item: len(item.item_key) < 100, clock)


@asynccontextmanager
async def running(router: Router, outbox: Outbox) -> AsyncIterator[None]:
    task = asyncio.create_task(router.run(outbox))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.001)


async def idle() -> None:
    """Let every task that can go on do so."""
    for _ in range(100):
        await asyncio.sleep(0)


async def test_an_item_that_was_heard_of_is_signalled_as_it_stands_in_the_outbox(
    router: Router, temporal: Temporal
) -> None:
    outbox = Outbox(item("1", version=7, content_hash="newer"))
    async with running(router, outbox):
        router.changed(Key("items", "1"), "older")
        await until(lambda: temporal.signals == [item("1", version=7, content_hash="newer")])
    assert router.under_way == router.signalled == 1


async def test_what_is_not_in_the_outbox_is_not_signalled(router: Router, temporal: Temporal) -> None:
    outbox = Outbox(item("real"))
    async with running(router, outbox):
        router.changed(Key("items", "forged"), "h")
        router.changed(Key("items", "real"), "h")
        await until(lambda: bool(temporal.signals))
    assert temporal.signals == [item("real")]


async def test_a_deleted_item_is_dropped(router: Router, temporal: Temporal) -> None:
    outbox = Outbox(item("1"), item("2"))
    router.changed(Key("items", "1"), "h")
    router.changed(Key("items", "2"), "h")
    router.gone(Key("items", "1"))
    async with running(router, outbox):
        await until(lambda: bool(temporal.signals))
        await idle()
    assert temporal.signals == [item("2")]


async def test_a_version_is_signalled_once_until_it_is_due_again(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox(item("1"))
    async with running(router, outbox):
        router.changed(Key("items", "1"), "h")
        await until(lambda: len(temporal.signals) == 1)
        router.changed(Key("items", "1"), "h")
        assert not router.seen(item("1"), clock())
        await idle()
        assert len(temporal.signals) == 1

        outbox.add(item("1", version=2))
        assert router.seen(item("1", version=2), clock())
        await until(lambda: len(temporal.signals) == 2)

        clock.now += sent.FIRST_SECONDS + 1
        assert router.seen(item("1", version=2), clock())
        await until(lambda: len(temporal.signals) == 3)


async def test_more_than_a_few_items_of_a_source_are_bulk_and_left_to_the_outbox(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    for number in range(10):
        router.changed(Key("items", str(number)), "h")
    router.changed(Key("other", "1"), "h")
    assert router.waiting == 4 + 1
    outbox = Outbox(*(item(str(number)) for number in range(10)), item("1", source="other"))
    async with running(router, outbox):
        await until(lambda: len(temporal.signals) == 5)
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: len(temporal.signals) == 11)
    assert set(temporal.signals) == set(outbox.items.values())


async def test_bulk_work_has_a_window_in_each_source_and_live_items_pass_it(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox(*items(1000), *items(10, "other"))
    lookout = Lookout(router, asyncio.Event(), clock)
    async with running(router, outbox):
        assert await lookout.look(outbox)
        await until(lambda: len(temporal.signals) == window.LEAST + 10)
        assert not await lookout.look(outbox)

        router.changed(Key("items", "000900"), "h")
        await until(lambda: temporal.signals[-1].item_key == "000900")

        for done in temporal.signals[:10]:
            del outbox.items[Key(done.source, done.item_key)]
        assert await lookout.look(outbox)
        await until(lambda: len(temporal.signals) == window.LEAST + 10 + 1 + 9)
    assert router.under_way == window.LEAST + 10


async def test_calls_are_limited_and_live_items_go_before_bulk(
    router: Router, temporal: Temporal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route, "BATCH", 4)
    temporal.gate.clear()
    monkeypatch.setattr(window, "LEAST", 100)
    outbox = Outbox(*items(100), item("live"))
    async with running(router, outbox):
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: temporal.busy == route.CALLS)
        router.changed(Key("items", "live"), "h")
        await idle()
        temporal.gate.set()
        await until(lambda: len(temporal.signals) == 101)
    assert temporal.most_at_once == route.CALLS
    place = temporal.signals.index(item("live"))
    assert place <= route.CALLS + 2 * 4


async def test_everything_is_signalled_when_temporal_is_back(
    router: Router, temporal: Temporal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_backoff", Backoff(first=0.001, longest=0.01))
    monkeypatch.setattr(window, "LEAST", 20)
    temporal.refusal = ServiceUnreachableError()
    outbox = Outbox(*items(20), item("live"))
    with structlog.testing.capture_logs() as logs:
        async with running(router, outbox):
            router.changed(Key("items", "live"), "h")
            await Lookout(router, asyncio.Event(), clock).look(outbox)
            await until(lambda: router.away and temporal.asked > 50)
            temporal.refusal = RPCError("busy", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
            await until(lambda: temporal.asked > 100)
            temporal.refusal = None
            await until(lambda: len(temporal.signals) == 21)
    assert not router.away
    assert set(temporal.signals) == set(outbox.items.values())
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]


async def test_a_call_that_is_refused_for_its_own_sake_holds_up_nobody(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox(item("bad"), item("good"))
    async with running(router, outbox):
        temporal.refusal = RPCError("no", RPCStatusCode.INVALID_ARGUMENT, b"")
        router.changed(Key("items", "bad"), "h")
        await until(lambda: temporal.asked == 1 and not temporal.busy)
        temporal.refusal = None
        assert not router.seen(item("bad"), clock())
        router.changed(Key("items", "good"), "h")
        await until(lambda: temporal.signals == [item("good")])
    assert not router.away


async def test_a_programming_error_is_not_silent(router: Router, temporal: Temporal) -> None:
    temporal.refusal = ZeroDivisionError()
    router.changed(Key("items", "1"), "h")
    with pytest.raises(ExceptionGroup) as raised:
        await router.run(Outbox(item("1")))
    assert raised.group_contains(ZeroDivisionError)


async def test_a_key_too_long_for_a_workflow_id_is_told_once_and_left_alone(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    long = item("k" * 2000)
    outbox = Outbox(long, item("1"))
    with structlog.testing.capture_logs() as logs:
        async with running(router, outbox):
            for _ in range(3):
                router.changed(Key("items", long.item_key), "h")
                router.seen(long, clock())
                await until(lambda: router.waiting == 0)
            clock.now += sent.LONGEST_SECONDS + 1
            assert router.seen(long, clock())
            router.changed(Key("items", "1"), "h")
            await until(lambda: temporal.signals == [item("1")])
    assert [(entry["log_level"], entry["source"]) for entry in logs] == [("warning", "items")]


@pytest.mark.parametrize("error", [DatabaseError("no such character"), UnicodeEncodeError("latin-1", "€", 0, 1, "")])
async def test_keys_that_the_database_refuses_are_dropped(router: Router, temporal: Temporal, error: Exception) -> None:
    outbox = Outbox(item("1"))
    outbox.error = error
    async with running(router, outbox):
        router.changed(Key("items", "forged"), "h")
        await until(lambda: outbox.error is None)
        router.changed(Key("items", "1"), "h")
        await until(lambda: temporal.signals == [item("1")])


async def test_a_lost_database_ends_the_run(router: Router) -> None:
    outbox = Outbox(item("1"))
    outbox.error = ServiceUnreachableError()
    router.changed(Key("items", "1"), "h")
    with pytest.raises(ExceptionGroup) as raised:
        await router.run(outbox)
    assert raised.group_contains(ServiceUnreachableError)


async def test_a_look_costs_the_same_however_long_the_outbox_is_and_all_get_their_turn(
    router: Router, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(*items(2 * PAGE * PAGES + 1))
    lookout = Lookout(router, asyncio.Event(), clock)
    seen: set[str] = set()

    def see(item: OutboxItem, _seen_at: float) -> bool:
        seen.add(item.item_key)
        return True

    monkeypatch.setattr(router, "seen", see)
    for _ in range(3):
        outbox.reads = 0
        await lookout.look(outbox)
        assert outbox.reads <= PAGES
    assert len(seen) == len(outbox.items)


def test_signals_are_repeated_ever_more_rarely(clock: Clock) -> None:
    memory = Sent(10, clock)
    pauses = []
    for tries in range(1, 9):
        assert memory.add(Key("items", "1"), 1) == tries
        start = clock.now
        while memory.rests(Key("items", "1"), 1):
            clock.now += 1
        pauses.append(clock.now - start)
    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600]
    assert memory.add(Key("items", "1"), 2) == 1


def test_what_was_signalled_in_vain_no_longer_holds_up_others(clock: Clock) -> None:
    memory = Sent(10, clock)
    key = Key("items", "1")
    counts = []
    for _ in range(4):
        memory.add(key, 1)
        counts.append(memory.under_way("items"))
    assert counts == [1, 1, 0, 0]
    memory.add(key, 2)
    assert memory.under_way("items") == 1
    memory.forget(key)
    assert (memory.under_way("items"), len(memory)) == (0, 0)


def test_memory_of_what_was_signalled_is_bounded(clock: Clock) -> None:
    memory = Sent(3, clock)
    for number in range(10):
        memory.add(Key("items", str(number)), 1)
        assert len(memory) == memory.under_way("items") <= 3
    assert Key("items", "9") in memory


def test_all_that_was_signalled_gets_its_turn_to_be_looked_for(clock: Clock) -> None:
    memory = Sent(100, clock)
    for number in range(10):
        memory.add(Key("items", str(number)), 1)
    seen = {key for _ in range(4) for key in memory.next_keys(3)}
    assert len(seen) == 10


@pytest.mark.parametrize("per_second", [2, 10, 50, 200, 1000])
@pytest.mark.parametrize("latency", [0.05, 0.5])
def test_the_window_keeps_workers_busy_and_the_queue_short(clock: Clock, per_second: int, latency: float) -> None:
    """A simulation: each item takes `latency` seconds and `per_second` can be done; completions are seen later."""
    size, step, seen_every = Window(clock), 1 / 1024, 0.25
    queue, done_unseen, finished = deque[float](), 0, 0
    credit = next_look = 0.0
    for _ in range(20 * 1024):
        clock.now += step
        credit = min(credit + per_second * step, 1 + per_second * step)
        while credit >= 1 and queue and queue[0] + latency <= clock.now:
            queue.popleft()
            credit -= 1
            done_unseen += 1
            finished += clock.now > 10
        if clock.now >= next_look:
            next_look += seen_every
            for _ in range(done_unseen):
                size.done("items")
            done_unseen = 0
            queue.extend([clock.now] * max(0, size.size("items") - len(queue)))
    assert finished / 10 >= 0.8 * min(per_second, window.MOST / (latency + seen_every))
    assert len(queue) <= max(window.LEAST, 1.5 * per_second)


def test_backoff_doubles_with_jitter_and_starts_small_again() -> None:
    backoff = Backoff(first=1, longest=8)
    for longest in (1, 2, 4, 8, 8):
        assert longest / 2 <= backoff.next() <= longest
    backoff.reset()
    assert backoff.next() <= 1
