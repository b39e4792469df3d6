"""A model whose backend was chosen before, computed by OpenVINO without torch.

torch and sentence-transformers cost a worker seconds to import, and half a gigabyte; the converted model needs neither.
A start that has the whole model in memory writes down what else there is to it, proves on the probe that this gives
torch's vectors, and keeps it under a name of all that it was made from. What is out of the plain goes the whole way.
"""

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from embedding import folders, kept, openvino_model, pooling
from embedding.base import MAX_CHARACTERS, Vectors
from embedding.cores import cpu_streams
from embedding.groups import compute_groups
from embedding.probe import MINIMUM_COSINE, PROBE, minimum_cosine
from evervec.errors import EvervecError, ModelUnavailableError
from evervec.log import get_logger
from evervec.settings import Backend, Settings

if TYPE_CHECKING:
    from embedding.transformer import SentenceTransformerEmbedder

PLAIN = (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])

logger = get_logger("evervec.embedding")


class Recipe(NamedTuple):
    """What there is to a plain model besides its transformer."""

    tokenizer: str
    """As JSON."""
    limit: int
    """Tokens that it reads of a text."""
    cut: str
    """The side on which longer ones are cut off."""
    pad_token: str
    pad_id: int
    pad_type_id: int
    pooling: str


class LightEmbedder:
    """Gives the vectors of the SentenceTransformerEmbedder that computes this model with OpenVINO."""

    def __init__(self, model: Path, precision: str, recipe: Recipe) -> None:
        self._recipe = recipe
        self._tokenizer = importlib.import_module("tokenizers").Tokenizer.from_str(recipe.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(recipe.limit, direction=recipe.cut)
        self.streams = cpu_streams()
        self._infer = openvino_model.compile_model(openvino_model.read_model(model), precision, self.streams)
        self._threads = ThreadPoolExecutor(self.streams, "evervec-model")
        self.truncated = self.tokens = 0
        # One text shows that the model works, and how long its vectors are.
        self.dimension = self.encode(["dimension"], "").shape[1]
        self.truncated = self.tokens = 0

    def refusal(self, text: str) -> str | None:  # noqa: ARG002 - as all embedders have it
        """It takes any text."""
        return None

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the texts, each with the prompt before it."""
        read = self._tokenizer.encode_batch([prompt + text[:MAX_CHARACTERS] for text in texts])
        self.truncated += sum(bool(encoding.overflowing) for encoding in read)

        def encode(group: list[int]) -> Vectors:
            return self._encode_group([read[number] for number in group])

        lengths = [len(encoding.ids) for encoding in read]
        self.tokens += sum(lengths)
        return compute_groups(lengths, self.streams, self._threads, encode)

    def _encode_group(self, encodings: list[Any]) -> Vectors:
        """One pass through the model."""
        recipe, length = self._recipe, max(len(encoding.ids) for encoding in encodings)
        for encoding in encodings:
            encoding.pad(length, pad_id=recipe.pad_id, pad_type_id=recipe.pad_type_id, pad_token=recipe.pad_token)
        mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
        features = {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([encoding.type_ids for encoding in encodings], dtype=np.int64),
        }
        vectors = pooling.pool(recipe.pooling, self._infer(features), mask)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), dtype=np.float32)


def load_light(name: str, revision: str | None, settings: Settings) -> LightEmbedder | None:
    """The model as an earlier start left it; None if none did, or anything is otherwise than it was then."""
    if settings.backend not in (Backend.AUTO, Backend.OPENVINO) or settings.device not in (None, "cpu"):
        return None
    if find_spec("openvino") is None:
        return None
    try:
        source = folders.model_folder(name, revision, settings)
        return _load(source, settings) if source else None
    except EvervecError:
        return None  # the whole way says what is wrong
    except Exception as error:  # noqa: BLE001 - the whole way needs nothing of what was kept
        logger.warning("kept model not used", model=name, reason=f"{type(error).__name__}: {error}")
        return None


def keep_light(embedder: "SentenceTransformerEmbedder", way: str, folder: Path, settings: Settings) -> None:
    """Let the next start load this model by itself, if that gives the vectors of the embedder, which is on torch."""
    source, recipe = embedder.source, recipe_of(embedder.modules)
    if recipe is None or source is None or any(source.rglob("adapter_config.json")):  # its base model is elsewhere
        return
    try:
        light = LightEmbedder(folder / openvino_model.FILE, _precision(way), recipe)
        _check_same(light, embedder)
    except Exception as error:  # noqa: BLE001 - what does not work for this model is not kept
        logger.warning("next start not shortened", reason=" ".join(f"{type(error).__name__}: {error}".split())[:200])
    else:
        kept.write_json(folder / _file_name(source, settings), recipe._asdict())


def recipe_of(modules: Any) -> Recipe | None:
    """What the loaded model is besides its transformer; None if it is not plain."""
    parts = list(modules)
    if [pooling.library_kind(part) for part in parts] not in PLAIN or modules.default_prompt_name:
        return None
    tokenizer, kind = modules.tokenizer, pooling.pooling_kind(parts[1])
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if kind is None or backend is None or tokenizer.padding_side != "right" or not modules.max_seq_length:
        return None
    return Recipe(
        backend.to_str(),
        modules.max_seq_length,
        tokenizer.truncation_side,
        tokenizer.pad_token,
        tokenizer.pad_token_id,
        tokenizer.pad_token_type_id,
        kind,
    )


def _load(source: Path, settings: Settings) -> LightEmbedder | None:
    recipes = list(folders.converted(settings).glob("*/light-*.json"))
    wanted = _file_name(source, settings) if recipes else ""  # reads all of the model's files
    for file in (file for file in recipes if file.name == wanted):
        chosen = kept.recall_choice(kept.choice_file(file.parent, settings.backend))
        if chosen is not None and chosen.backend.startswith(Backend.OPENVINO):
            model = file.parent / openvino_model.FILE
            light = LightEmbedder(model, _precision(chosen.backend), Recipe(**kept.read_json(file)))
            logger.info("backend chosen before", backend=chosen.backend, **chosen.figures)
            return light
    return None


def _check_same(light: LightEmbedder, embedder: "SentenceTransformerEmbedder") -> None:
    """Both on the whole probe: ModelUnavailableError if they differ in vectors, or in how many texts they cut off."""
    texts = list(chain.from_iterable(PROBE))
    before = embedder.truncated
    cosine = minimum_cosine(light.encode(texts, ""), embedder.encode(texts, ""))
    truncated = embedder.truncated - before
    if not cosine >= MINIMUM_COSINE or light.truncated != truncated:
        raise ModelUnavailableError(f"minimum cosine {cosine:.5f}, {light.truncated} of {truncated} texts cut off")


def _precision(way: str) -> str:
    return way.split()[1]


def _file_name(source: Path, settings: Settings) -> str:
    """Names all that decides whether what was kept is still right."""
    return f"light-{kept.start_fingerprint(source, settings.backend, settings.device)}.json"
