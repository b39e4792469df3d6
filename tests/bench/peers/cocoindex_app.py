"""CocoIndex: a table's rows to a table of their embeddings, as its documentation has it. Run by `cocoindex update`."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

import asyncpg
import cocoindex as coco
import numpy as np
from cocoindex.connectors import postgres
from cocoindex.ops.sentence_transformers import SentenceTransformerEmbedder
from numpy.typing import NDArray

POOL = coco.ContextKey[asyncpg.Pool]("pool")
EMBEDDER = coco.ContextKey[SentenceTransformerEmbedder]("embedder", detect_change=True)


@dataclass
class Item:
    id: int
    body: str


@dataclass
class ItemEmbedding:
    id: int
    embedding: Annotated[NDArray[np.float32], EMBEDDER]


@coco.lifespan
async def lifespan(builder: coco.EnvironmentBuilder) -> AsyncIterator[None]:
    async with await postgres.create_pool(os.environ["BENCH_DATABASE_URL"]) as pool:
        builder.provide(POOL, pool)
        builder.provide(EMBEDDER, SentenceTransformerEmbedder(os.environ["BENCH_MODEL"]))
        yield


@coco.fn(memo=True)
async def embed_item(item: Item, table: postgres.TableTarget[ItemEmbedding]) -> None:
    table.declare_row(row=ItemEmbedding(item.id, await coco.use_context(EMBEDDER).embed(item.body)))


@coco.fn
async def main() -> None:
    schema = await postgres.TableSchema.from_class(ItemEmbedding, primary_key=["id"])
    target = await postgres.mount_table_target(POOL, table_name="item_embedding", table_schema=schema)
    source = postgres.PgTableSource(coco.use_context(POOL), table_name="items", row_type=Item)
    await coco.mount_each(embed_item, source.fetch_rows().items(lambda item: item.id), target)


app = coco.App(coco.AppConfig(name="Items"), main)
