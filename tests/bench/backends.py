"""The backend that EVERVEC_BACKEND=auto chooses beside torch in float32, through the encoder as a worker uses it."""

import itertools
import time
from collections.abc import Iterator, Sequence

import numpy as np

from embedding.base import Vectors
from embedding.encoder import Encoder
from evervec.model import ModelSpec
from evervec.settings import Backend, Settings
from tests.bench.corpus import corpus
from tests.bench.measurement import Bench, Outcome, interleaved, ratio
from tests.bench.models import minilm, mpnet

TEXTS = 30_000
"""Enough that no text comes twice: an encoder remembers some."""
ABOUT_35_WORDS = range(30, 41)


async def auto_minilm(bench: Bench) -> Outcome:
    """all-MiniLM-L6-v2, which is quick: four times the texts."""
    return await _compare(bench, "minilm", minilm(), 4 * bench.plan.probe_texts)


async def auto_mpnet(bench: Bench) -> Outcome:
    """all-mpnet-base-v2."""
    return await _compare(bench, "mpnet", mpnet(), bench.plan.probe_texts)


async def _compare(bench: Bench, name: str, spec: ModelSpec, texts: int) -> Outcome:
    """Other texts in each round, the same ones for both sides."""
    found = corpus(TEXTS)
    unread = found[bench.plan.repetitions * texts :]
    alike = [text for text in unread if len(text.split()) in ABOUT_35_WORDS]
    # What was chosen before, perhaps on a busy machine, is not taken for this run.
    fresh = bench.servers.folder / f"models-{name}"
    async with (
        Encoder(Settings(backend=Backend.AUTO, model_cache=fresh)) as auto,
        Encoder(Settings(backend=Backend.TORCH)) as torch,
    ):
        for encoder in (auto, torch):
            await encoder.embed(spec, ["Its model is loaded now."])
        mixed = await _rounds(bench, spec, auto, torch, _pages(found, texts))
        short = await _rounds(bench, spec, auto, torch, _pages(alike, texts // 4))
    return Outcome(
        {
            f"auto_speedup_{name}": ratio(mixed["torch"], mixed["auto"]),
            f"auto_min_cosine_{name}": min(mixed["cosine"] + short["cosine"]),
            f"auto_speedup_{name}_35_words": ratio(short["torch"], short["auto"]),
        },
        {f"auto_{name}_{side}_seconds": values for side, values in mixed.items() if side != "cosine"}
        | {f"auto_{name}_35_words_{side}_seconds": values for side, values in short.items() if side != "cosine"},
    )


async def _rounds(
    bench: Bench, spec: ModelSpec, auto: Encoder, torch: Encoder, pages: Iterator[Sequence[str]]
) -> dict[str, list[float]]:
    """Seconds of both sides, and the least cosine between their vectors."""
    texts: Sequence[str] = []
    vectors: dict[str, Vectors] = {}

    async def embed(side: str, encoder: Encoder) -> float:
        started = time.perf_counter()
        vectors[side] = await encoder.embed(spec, texts, live=False)
        return time.perf_counter() - started

    async def with_torch() -> float:
        nonlocal texts
        texts = next(pages)
        return await embed("torch", torch)

    async def with_auto() -> float:
        return await embed("auto", auto)

    async def cosine() -> float:
        return float(np.einsum("ij,ij->i", vectors["torch"], vectors["auto"]).min())

    return await interleaved(bench, torch=with_torch, auto=with_auto, cosine=cosine)


def _pages(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for first in itertools.count(0, size):
        page = texts[first : first + size]
        assert len(page) == size, "there are not enough texts"
        yield page
