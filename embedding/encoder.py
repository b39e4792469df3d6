"""The encoder: one queue and one thread for everything that a worker embeds.

Work is done in steps. A step takes waiting requests for one model together, live ones before bulk ones and never both,
and is kept short, so that a live request never waits behind much bulk work. A request's texts go shortest first: those
of a step are then of similar length, and little is computed on padding. A text that was embedded lately is not again.

A text that cannot be embedded harms only itself: what the model refuses is known before it sees the others, a vector
that is no direction is found among the others' afterwards.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from embedding.base import Embedder, Vectors
from embedding.cache import Key, Row, VectorCache, keys_of
from embedding.embedders import load_embedder
from embedding.thread import WorkThread
from evervec import metrics
from evervec.errors import BadItemError, DimensionError, EvervecError, ModelUnavailableError
from evervec.log import get_logger
from evervec.model import ModelSpec
from evervec.settings import Settings

STEP_SECONDS = 0.1
"""How long a step should take; its size follows the model's speed."""
STEP_SIZE_LEAST, STEP_SIZE_MOST = 2_000, 128_000
"""Bounds of a step's size, in characters that a model reads: below the first a large model is slower."""
RELOAD_SECONDS = 10.0
"""How long a model that cannot be loaded is not tried again."""
CLOSE_SECONDS = 5.0
"""How long `close` waits for a step or a load that is under way."""

NO_DIRECTION = "the model gives no usable vector: it is zero, or not finite"
NO_CHARACTER = "a text holds half a surrogate pair, which is no character"
PLAIN_TEXT = "evervec"
"""What any model embeds: one that fails on this as well is broken."""

Answer: TypeAlias = Row | BadItemError
"""A text's vector, or why it has none."""

logger = get_logger("evervec.embedding")


class Encoder:
    """Embeds texts for everybody in one event loop: `async with Encoder(settings) as encoder`."""

    def __init__(self, settings: Settings, load: Callable[[ModelSpec, Settings], Embedder] = load_embedder) -> None:
        self._settings = settings
        self._load = load
        self._models: dict[tuple[str, str], _Model] = {}
        self._failures: dict[tuple[str, str], _Failure] = {}
        self._refused: set[ModelSpec] = set()
        self._live: deque[_Request] = deque()
        self._bulk: deque[_Request] = deque()
        self._arrival = asyncio.Event()
        self._dispatcher: asyncio.Task[None] | None = None
        self._cache = VectorCache()

    async def __aenter__(self) -> Self:
        self._thread = WorkThread("evervec-encoder")
        self._dispatcher = asyncio.create_task(self._dispatch(), name="evervec-encoder")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the models that are loaded."""
        return tuple(name for name, _revision in self._models)

    @property
    def truncated(self) -> int:
        """How many texts were longer than their model reads, so far; they were cut off."""
        return sum(model.embedder.truncated for model in self._models.values())

    async def embed(self, model: ModelSpec, texts: Sequence[str], *, live: bool = True) -> Vectors:
        """Embed the texts: (len(texts), model.dimension), L2-normalised, in their order.

        It fails as a whole: like `embed_each`, and with a BadItemError if one of the texts cannot be embedded.
        """
        rows: list[Row] = []
        for answer in await self.embed_each(model, texts, live=live):
            if isinstance(answer, BadItemError):
                raise answer
            rows.append(answer)
        return np.stack(rows) if rows else np.empty((0, model.dimension), dtype=np.float32)

    async def embed_each(self, model: ModelSpec, texts: Sequence[str], *, live: bool = True) -> list[Answer]:
        """Embed the texts, each as far as it can be: an answer for each, in their order.

        ModelUnavailableError or DimensionError if none can; what else the model raises on some of them is passed on.
        """
        if self._dispatcher is None:
            raise EvervecError("the encoder is closed")
        keys = [_key(model, text) for text in texts]
        distinct = {key: text for key, text in zip(keys, texts, strict=True) if isinstance(key, Key)}
        answers: dict[Key, Answer] = {}
        if distinct:
            request = _Request(model, sorted(distinct.items(), key=_length), asyncio.get_running_loop().create_future())
            (self._live if live else self._bulk).append(request)
            self._arrival.set()
            answers = await request.result
        return [answers[key] if isinstance(key, Key) else key for key in keys]

    async def close(self) -> None:
        """Fail what waits, and end the thread after what it is at, or some seconds later."""
        if self._dispatcher is None:
            return
        dispatcher, self._dispatcher = self._dispatcher, None
        dispatcher.cancel()
        await asyncio.wait([dispatcher])
        _fail([*self._live, *self._bulk], EvervecError("the encoder was closed before this was embedded"))
        await self._thread.stop(CLOSE_SECONDS)

    async def _dispatch(self) -> None:
        while True:
            for lane in (self._live, self._bulk):
                while lane and lane[0].result.done():
                    lane.popleft()
            if self._live or self._bulk:
                await self._serve(self._live or self._bulk)
            else:
                self._arrival.clear()
                await self._arrival.wait()

    async def _serve(self, lane: "deque[_Request]") -> None:
        """Load the model of the lane's first request, or do a step with it."""
        spec = lane[0].model
        model = self._models.get((spec.name, spec.revision))
        if model is None:
            await self._load_model(spec)
        elif spec.dimension != model.embedder.dimension:
            self._refuse(lane[0], _dimension_error(spec, model.embedder.dimension))
        elif error := await _step(self._thread, model, self._cache, lane):
            await self._blame(lane[0], model, error)

    async def _blame(self, request: "_Request", model: "_Model", error: Exception) -> None:
        """Fail a request whose texts failed, unless the model fails on any text: then it is to be loaded anew."""
        if not isinstance(error, EvervecError):
            try:
                await self._thread.call(partial(model.encode, [PLAIN_TEXT], request.model.prompt))
            except Exception as broken:  # noqa: BLE001 - whatever it is, no text is to blame
                self._unload(request.model, broken)
                return
        _fail([request], error)

    def _unload(self, spec: ModelSpec, error: Exception) -> None:
        """Forget a model that is broken, and tell those who wait for it."""
        key = (spec.name, spec.revision)
        del self._models[key]
        reason = f"the model {spec.name!r} fails on every text ({type(error).__name__}); it will be loaded anew"
        self._failures[key] = _Failure.after(0, reason)
        logger.warning("model unavailable", model=spec.name, reason=reason)
        self._fail_all(key, reason)

    def _fail_all(self, key: tuple[str, str], reason: str) -> None:
        """Fail all who wait for a model."""
        waiting = (request for request in (*self._live, *self._bulk) if request.is_for(key))
        _fail(waiting, ModelUnavailableError(reason))

    def _refuse(self, request: "_Request", error: DimensionError) -> None:
        """Fail a request that its model cannot serve; the log is told once."""
        if request.model not in self._refused:
            logger.warning("model does not fit", model=request.model.name, reason=str(error))
        self._refused.add(request.model)
        _fail([request], error)

    async def _load_model(self, spec: ModelSpec) -> None:
        key = (spec.name, spec.revision)
        started = time.monotonic()
        failure = self._failures.get(key)
        if failure is None or failure.until < started:
            logger.info("loading model", model=spec.name)
            metrics.MODEL_LOAD_FAILURES.labels(spec.name)
            try:
                embedder = await self._thread.call(partial(self._load, spec, self._settings))
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for the model hear of it
                failure = self._failures[key] = _Failure.after(time.monotonic() - started, str(error))
                metrics.MODEL_LOAD_FAILURES.labels(spec.name).inc()
                logger.warning("model unavailable", model=spec.name, reason=failure.reason)
            else:
                seconds = time.monotonic() - started
                metrics.MODEL_LOAD_SECONDS.labels(spec.name).set(seconds)
                logger.info("model loaded", model=spec.name, dimension=embedder.dimension, seconds=round(seconds, 2))
                self._models[key] = _Model(spec.name, embedder)
                return
        self._fail_all(key, failure.reason)


