"""`stub:D`: vectors without a model, to test and to measure the pipeline."""

import hashlib
from collections.abc import Sequence

import numpy as np

from embedding.base import Vectors
from evervec.errors import BadItemError, ModelUnavailableError

PREFIX = "stub:"
POISON = "evervec-poison"
MAX_DIMENSION = 16_000
"""What pgvector's `vector` can hold."""


class StubEmbedder:
    """The same text has the same vector everywhere, different texts have unrelated ones; poisoned texts are refused."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.truncated = 0
        self.tokens = 0

    def refusal(self, text: str) -> str | None:
        """Poison is refused."""
        return f"the stub refuses content that holds {POISON}" if POISON in text else None

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        """Spread each text's SHAKE-256 over its row; BadItemError if a text holds `evervec-poison`."""
        for reason in filter(None, map(self.refusal, texts)):
            raise BadItemError(reason)
        size = 2 * self.dimension
        digests = b"".join([hashlib.shake_256((prompt + text).encode()).digest(size) for text in texts])
        # An odd number is never 0, so that no row is.
        numbers = np.frombuffer(digests, dtype="<i2").reshape(-1, self.dimension) | 1
        vectors = numbers.astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def stub_dimension(name: str) -> int:
    """The D of `stub:D`, a ModelUnavailableError if there is none."""
    digits = name.removeprefix(PREFIX)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(MAX_DIMENSION))) or not (
        0 < int(digits) <= MAX_DIMENSION
    ):
        raise ModelUnavailableError(f"no model {name!r}: write stub:D with a dimension D from 1 to {MAX_DIMENSION}")
    return int(digits)
