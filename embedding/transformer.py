"""Any sentence-transformers model, by its name on the model hub or from a local folder.

What is cached is used without asking the hub: the worker starts without a network, and a model does not change under
the vectors that are there already. `revision` pins what a new machine downloads.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from embedding import folders
from embedding.backends import choose, compare
from embedding.base import MAX_CHARACTERS, Vectors
from embedding.cores import available_cores, cpu_streams
from embedding.groups import compute_groups
from embedding.pooling import quicken
from evervec.errors import ModelUnavailableError
from evervec.settings import Backend, Settings

HUB_TIMEOUT_SECONDS = 10

REMEDY = (
    "connect this machine to the hub once, point EVERVEC_MODEL_CACHE at a folder that holds the download, "
    "or `evervec watch … --model` a local folder or bundled:use-multilingual-v3"
)


class SentenceTransformerEmbedder:
    """A sentence-transformers model; it cuts off texts that are too long for it.

    Texts of similar length go through the model together, several such passes side by side on a CPU: a core that has
    a pass of its own need not wait for the others at each layer.
    """

    def __init__(self, name: str, revision: str, settings: Settings) -> None:
        backend = _checked_backend(settings)
        self._model = _load(name, revision or None, settings, backend)
        self.source = folders.model_folder(name, revision or None, settings)
        self.truncated = self.tokens = 0
        self.device = str(self._model.device.type)
        if self.device == "cpu":
            quicken(self._model)
        cores = available_cores()
        self.streams = cpu_streams() if self.device == "cpu" and backend is not Backend.ONNX else 1
        self._threads = ThreadPoolExecutor(
            self.streams, "evervec-model", _set_threads, (max(1, cores // self.streams),)
        )
        if backend is Backend.ONNX:
            torch = SentenceTransformerEmbedder(name, revision, _on_torch(settings))
            compare(self.encode_plain, torch.encode_plain, self.device)
        else:
            choose(self, settings)
        # One text shows that the model works, and how long its vectors are.
        self.dimension = self.encode_plain(["dimension"]).shape[1]
        self.truncated = self.tokens = 0

    @property
    def modules(self) -> Any:
        """The model as sentence-transformers has it."""
        return self._model

    @property
    def transformer(self) -> Any:
        """The model's transformer, a torch module."""
        return self._model[0].auto_model

    def refusal(self, text: str) -> str | None:  # noqa: ARG002 - as all embedders have it
        """It takes any text."""
        return None

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the texts; without a prompt the model's own default prompt is used, if it has one."""
        read = [text[:MAX_CHARACTERS] for text in texts]

        def encode(group: list[int]) -> Vectors:
            return self._encode_group([read[number] for number in group], prompt)

        return compute_groups(self._lengths(read, prompt), self.streams, self._threads, encode)

    def encode_plain(self, texts: Sequence[str]) -> Vectors:
        """Embed the texts as the model has them without a prompt of ours."""
        return self.encode(texts, "")

    def example(self) -> dict[str, Any]:
        """What the transformer is given for two texts."""
        preprocess = getattr(self._model, "preprocess", None) or self._model.tokenize
        features = preprocess(["two texts", "of different length, for an example"])
        return {name: value for name, value in features.items() if hasattr(value, "numpy")}

    def use(self, forward: Callable[..., Any], *, release: Iterable[Any]) -> None:
        """Compute with this in place of the transformer's own forward pass; release: tensors that it does not need."""
        self.transformer.forward = forward
        for tensor in release:
            tensor.data = tensor.data.new_empty(0)

    @contextmanager
    def trying(self, forward: Callable[..., Any]) -> Iterator[None]:
        """Compute with this for a while."""
        self.transformer.forward = forward
        try:
            yield
        finally:
            del self.transformer.forward

    def _encode_group(self, texts: list[str], prompt: str) -> Vectors:
        """One pass through the model."""
        vectors = self._model.encode(
            texts,
            prompt=prompt or None,
            batch_size=len(texts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        return np.asarray(vectors, dtype=np.float32)

    def _lengths(self, texts: list[str], prompt: str) -> list[int]:
        """In tokens, as far as the model reads; what is longer is counted."""
        limit = self._model.max_seq_length or MAX_CHARACTERS
        tokens = self._model.tokenizer([prompt + text for text in texts], add_special_tokens=True)["input_ids"]
        lengths = list(map(len, tokens))
        self.truncated += sum(length > limit for length in lengths)
        read = [min(length, limit) for length in lengths]
        self.tokens += sum(read)
        return read


def _load(name: str, revision: str | None, settings: Settings, backend: Backend) -> Any:
    cache = folders.downloads(settings)
    options = {
        "revision": revision,
        "cache_folder": cache,
        "device": "cpu" if backend is Backend.OPENVINO else settings.device,
        "backend": "onnx" if backend is Backend.ONNX else "torch",
    }
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _construct(_checked_folder(folder), local_files_only=True, **options)
    if name.count("/") > 1 or name.startswith((".", "~", "/")):
        raise ModelUnavailableError(f"there is no model folder {name!r} on this machine: {REMEDY}")
    repository = folders.repository_of(name)
    if folders.is_cached(repository, revision, cache):
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
    _set_threads(available_cores())
    model = importlib.import_module("sentence_transformers").SentenceTransformer(source, **options)
    # On a CPU 16-bit weights would be slower, and less exact than what they are compared with.
    return model.float() if model.device.type == "cpu" and options["backend"] == "torch" else model


def _set_threads(threads: int) -> None:
    """How many threads torch uses for the calling thread's work; imported by name as above."""
    importlib.import_module("torch").set_num_threads(threads)


def _on_torch(settings: Settings) -> Settings:
    return settings.model_copy(update={"backend": Backend.TORCH})


def _checked_backend(settings: Settings) -> Backend:
    backend = settings.backend
    needed = {Backend.OPENVINO: ("openvino",), Backend.ONNX: ("optimum", "onnxruntime")}.get(backend, ())
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        extra = "evervec[openvino]" if backend is Backend.OPENVINO else "sentence-transformers[onnx]"
        raise ModelUnavailableError(
            f"EVERVEC_BACKEND={backend} needs {' and '.join(missing)}: `pip install '{extra}'`, or unset it"
        )
    if backend is Backend.OPENVINO and settings.device not in (None, "cpu"):
        raise ModelUnavailableError("EVERVEC_BACKEND=openvino computes on the CPU: unset it, or EVERVEC_DEVICE")
    return backend


def _checked_folder(folder: Path) -> str:
    if not any((folder / file).is_file() for file in ("modules.json", "config.json")):
        raise ModelUnavailableError(
            f"the folder {str(folder)!r} holds no model: it has neither modules.json nor config.json"
        )
    return str(folder)


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
