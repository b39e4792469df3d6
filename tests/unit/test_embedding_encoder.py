import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from embedding import Embedder, Encoder, Vectors
from embedding import encoder as encoder_module
from embedding.cache import CACHE_BYTES, VectorCache
from embedding.stub import POISON, StubEmbedder
from evervec.errors import BadItemError, DimensionError, EvervecError, ModelUnavailableError
from evervec.model import ModelSpec
from evervec.settings import Settings
from workflows.sweep import LANES, LARGEST_BATCH

SPEC = ModelSpec("fake", "", 4, "")
SETTINGS = Settings()


class FakeEmbedder:
    """Waits at its gate before each step, and keeps what the steps held."""

    def __init__(self, *, gated: bool = False) -> None:
        self.dimension = 4
        self.truncated = self.tokens = 0
        self.steps: list[list[str]] = []
        self.threads: set[int] = set()
        self.gate = threading.Semaphore(0 if gated else 1_000_000)
        self.entered = threading.Semaphore(0)
        self.stub = StubEmbedder(4)
        self.replies: dict[str, float | Exception] = {}
        self.refused: dict[str, str] = {}
        self.broken = False

    def refusal(self, text: str) -> str | None:
        return self.refused.get(text)

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        self.steps.append(list(texts))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.acquire(timeout=20)
        if self.broken:
            raise RuntimeError("a device that is gone")
        vectors = self.stub.encode(texts, prompt)
        for number, text in enumerate(texts):
            reply = self.replies.get(text)
            if isinstance(reply, Exception):
                raise reply
            if reply is not None:
                vectors[number] = reply
        return vectors

    async def at_gate(self) -> None:
        """Wait until a step stands at the gate."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)


def loading(embedder: Embedder) -> Callable[[ModelSpec, Settings], Embedder]:
    return lambda _model, _settings: embedder


@asynccontextmanager
async def at_work(fake: FakeEmbedder) -> AsyncIterator[tuple[Encoder, "asyncio.Task[Vectors]"]]:
    """An encoder whose thread stands at the gate with a text `first`."""
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        first = asyncio.create_task(encoder.embed(SPEC, ["first"]))
        await fake.at_gate()
        try:
            yield encoder, first
        finally:
            fake.gate.release(1_000_000)


async def started(*tasks: "asyncio.Task[Vectors]") -> None:
    """Let the tasks run up to where they wait."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in tasks)


def expected(*texts: str) -> Vectors:
    return StubEmbedder(4).encode(texts, "")


@hypothesis_settings(max_examples=50, deadline=None)
@given(requests=st.lists(st.tuples(st.booleans(), st.lists(st.text(max_size=30), max_size=12)), max_size=8))
def test_each_request_gets_its_vectors_in_its_order(requests: list[tuple[bool, list[str]]]) -> None:
    fake = FakeEmbedder()

    async def run() -> list[Vectors]:
        async with Encoder(SETTINGS, loading(fake)) as encoder:
            return await asyncio.gather(*(encoder.embed(SPEC, texts, live=live) for live, texts in requests))

    # Hypothesis tries strings of the code under test, poison among them.
    readable = [
        (live, [text.encode(errors="ignore").decode().replace(POISON, "") for text in texts])
        for live, texts in requests
    ]
    requests = readable
    for (_, texts), vectors in zip(requests, asyncio.run(run()), strict=True):
        assert vectors.shape == (len(texts), 4)
        assert vectors.dtype == np.float32
        if texts:
            np.testing.assert_array_equal(vectors, expected(*texts))
    assert all(len(step) == len(set(step)) for step in fake.steps)
    assert all(step == sorted(step, key=len) for step in fake.steps)
    assert len(fake.threads) <= 1


async def test_requests_that_wait_together_become_one_step_and_equal_texts_are_embedded_once() -> None:
    fake = FakeEmbedder(gated=True)
    async with at_work(fake) as (encoder, first):
        waiting = [asyncio.create_task(encoder.embed(SPEC, texts)) for texts in (["b", "aa"], ["b"], ["ccc", "b"])]
        await started(*waiting)
        fake.gate.release(2)
        results = await asyncio.gather(first, *waiting)
    assert fake.steps == [["first"], ["b", "aa", "ccc"]]
    np.testing.assert_array_equal(results[1], expected("b", "aa"))
    np.testing.assert_array_equal(results[3], expected("ccc", "b"))