@dataclass(eq=False, slots=True)
class _Request:
    model: ModelSpec
    texts: list[tuple[Key, str]]
    """Distinct, shortest first."""
    result: "asyncio.Future[dict[Key, Answer]]"
    """The answers for all texts; done as well when nobody waits any more."""
    rows: dict[Key, Answer] = field(default_factory=dict)
    """Answers for the first so many texts."""
    alone: bool = False
    """Not to be merged with others: it is one of some that failed together."""

    def is_for(self, key: tuple[str, str]) -> bool:
        return (self.model.name, self.model.revision) == key

    def add(self, rows: dict[Key, Answer]) -> None:
        """Take the next texts' answers."""
        self.rows |= rows
        if len(self.rows) == len(self.texts) and not self.result.done():
            self.result.set_result(self.rows)


class _Part(NamedTuple):
    """What a step does of one request."""

    request: _Request
    known: dict[Key, Row]
    """Texts that were embedded lately."""
    texts: dict[Key, str]
    """Texts that are to be embedded."""


class _Failure(NamedTuple):
    reason: str
    until: float

    @classmethod
    def after(cls, seconds: float, reason: str) -> Self:
        """Not to be tried again for long enough that the attempts cost the other models little."""
        return cls(reason, time.monotonic() + max(RELOAD_SECONDS, 3 * seconds))


