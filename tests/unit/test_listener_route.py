import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from types import SimpleNamespace

import pytest
import structlog
from temporalio.service import RPCError, RPCStatusCode

from db.outbox import OutboxItem
from evervec.errors import DatabaseError, ServiceUnreachableError
from evervec.settings import Settings
from listener import lookout as lookout_module
from listener import route, sent, sweeps, vain
from listener.backoff import Backoff
from listener.debounce import Key
from listener.lookout import Lookout
from listener.route import Router
from listener.sent import Sent


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Outbox:
    """An outbox in memory."""

    def __init__(self, *items: OutboxItem) -> None:
        self.items = {Key(item.source, item.item_key): item for item in items}
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.searched = 0
        self.looked_up = 0

    def add(self, *items: OutboxItem) -> None:
        self.items |= {Key(item.source, item.item_key): item for item in items}

    async def find(self, keys: Sequence[tuple[str, str]]) -> list[OutboxItem]:
        if keys:
            self.searched += 1
            await self.gate.wait()
        if self.error:
            error, self.error = self.error, None
            raise error
        self.looked_up += len(keys)
        return [self.items[Key(*key)] for key in keys if Key(*key) in self.items]

    async def waiting(self, limit: int) -> list[OutboxItem]:
        by_source = groupby(sorted(self.items.values()), key=lambda item: item.source)
        return [item for _source, items in by_source for item in list(items)[-limit:]]


class Temporal:
    """Takes signals; refuses them while `refusal` is set."""

    def __init__(self) -> None:
        self.signals: list[OutboxItem] = []
        self.sweeps: list[str] = []
        self.open = set[str]()
        self.questions = 0
        self.answering = asyncio.Event()
        self.answering.set()
        self.refusal: Exception | None = None
        self.asked = 0
        self.most_at_once = 0
        self.busy = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def fits(self, item: OutboxItem) -> bool:
        return len(item.item_key) < 100

    async def signal_item(self, item: OutboxItem) -> None:
        async with self._call():
            self.signals.append(item)

    async def signal_sweep(self, source: str) -> None:
        async with self._call():
            self.sweeps.append(source)
            self.open.add(source)

    async def sweep_is_open(self, source: str) -> bool:
        self.questions += 1
        await self.answering.wait()
        if self.refusal:
            raise self.refusal
        return source in self.open

    @asynccontextmanager
    async def _call(self) -> AsyncIterator[None]:
        self.asked += 1
        self.busy += 1
        self.most_at_once = max(self.most_at_once, self.busy)
        try:
            await self.gate.wait()
            if self.refusal:
                raise self.refusal
            yield
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
    return Router(prompt, temporal, clock)


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
    lookout = Lookout(router, asyncio.Event(), clock)
    async with running(router, outbox):
        router.changed(Key("items", "1"), "h")
        await until(lambda: len(temporal.signals) == 1)
        router.changed(Key("items", "1"), "h")
        await lookout.look(outbox)
        await idle()
        assert len(temporal.signals) == 1

        outbox.add(item("1", version=2))
        await lookout.look(outbox)
        await until(lambda: len(temporal.signals) == 2)

        clock.now += sent.FIRST_SECONDS + 1
        await lookout.look(outbox)
        await until(lambda: len(temporal.signals) == 3)
    assert temporal.sweeps == []