async def test_what_was_embedded_lately_is_not_embedded_again() -> None:
    fake = FakeEmbedder()
    fake.replies = {"bad": 0.0}
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        first = await encoder.embed(SPEC, ["a", "b"])
        again = await encoder.embed(SPEC, ["c", "b", "a"], live=False)
        for _ in range(2):
            with pytest.raises(BadItemError):
                await encoder.embed(SPEC, ["bad", "a"])
        await encoder.embed(dataclasses.replace(SPEC, prompt="query: "), ["a"])
    assert fake.steps == [["a", "b"], ["c"], ["bad"], ["bad"], ["a"]]
    np.testing.assert_array_equal(again, np.stack([expected("c")[0], first[1], first[0]]))


async def test_a_text_that_two_waiting_requests_hold_is_embedded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "STEP_SIZE_MOST", encoder_module.STEP_SIZE_LEAST)
    fake = FakeEmbedder()
    texts = [f"{number:04}" for number in range(500)]
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        both = await asyncio.gather(*(encoder.embed(SPEC, texts, live=live) for live in (False, True)))
    assert sorted(text for step in fake.steps for text in step) == texts
    for vectors in both:
        np.testing.assert_array_equal(vectors, expected(*texts))


def test_the_cache_keeps_what_came_last_within_its_bytes() -> None:
    cache = VectorCache(size=4 * 1000)
    rows = {bytes([number]): np.full(100 + 10 * (number % 3), number, np.float32) for number in range(40)}
    for count, (key, row) in enumerate(rows.items(), 1):
        cache.put(key, row)
        known = {key: kept for key in rows if (kept := cache.get(key)) is not None}
        assert [*known] == [*rows][count - len(known) : count]
        assert len(known) >= min(count, 7)
        for known_key, kept in known.items():
            np.testing.assert_array_equal(kept, rows[known_key])
    cache.put(b"larger", np.zeros(1001, np.float32))
    assert cache.get(b"larger") is None


def test_what_the_cache_has_given_stays_what_it_was() -> None:
    cache = VectorCache(size=4 * 4)
    cache.put(b"a", np.ones(4, np.float32))
    given = cache.get(b"a")
    cache.put(b"b", np.zeros(4, np.float32))
    assert given is not None
    np.testing.assert_array_equal(given, np.ones(4, np.float32))


async def test_other_prompts_are_other_steps_of_the_same_loaded_model() -> None:
    loads: list[ModelSpec] = []

    def load(model: ModelSpec, _settings: Settings) -> Embedder:
        loads.append(model)
        return StubEmbedder(4)

    async with Encoder(SETTINGS, load) as encoder:
        plain, prompted = await asyncio.gather(
            encoder.embed(SPEC, ["a"]), encoder.embed(ModelSpec("fake", "", 4, "query: "), ["a"])
        )
        assert encoder.loaded == ("fake",)
    assert len(loads) == 1
    np.testing.assert_array_equal(plain, expected("a"))
    np.testing.assert_array_equal(prompted, expected("query: a"))


async def test_live_requests_go_before_bulk_ones_and_between_their_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "STEP_SIZE_MOST", encoder_module.STEP_SIZE_LEAST)
    fake = FakeEmbedder(gated=True)
    size = encoder_module.STEP_SIZE_LEAST // 20
    texts = [f"{number:04}" for number in range(3 * size)]
    async with at_work(fake) as (encoder, _):
        bulk = asyncio.create_task(encoder.embed(SPEC, texts, live=False))
        live = asyncio.create_task(encoder.embed(SPEC, ["live 1"]))
        await started(bulk, live)
        fake.gate.release(2)
        await live
        await fake.at_gate()
        await fake.at_gate()
        late = asyncio.create_task(encoder.embed(SPEC, ["live 2"]))
        await started(bulk, late)
        fake.gate.release(2)
        await late
        assert not bulk.done()
        fake.gate.release(1_000_000)
        np.testing.assert_array_equal(await bulk, expected(*texts))
    assert fake.steps[1] == ["live 1"]
    assert fake.steps[3] == ["live 2"]
    assert [text for step in fake.steps[2:3] + fake.steps[4:] for text in step] == texts
    assert max(map(len, fake.steps)) <= size


async def test_a_step_is_bounded_by_the_length_of_its_texts_too() -> None:
    fake = FakeEmbedder()
    long = ["x" * (1_000 + number) for number in range(40)]
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        await encoder.embed(SPEC, long)
        await encoder.embed(SPEC, ["y" * 10_000_000])
    assert len(fake.steps[0]) < 5
    assert len(fake.steps[-1]) == 1


