"""What all kinds of embedders have in common."""

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
"""A row for each text, of the model's dimension and of length 1."""

MAX_CHARACTERS = 200_000
"""More than a model reads of a text; tokenising the rest would only hold up everybody else."""


class Embedder(Protocol):
    """A model that is loaded. Not thread-safe: called from one thread."""

    dimension: int
    truncated: int
    """How many texts were longer than the model reads, so far; they were cut off."""
    tokens: int
    """How many tokens it has read so far; 0 for a model that does not count them."""

    def refusal(self, text: str) -> str | None:
        """Why the model cannot take a text, without quoting it; None if it can. Asked before it is given a batch."""

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the texts, each with the prompt before it: (len(texts), dimension), L2-normalised. Blocks."""