class _Model:
    """A model that is loaded, and how much it gets done in the time of a step."""

    def __init__(self, name: str, embedder: Embedder) -> None:
        self.embedder = embedder
        self.step_size = float(STEP_SIZE_LEAST)
        self._name = name
        self._cuts = False
        self._seconds = metrics.ENCODE_SECONDS.labels(name)
        self._texts = metrics.ENCODE_TEXTS.labels(name)
        self._tokens = metrics.ENCODE_TOKENS.labels(name)
        self._truncated = metrics.TRUNCATED_TEXTS.labels(name)

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        embedder = self.embedder
        tokens, truncated, started = embedder.tokens, embedder.truncated, time.perf_counter()
        vectors = np.asarray(embedder.encode(texts, prompt), dtype=np.float32)
        self._seconds.observe(time.perf_counter() - started)
        self._texts.inc(len(texts))
        self._tokens.inc(embedder.tokens - tokens)
        self._truncated.inc(embedder.truncated - truncated)
        if vectors.shape != (len(texts), self.embedder.dimension):
            raise ModelUnavailableError(f"the model gave an array of shape {vectors.shape} for {len(texts)} texts")
        if self.embedder.truncated and not self._cuts:
            self._cuts = True
            logger.warning("texts are longer than the model reads: they are cut off", model=self._name)
        return vectors

    def refused(self, texts: Iterable[tuple[Key, str]]) -> dict[Key, Answer]:
        """Those of the texts that the model cannot take."""
        reasons = ((key, self.embedder.refusal(text)) for key, text in texts)
        return {key: BadItemError(reason) for key, reason in reasons if reason}

    def learn(self, texts: list[str], seconds: float) -> None:
        """Adapt the size of the steps to the time that one took; a much smaller one tells little."""
        size = sum(map(_size, texts))
        if seconds > STEP_SECONDS or size > self.step_size / 2:
            change = STEP_SECONDS / max(seconds, 1e-6) * size / self.step_size
            self.step_size *= min(max(change, 0.5), 2.0)
            self.step_size = min(max(self.step_size, STEP_SIZE_LEAST), STEP_SIZE_MOST)


async def _step(thread: WorkThread, model: _Model, cache: VectorCache, lane: deque[_Request]) -> Exception | None:
    """Embed what the lane's first request and those like it have waiting, as much as a step may take.

    Returns what the model raised on texts of the first request alone.
    """
    parts = _take(lane, cache, model.step_size)
    waiting = {key: text for part in parts for key, text in part.texts.items()}
    answers = model.refused(waiting.items())
    wanted = sorted(((key, text) for key, text in waiting.items() if key not in answers), key=_length)
    if wanted:
        texts = [text for _, text in wanted]
        started = time.monotonic()
        try:
            vectors = await thread.call(partial(model.encode, texts, lane[0].model.prompt))
        except Exception as error:  # noqa: BLE001 - it goes to the request that it belongs to
            for part in parts:
                part.request.alone = True
            return error if len(parts) == 1 else None
        model.learn(texts, time.monotonic() - started)
        answers |= _answers([key for key, _ in wanted], vectors, cache)
    for part in parts:
        part.request.add({**part.known, **{key: answers[key] for key in part.texts}})
    return None


def _answers(keys: Sequence[Key], vectors: Vectors, cache: VectorCache) -> dict[Key, Answer]:
    """Each text's vector if it is one; those that are will be remembered."""
    usable: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
    answers: dict[Key, Answer] = {}
    for key, row, is_usable in zip(keys, vectors, usable, strict=True):
        answers[key] = row if is_usable else BadItemError(NO_DIRECTION)
        if is_usable:
            cache.put(key, row)
    return answers


def _take(lane: deque[_Request], cache: VectorCache, size: float) -> list[_Part]:
    """The texts of a step: at least one, and as many more of the same kind as its size allows."""
    first = lane[0]
    alike = (other for other in lane if other.model == first.model and not other.alone and not other.result.done())
    parts: list[_Part] = []
    chosen: set[Key] = set()
    for request in [first] if first.alone else alike:
        part = _Part(request, {}, {})
        for key, text in islice(request.texts, len(request.rows), None):
            if key not in chosen and (row := cache.get(key)) is not None:
                part.known[key] = row
                metrics.CACHED_TEXTS.inc()
                continue
            if key not in chosen:
                size -= _size(text)
                if chosen and size < 0:
                    break
                chosen.add(key)
            part.texts[key] = text
        if part.known or part.texts:
            parts.append(part)
        if size < 0:
            break
    return parts


def _size(text: str) -> int:
    """What a text costs, roughly: models read about so many characters of it, and each text costs something."""
    return min(len(text), 2_000) + 20


def _key(model: ModelSpec, text: str) -> Key | BadItemError:
    try:
        return keys_of(model)(text)
    except UnicodeEncodeError:
        return BadItemError(NO_CHARACTER)


def _length(item: tuple[Key, str]) -> int:
    return len(item[1])


def _fail(requests: Iterable[_Request], error: Exception) -> None:
    for request in requests:
        if not request.result.done():
            request.result.set_exception(error)


def _dimension_error(spec: ModelSpec, dimension: int) -> DimensionError:
    return DimensionError(
        f"the model {spec.name!r} gives {dimension} dimensions, the source's column has {spec.dimension}: "
        f"`evervec watch … --dimension {dimension}`"
    )