async def test_steps_grow_with_a_quick_model_and_shrink_with_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeEmbedder()
    texts = [f"{number:04}" + "x" * 500 for number in range(500)]
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        await encoder.embed(SPEC, texts)
        grown = len(fake.steps[-2])
        monkeypatch.setattr(encoder_module, "STEP_SECONDS", 0.0)
        await encoder.embed(SPEC, [f"{text}y" for text in texts])
        shrunk = len(fake.steps[-2])
    assert grown > 4 * len(fake.steps[0])
    assert grown > 4 * shrunk


async def test_a_poisoned_text_fails_its_own_request_only() -> None:
    fake = FakeEmbedder(gated=True)
    async with at_work(fake) as (encoder, first):
        poisoned = asyncio.create_task(encoder.embed(SPEC, ["good", "evervec-poison and a secret"]))
        others = [asyncio.create_task(encoder.embed(SPEC, [text])) for text in ("a", "b")]
        await started(poisoned, *others)
        fake.gate.release(1_000_000)
        await first
        with pytest.raises(BadItemError) as caught:
            await poisoned
        assert "secret" not in str(caught.value)
        np.testing.assert_array_equal(await others[0], expected("a"))
        np.testing.assert_array_equal(await others[1], expected("b"))
        np.testing.assert_array_equal(await encoder.embed(SPEC, ["good"]), expected("good"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
async def test_a_vector_that_is_no_direction_fails_its_own_request_only(value: float) -> None:
    fake = FakeEmbedder(gated=True)
    fake.replies = {"bad": value}
    async with at_work(fake) as (encoder, _):
        bad = asyncio.create_task(encoder.embed(SPEC, ["fine", "bad"]))
        good = asyncio.create_task(encoder.embed(SPEC, ["good"]))
        await started(bad, good)
        fake.gate.release(1_000_000)
        np.testing.assert_array_equal(await good, expected("good"))
        with pytest.raises(BadItemError, match="not finite"):
            await bad


async def test_each_bad_text_is_told_apart_in_one_step() -> None:
    fake = FakeEmbedder()
    fake.replies = {"no direction": float("nan")}
    fake.refused = {"refused": "too odd"}
    texts = ["good", "refused", "\ud800", "no direction", "refused", "fine"]
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        good, refused, half, no_direction, again, fine = await encoder.embed_each(SPEC, texts, live=False)
    assert [sorted(step) for step in fake.steps] == [["fine", "good", "no direction"]]
    np.testing.assert_array_equal([good, fine], expected("good", "fine"))
    assert [str(error) for error in (refused, again)] == ["too odd", "too odd"]
    assert "half a surrogate pair" in str(half)
    assert "not finite" in str(no_direction)


async def test_a_model_that_fails_on_every_text_blames_none_and_is_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "RELOAD_SECONDS", 0)
    broken, whole = FakeEmbedder(), FakeEmbedder()
    broken.broken = True
    models = [broken, whole]
    async with Encoder(SETTINGS, lambda _model, _settings: models.pop(0)) as encoder:
        with pytest.raises(ModelUnavailableError, match=r"fails on every text \(RuntimeError\)"):
            await encoder.embed(SPEC, ["a", "b"])
        while models:
            await asyncio.gather(encoder.embed(SPEC, ["a"]), return_exceptions=True)
        np.testing.assert_array_equal(await encoder.embed(SPEC, ["a"]), expected("a"))
    assert broken.steps == [["a", "b"], [encoder_module.PLAIN_TEXT]]


async def test_the_thread_outlives_every_error() -> None:
    fake = FakeEmbedder()
    fake.replies = {"memory": MemoryError(), "bug": RuntimeError("a bug")}
    async with Encoder(SETTINGS, loading(fake)) as encoder:
        with pytest.raises(MemoryError):
            await encoder.embed(SPEC, ["memory"])
        with pytest.raises(RuntimeError, match="a bug"):
            await encoder.embed(SPEC, ["bug"])
        with pytest.raises(BadItemError, match="surrogate"):
            await encoder.embed(SPEC, ["\ud800"])
        np.testing.assert_array_equal(await encoder.embed(SPEC, ["a"]), expected("a"))
    assert len(fake.threads) == 1


async def test_an_array_of_another_shape_is_an_error() -> None:
    class Short(FakeEmbedder):
        def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
            return super().encode(texts, prompt)[:-1]

    async with Encoder(SETTINGS, loading(Short())) as encoder:
        with pytest.raises(EvervecError, match="shape"):
            await encoder.embed(SPEC, ["a", "b"])


async def test_another_dimension_is_said_and_harms_nobody_else() -> None:
    async with Encoder(SETTINGS, loading(FakeEmbedder())) as encoder:
        wrong, right = await asyncio.gather(
            encoder.embed(ModelSpec("fake", "", 768, ""), ["a"]), encoder.embed(SPEC, ["a"]), return_exceptions=True
        )
    assert isinstance(wrong, DimensionError)
    assert str(wrong) == (
        "the model 'fake' gives 4 dimensions, the source's column has 768: `evervec watch … --dimension 4`"
    )
    np.testing.assert_array_equal(right, expected("a"))


async def test_a_cancelled_request_is_not_embedded() -> None:
    fake = FakeEmbedder(gated=True)
    async with at_work(fake) as (encoder, first):
        cancelled = asyncio.create_task(encoder.embed(SPEC, ["cancelled"]))
        kept = asyncio.create_task(encoder.embed(SPEC, ["kept"]))
        await started(cancelled, kept)
        cancelled.cancel()
        first.cancel()
        await asyncio.wait([cancelled, first])
        fake.gate.release(1_000_000)
        await kept
    assert fake.steps == [["first"], ["kept"]]


async def test_closing_fails_what_waits() -> None:
    before = {*threading.enumerate()}  # an encoder of another test may have left its thread to itself
    fake = FakeEmbedder(gated=True)
    async with at_work(fake) as (encoder, first):
        waiting = asyncio.create_task(encoder.embed(SPEC, ["a"], live=False))
        await started(waiting)
        fake.gate.release(1_000_000)
        await encoder.close()
        results = await asyncio.gather(first, waiting, return_exceptions=True)
        assert [type(result) for result in results] == [EvervecError, EvervecError]
        with pytest.raises(EvervecError, match="closed"):
            await encoder.embed(SPEC, ["late"])
    assert not [thread for thread in {*threading.enumerate()} - before if thread.name == "evervec-encoder"]


async def test_a_load_that_hangs_does_not_keep_the_encoder_from_closing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "CLOSE_SECONDS", 0.1)
    begun, released = threading.Event(), threading.Event()

    def load(_model: ModelSpec, _settings: Settings) -> Embedder:
        begun.set()
        released.wait(20)
        return FakeEmbedder()

    async with Encoder(SETTINGS, load) as encoder:
        waiting = asyncio.create_task(encoder.embed(SPEC, ["a"]))
        assert await asyncio.to_thread(begun.wait, 20)
    with pytest.raises(EvervecError, match="closed"):
        await waiting
    released.set()