async def test_what_is_found_while_it_is_in_hand_does_not_wait_once_more(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox(item("1"))
    outbox.gate.clear()
    async with running(router, outbox):
        router.changed(Key("items", "1"), "h")
        await until(lambda: outbox.searched == 1)
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        assert router.waiting == 0
        outbox.gate.set()
        await until(lambda: len(temporal.signals) == 1)


async def test_what_was_signalled_while_temporal_was_asked_for_the_sweep_does_not_wait_once_more(
    temporal: Temporal, clock: Clock
) -> None:
    router = Router(Settings(debounce_ms=600, debounce_max_ms=1200), temporal, clock)
    outbox = Outbox(item("1"))
    temporal.answering.clear()
    async with running(router, outbox):
        looking = asyncio.create_task(Lookout(router, asyncio.Event(), clock).look(outbox))
        await until(lambda: temporal.questions == 1)
        router.changed(Key("items", "1"), "h")
        clock.now += 0.6
        router.changed(Key("items", "2"), "h")  # the clock is of this test: have the router look at it
        await until(lambda: len(temporal.signals) == 1)
        router.gone(Key("items", "2"))
        temporal.answering.set()
        await looking
        assert router.waiting == 0


async def test_a_look_at_the_outbox_takes_no_longer_for_temporals_answer(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    """A look is followed by a rest of three times its time: a sweep that is open would be forgotten meanwhile."""
    temporal.answering.clear()
    looking = asyncio.create_task(Lookout(router, asyncio.Event(), clock).look(Outbox(item("1"))))
    await until(lambda: temporal.questions == 1)
    clock.now += 3
    temporal.answering.set()
    assert await looking == 0


async def test_a_few_items_that_are_found_go_live(router: Router, temporal: Temporal, clock: Clock) -> None:
    outbox = Outbox(*items(4), *items(4, "other"))
    async with running(router, outbox):
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: len(temporal.signals) == 8)
    assert set(temporal.signals) == set(outbox.items.values())
    assert temporal.sweeps == []


async def test_many_items_that_are_found_are_the_sweeps(router: Router, temporal: Temporal, clock: Clock) -> None:
    outbox = Outbox(*items(1000), *items(5, "other"), item("1", source="few"))
    async with running(router, outbox):
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: router.swept == 2 and router.signalled == 1)
    assert sorted(temporal.sweeps) == ["items", "other"]
    assert temporal.signals == [item("1", source="few")]


async def test_of_a_burst_that_is_heard_the_first_go_live_and_the_sweep_takes_the_rest(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    for number in range(10):
        router.changed(Key("items", str(number)), "h")
    router.changed(Key("other", "1"), "h")
    assert router.waiting == 4 + 1
    outbox = Outbox(*(item(str(number)) for number in range(10)), item("1", source="other"))
    async with running(router, outbox):
        await until(lambda: len(temporal.signals) == 5)
        router.changed(Key("items", "9"), "h")
        assert router.waiting == 0, "as many as the threshold are under way already"
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: temporal.sweeps == ["items"])
    assert len(temporal.signals) == 5


