"""Pixeltable: a table with an embedding index, as its documentation has it.

`pixeltable_app.py prepare TEXTS.json` makes the table and its rows; `pixeltable_app.py embed MARKER VECTORS.npy` adds
the index, writes the number of rows into MARKER and then, for a check, the vectors that the index holds.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pixeltable as pxt
from pixeltable.functions.huggingface import sentence_transformer


def prepare(texts: Path) -> None:
    items = pxt.create_table("items", {"id": pxt.Required[pxt.Int], "body": pxt.Required[pxt.String]})
    items.insert([{"id": key, "body": body} for key, body in enumerate(json.loads(texts.read_text()), 1)])


def embed(marker: Path, vectors: Path) -> None:
    items = pxt.get_table("items")
    model = sentence_transformer.using(model_id=os.environ["BENCH_MODEL"])
    items.add_embedding_index("body", embedding=model, idx_name="bodies")
    marker.write_text(str(items.count()))
    rows = items.order_by(items.id).select(vector=items.body.embedding(idx="bodies")).collect()
    np.save(vectors, np.stack([row["vector"] for row in rows]).astype(np.float32))


if __name__ == "__main__":
    {"prepare": prepare, "embed": embed}[sys.argv[1]](*map(Path, sys.argv[2:]))