class FailsOnce:
    """A loader whose first attempt fails."""

    def __init__(self) -> None:
        self.attempts = 0

    def __call__(self, _model: ModelSpec, _settings: Settings) -> Embedder:
        self.attempts += 1
        if self.attempts == 1:
            raise ModelUnavailableError("install it")
        return FakeEmbedder()


async def test_a_failed_load_is_told_to_all_who_wait_and_to_those_who_come_soon_after() -> None:
    load = FailsOnce()
    async with Encoder(SETTINGS, load) as encoder:
        requests = [encoder.embed(SPEC, [str(number)], live=number % 2 == 0) for number in range(1000)]
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert {(type(result), str(result)) for result in results} == {(ModelUnavailableError, "install it")}
        with pytest.raises(ModelUnavailableError, match="install it"):
            await encoder.embed(SPEC, ["soon after"])
    assert load.attempts == 1


async def test_a_failed_load_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder_module, "RELOAD_SECONDS", 0)
    load = FailsOnce()
    async with Encoder(SETTINGS, load) as encoder:
        while load.attempts < 2:
            (result,) = await asyncio.gather(encoder.embed(SPEC, ["a"]), return_exceptions=True)
        assert isinstance(result, np.ndarray)


async def test_a_model_that_is_unavailable_does_not_hold_up_another() -> None:
    def load(model: ModelSpec, _settings: Settings) -> Embedder:
        if model.name == "missing":
            raise RuntimeError("no such model")
        return FakeEmbedder()

    async with Encoder(SETTINGS, load) as encoder:
        missing, present = await asyncio.gather(
            encoder.embed(ModelSpec("missing", "", 4, ""), ["a"]), encoder.embed(SPEC, ["a"]), return_exceptions=True
        )
    assert isinstance(missing, ModelUnavailableError)
    np.testing.assert_array_equal(present, expected("a"))


def test_the_cache_holds_all_that_a_sweep_may_have_to_do_again() -> None:
    assert LANES * LARGEST_BATCH * 768 * np.dtype(np.float32).itemsize <= CACHE_BYTES