async def test_while_a_sweep_is_open_what_is_heard_goes_live_and_what_is_found_is_left_to_it(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox(*items(1000))
    lookout = Lookout(router, asyncio.Event(), clock)
    async with running(router, outbox):
        await lookout.look(outbox)
        await until(lambda: router.swept == 1)
        router.changed(Key("items", "000900"), "h")
        await until(lambda: temporal.signals == [item("000900")])

        # A second later nothing is new, then something is; and few items left make no difference.
        clock.now += sweeps.PAUSE_SECONDS
        await lookout.look(outbox)
        await idle()
        assert router.swept == 1
        outbox.items = {Key("items", "late"): item("late", version=2)}
        await lookout.look(outbox)
        await lookout.look(outbox)
        await until(lambda: router.swept == 2)
        outbox.add(item("later", version=3))
        await lookout.look(outbox)
        await idle()
        assert router.swept == 2, "not twice within a second"

        # It has ended, in whatever way: what it left behind is few.
        temporal.open.clear()
        clock.now += sweeps.PAUSE_SECONDS
        await lookout.look(outbox)
        await until(lambda: len(temporal.signals) == 3)
    assert router.swept == 2


async def test_a_sweep_that_was_ended_with_work_left_is_started_again(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox(*items(1000))
    lookout = Lookout(router, asyncio.Event(), clock)
    async with running(router, outbox):
        await lookout.look(outbox)
        await until(lambda: router.swept == 1)
        temporal.open.clear()
        clock.now += sweeps.PAUSE_SECONDS
        await lookout.look(outbox)
        await until(lambda: router.swept == 2)


async def test_what_nobody_rang_for_goes_live_while_there_is_room(router: Router, temporal: Temporal) -> None:
    long = item("x" * 100)
    outbox = Outbox(*items(6), long)
    async with running(router, outbox):
        router.changed(Key("items", "000000"), "h")
        await until(lambda: bool(temporal.signals))
        for _ in range(2):
            router.unheard([*items(6), long], 1.0)
            await until(lambda: len(temporal.signals) >= 4)
            await idle()
        assert sorted(temporal.signals) == items(4)
    assert temporal.sweeps == []


async def test_temporal_is_asked_for_a_sweep_once_a_second_and_only_while_items_are_found(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    temporal.open.add("items")
    outbox = Outbox()
    lookout = Lookout(router, asyncio.Event(), clock)
    async with running(router, outbox):
        await lookout.look(outbox)
        assert temporal.questions == 0
        outbox.add(item("1"))
        for _ in range(3):
            await lookout.look(outbox)
        assert temporal.questions == 1
        await until(lambda: router.swept == 1)
        for _ in range(3):
            await lookout.look(outbox)
        clock.now += sweeps.PAUSE_SECONDS
        for _ in range(3):
            await lookout.look(outbox)
        await idle()
        assert (temporal.questions, router.swept, temporal.signals) == (2, 1, [])


async def test_what_is_heard_is_of_use_when_it_goes_live(router: Router, temporal: Temporal) -> None:
    assert [router.changed(Key("items", str(number)), "h") for number in range(6)] == [True] * 4 + [False] * 2
    assert not router.changed(Key("items", "0"), "newer"), "it waits already"
    assert router.gone(Key("items", "0"))
    assert not router.gone(Key("items", "0"))
    outbox = Outbox(*(item(str(number)) for number in range(6)))
    async with running(router, outbox):
        await until(lambda: len(temporal.signals) == 3)
        assert router.changed(Key("items", "1"), "even newer"), "it was signalled, and has changed again"


async def test_items_of_a_source_that_is_heard_of_in_vain_are_not_looked_up_one_by_one(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    outbox = Outbox()

    async def hear(count: int) -> int:
        before = outbox.looked_up
        for number in range(count):
            router.changed(Key("items", f"{number}"), "h")
            await until(lambda: router.waiting == 0)
            await idle()
        return outbox.looked_up - before

    async with running(router, outbox):
        assert await hear(100) == vain.ENOUGH
        clock.now += vain.SECONDS
        assert await hear(100) == 1
        assert router.changed(Key("other", "1"), "h")
        await idle()

        # It is resumed: what the next look finds goes live, and so does what is heard from then on.
        outbox.add(item("1"))
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        outbox.add(item("2"))
        assert router.changed(Key("items", "2"), "h")
        await until(lambda: temporal.signals == [item("1"), item("2")])


def test_memory_of_what_was_in_vain_is_bounded(clock: Clock) -> None:
    memory = vain.Vain(clock)
    for number in range(3 * vain.CAPACITY):
        memory.looked_up([Key(f"forged {number}", "1")] * vain.ENOUGH, [])
        assert not memory.heeds(f"forged {number}")
        assert len(memory._counts) <= vain.CAPACITY


async def test_it_may_go_deaf_unless_what_would_have_gone_live_were_left_to_a_sweep(
    router: Router, temporal: Temporal, clock: Clock
) -> None:
    assert router.may_go_deaf()
    outbox = Outbox(*items(1000))
    lookout = Lookout(router, asyncio.Event(), clock)
    async with running(router, outbox):
        await lookout.look(outbox)
        assert not router.may_go_deaf(), "the sweep is about to be started"
        await until(lambda: router.swept == 1)
        assert not router.may_go_deaf(), "the live lane has room"
        for number in range(4):
            assert router.changed(Key("items", f"{number:06}"), "h")
        assert router.may_go_deaf(), "what is heard would be left to the sweep as well"
        await until(lambda: len(temporal.signals) == 4)
        outbox.items.pop(Key("items", "000000"))
        await lookout.look(outbox)
        assert not router.may_go_deaf()

        # The sweep ends.
        temporal.open.clear()
        outbox.items.clear()
        outbox.add(item("late", version=2))
        clock.now += sweeps.PAUSE_SECONDS
        await lookout.look(outbox)
        assert router.may_go_deaf()


async def test_of_a_sweep_that_nothing_was_heard_of_it_is_not_believed_that_it_is_open(
    router: Router, clock: Clock
) -> None:
    outbox = Outbox(*items(1000))
    async with running(router, outbox):
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: router.swept == 1)
        assert not router.may_go_deaf()
        clock.now += sweeps.KNOWN_SECONDS + 1
        assert router.may_go_deaf()


async def test_after_a_hush_it_looks_at_once_and_again_a_moment_later(
    router: Router, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    looks: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await asyncio.sleep(0)

    class Counting(Outbox):
        async def waiting(self, limit: int) -> list[OutboxItem]:
            looks.append(sum(slept))
            return await super().waiting(limit)

    # What it sleeps is counted, not what passes on a busy machine; and it does not look without being asked to.
    monkeypatch.setattr(lookout_module, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    monkeypatch.setattr(lookout_module, "IDLE_SECONDS", 3600)
    lookout = Lookout(router, asyncio.Event(), clock)
    task = asyncio.create_task(lookout.run(Counting()))
    await until(lambda: len(looks) == 1)
    lookout.look_at_once()
    await until(lambda: len(looks) >= 3)
    await idle()
    assert looks == [0, 0, lookout_module.SETTLE_SECONDS]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_calls_are_limited(router: Router, temporal: Temporal) -> None:
    temporal.gate.clear()
    outbox = Outbox(*(item(str(key), source=str(source)) for source in range(20) for key in range(4)))
    async with running(router, outbox):
        for key in outbox.items:
            router.changed(key, "h")
        await until(lambda: temporal.busy == route.CALLS)
        await idle()
        temporal.gate.set()
        await until(lambda: len(temporal.signals) == 80)
    assert temporal.most_at_once == route.CALLS


async def test_everything_is_signalled_when_temporal_is_back(
    router: Router, temporal: Temporal, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router, "_backoff", Backoff(first=0.001, longest=0.01))
    temporal.refusal = ServiceUnreachableError()
    outbox = Outbox(*items(20), *items(3, "few"))
    with structlog.testing.capture_logs() as logs:
        async with running(router, outbox):
            router.changed(Key("items", "000000"), "h")
            await Lookout(router, asyncio.Event(), clock).look(outbox)
            await until(lambda: router.away and temporal.asked > 50)
            temporal.refusal = RPCError("busy", RPCStatusCode.RESOURCE_EXHAUSTED, b"")
            await until(lambda: temporal.asked > 100)
            temporal.refusal = None
            await until(lambda: len(temporal.signals) == 4 and temporal.sweeps == ["items"])
    assert not router.away
    assert set(temporal.signals) == {item("000000"), *items(3, "few")}
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
        await Lookout(router, asyncio.Event(), clock).look(outbox)
        router.changed(Key("items", "good"), "h")
        await until(lambda: temporal.signals == [item("good")])
    assert not router.away


async def test_a_programming_error_is_not_silent(router: Router, temporal: Temporal) -> None:
    temporal.refusal = ZeroDivisionError()
    router.changed(Key("items", "1"), "h")
    with pytest.raises(ExceptionGroup) as raised:
        await router.run(Outbox(item("1")))
    assert raised.group_contains(ZeroDivisionError)


@pytest.mark.parametrize("heard", [True, False])
async def test_a_key_too_long_for_a_workflow_id_is_the_sweeps(
    router: Router, temporal: Temporal, clock: Clock, heard: bool
) -> None:
    long = item("k" * 2000)
    outbox = Outbox(long)
    async with running(router, outbox):
        if heard:
            router.changed(Key("items", long.item_key), "h")
        else:
            await Lookout(router, asyncio.Event(), clock).look(outbox)
        await until(lambda: temporal.sweeps == ["items"])
        router.changed(Key("items", "1"), "h")
        outbox.add(item("1"))
        await until(lambda: temporal.signals == [item("1")])


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


def test_backoff_doubles_with_jitter_and_starts_small_again() -> None:
    backoff = Backoff(first=1, longest=8)
    for longest in (1, 2, 4, 8, 8):
        assert longest / 2 <= backoff.next() <= longest
    backoff.reset()
    assert backoff.next() <= 1
