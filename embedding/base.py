"""What all kinds of embedders have in common."""

import os
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Vectors: TypeAlias = NDArray[np.float32]
"""A row for each text, of the model's dimension and of length 1."""


class Embedder(Protocol):
    """A model that is loaded. Not thread-safe: called from one thread."""

    dimension: int

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Embed the texts, each with the prompt before it: (len(texts), dimension), L2-normalised. Blocks."""


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
