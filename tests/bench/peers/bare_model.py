"""The model itself: `python bare_model.py TEXTS.json SECONDS.json VECTORS.npy` embeds all texts in one call."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

if __name__ == "__main__":
    given, seconds, vectors = map(Path, sys.argv[1:])
    texts = json.loads(given.read_text(encoding="utf-8"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = SentenceTransformer(os.environ["BENCH_MODEL"], device="cpu")
    model.encode(texts[:8])
    started = time.perf_counter()
    embedded = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    seconds.write_text(json.dumps(time.perf_counter() - started))
    np.save(vectors, embedded)
