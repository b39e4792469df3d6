"""Any sentence-transformers model, by its name on the model hub or from a local folder.

What is cached is used without asking the hub: the worker starts without a network, and a model does not change under
the vectors that are there already. `revision` pins what a new machine downloads.
"""

import importlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from embedding.base import Vectors, available_cores
from evervec.errors import ModelUnavailableError
from evervec.settings import Backend, Settings

HUB_TIMEOUT_SECONDS = 10
MAX_CHARACTERS = 200_000
"""More than a model reads of a text; tokenising the rest would only hold up everybody else."""

REMEDY = (
    "connect this machine to the hub once, point EVERVEC_MODEL_CACHE at a folder that holds the download, "
    "or `evervec watch … --model` a local folder or bundled:use-multilingual-v3"
)


class SentenceTransformerEmbedder:
    """A sentence-transformers model; it cuts off texts that are too long for it."""

    def __init__(self, name: str, revision: str, settings: Settings) -> None:
        self._model = _load(name, revision or None, settings)
        # One text shows that the model works, and how long its vectors are.
        self.dimension = self.encode(["dimension"], "").shape[1]

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the texts; without a prompt the model's own default prompt is used, if it has one."""
        vectors = self._model.encode(
            [text[:MAX_CHARACTERS] for text in texts],
            prompt=prompt or None,
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)


def _load(name: str, revision: str | None, settings: Settings) -> Any:
    cache = str(settings.model_cache) if settings.model_cache else os.environ.get("SENTENCE_TRANSFORMERS_HOME")
    options = {
        "revision": revision,
        "cache_folder": cache,
        "device": settings.device,
        "backend": _checked_backend(settings.backend).value,
    }
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _construct(_checked_folder(folder), local_files_only=True, **options)
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise ModelUnavailableError(f"there is no model folder {name!r} on this machine: {REMEDY}")
    repository = name if "/" in name else f"sentence-transformers/{name}"
    if _is_cached(repository, revision, cache):
        try:
            return _construct(repository, local_files_only=True, **options)
        except OSError:
            pass  # a download that was interrupted: the hub has the rest
    _check_hub(repository, revision)
    return _construct(repository, local_files_only=False, **options)


def _construct(source: str, **options: Any) -> Any:
    """Load the model without a word on stderr; imported by name because torch's types cost mypy a minute."""
    disable_progress_bars()
    quiet = importlib.import_module("transformers.utils.logging")
    quiet.disable_progress_bar()
    quiet.set_verbosity_error()
    importlib.import_module("torch").set_num_threads(available_cores())
    return importlib.import_module("sentence_transformers").SentenceTransformer(source, **options)


def _checked_backend(backend: Backend) -> Backend:
    needed = {Backend.OPENVINO: ("optimum", "openvino"), Backend.ONNX: ("optimum", "onnxruntime")}
    missing = [package for package in needed.get(backend, ()) if find_spec(package) is None]
    if missing:
        raise ModelUnavailableError(
            f"EVERVEC_BACKEND={backend} needs {' and '.join(missing)}: "
            f"`pip install 'sentence-transformers[{backend}]'`, or unset it"
        )
    return Backend.TORCH if backend is Backend.AUTO else backend


def _checked_folder(folder: Path) -> str:
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelUnavailableError(
            f"the folder {str(folder)!r} holds no model: it has neither modules.json nor config.json"
        )
    return str(folder)


def _is_cached(repository: str, revision: str | None, cache: str | None) -> bool:
    """Whether the cache knows if there is a modules.json: without one the pooling is guessed, for some models wrong."""
    try:
        return try_to_load_from_cache(repository, "modules.json", cache_dir=cache, revision=revision) is not None
    except HFValidationError:
        raise ModelUnavailableError(f"{repository!r} is no model's name: write owner/name, or a local folder") from None


def _check_hub(repository: str, revision: str | None) -> None:
    """Ask the hub once, with a bound, for what sentence-transformers would retry file by file for a minute and more."""
    if constants.HF_HUB_OFFLINE:
        raise ModelUnavailableError(f"the model {repository!r} is not cached and HF_HUB_OFFLINE is set: {REMEDY}")
    try:
        get_hf_file_metadata(hf_hub_url(repository, "config.json", revision=revision), timeout=HUB_TIMEOUT_SECONDS)
    except EntryNotFoundError:
        pass  # the hub knows the model
    except GatedRepoError:
        raise ModelUnavailableError(
            f"the model {repository!r} wants its terms accepted on the hub, and HF_TOKEN set"
        ) from None
    except RepositoryNotFoundError:
        raise ModelUnavailableError(
            f"the hub has no model {repository!r}, or it is private: check the name, or set HF_TOKEN"
        ) from None
    except RevisionNotFoundError:
        raise ModelUnavailableError(f"the model {repository!r} has no revision {revision!r} on the hub") from None
    except Exception as error:
        raise ModelUnavailableError(
            f"the model {repository!r} is not cached and the model hub cannot be reached ({type(error).__name__}): "
            f"{REMEDY}"
        ) from error
