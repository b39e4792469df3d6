"""The encoder: one queue and one thread for everything that a worker embeds.

Work is done in steps. A step takes waiting requests for one model together, live ones before bulk ones and never both,
and is kept short, so that a live request never waits behind much bulk work. A request's texts go shortest first: those
of a step are then of similar length, and little is computed on padding. A text that was embedded lately is not again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from embedding.base import Embedder, Vectors
from embedding.cache import Key, Row, VectorCache, keys_of
from embedding.embedders import load_embedder
from embedding.thread import WorkThread
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

        It fails as a whole: BadItemError if one of the texts cannot be embedded, ModelUnavailableError or
        DimensionError if none can; what else the model raises is passed on.
        """
        if self._dispatcher is None:
            raise EvervecError("the encoder is closed")
        if not texts:
            return np.empty((0, model.dimension), dtype=np.float32)
        try:
            keys = list(map(keys_of(model), texts))
        except UnicodeEncodeError:
            raise BadItemError("a text holds half a surrogate pair, which is no character") from None
        distinct = sorted(dict(zip(keys, texts, strict=True)).items(), key=_length)
        request = _Request(model, distinct, asyncio.get_running_loop().create_future())
        (self._live if live else self._bulk).append(request)
        self._arrival.set()
        rows = await request.result
        return np.stack([rows[key] for key in keys])

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
        else:
            await _step(self._thread, model, self._cache, lane)

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
            try:
                embedder = await self._thread.call(partial(self._load, spec, self._settings))
            except Exception as error:  # noqa: BLE001 - whatever it is, those who wait for the model hear of it
                failure = self._failures[key] = _Failure.after(time.monotonic() - started, str(error))
                logger.warning("model unavailable", model=spec.name, reason=failure.reason)
            else:
                seconds = round(time.monotonic() - started, 2)
                logger.info("model loaded", model=spec.name, dimension=embedder.dimension, seconds=seconds)
                self._models[key] = _Model(embedder)
                return
        waiting = (request for request in (*self._live, *self._bulk) if request.is_for(key))
        _fail(waiting, ModelUnavailableError(failure.reason))


@dataclass(eq=False, slots=True)
class _Request:
    model: ModelSpec
    texts: list[tuple[Key, str]]
    """Distinct, shortest first."""
    result: "asyncio.Future[dict[Key, Row]]"
    """The vectors of all texts; done as well when nobody waits any more."""
    rows: dict[Key, Row] = field(default_factory=dict)
    """Vectors of the first so many texts."""
    alone: bool = False
    """Not to be merged with others: it is one of some that failed together."""

    def is_for(self, key: tuple[str, str]) -> bool:
        return (self.model.name, self.model.revision) == key

    def add(self, rows: dict[Key, Row | None]) -> None:
        """Take the next texts' vectors; None is one that is no direction."""
        if self.result.done():
            return
        for key, row in rows.items():
            if row is None:
                self.result.set_exception(BadItemError("the model gives no usable vector: it is zero, or not finite"))
                return
            self.rows[key] = row
        if len(self.rows) == len(self.texts):
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

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self.step_size = float(STEP_SIZE_LEAST)

    def encode(self, texts: list[str], prompt: str) -> Vectors:
        vectors = np.asarray(self.embedder.encode(texts, prompt), dtype=np.float32)
        if vectors.shape != (len(texts), self.embedder.dimension):
            raise EvervecError(f"the model gave an array of shape {vectors.shape} for {len(texts)} texts")
        return vectors

    def learn(self, texts: list[str], seconds: float) -> None:
        """Adapt the size of the steps to the time that one took; a much smaller one tells little."""
        size = sum(map(_size, texts))
        if seconds > STEP_SECONDS or size > self.step_size / 2:
            change = STEP_SECONDS / max(seconds, 1e-6) * size / self.step_size
            self.step_size *= min(max(change, 0.5), 2.0)
            self.step_size = min(max(self.step_size, STEP_SIZE_LEAST), STEP_SIZE_MOST)


async def _step(thread: WorkThread, model: _Model, cache: VectorCache, lane: deque[_Request]) -> None:
    """Embed what the lane's first request and those like it have waiting, as much as a step may take."""
    parts = _take(lane, cache, model.step_size)
    wanted = sorted({key: text for part in parts for key, text in part.texts.items()}.items(), key=_length)
    rows: dict[Key, Row | None] = {}
    if wanted:
        texts = [text for _, text in wanted]
        started = time.monotonic()
        try:
            vectors = await thread.call(partial(model.encode, texts, lane[0].model.prompt))
        except Exception as error:  # noqa: BLE001 - it goes to the request that it belongs to
            if len(parts) == 1:
                _fail([parts[0].request], error)
            for part in parts:
                part.request.alone = True
            return
        model.learn(texts, time.monotonic() - started)
        usable: NDArray[np.bool_] = np.asarray(np.isfinite(vectors).all(axis=1) & vectors.any(axis=1))
        for (key, _), row, is_usable in zip(wanted, vectors, usable, strict=True):
            rows[key] = row if is_usable else None
            if is_usable:
                cache.put(key, row)
    for part in parts:
        part.request.add({**part.known, **{key: rows[key] for key in part.texts}})


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
