"""Which model a source's vectors come from."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What decides a vector besides the text; together with the normalisation (L2) it is a source's fingerprint."""

    name: str
    """A sentence-transformers name or folder, `bundled:use-multilingual-v3`, or `stub:D`."""
    revision: str
    """A revision of that model (branch, tag or commit), empty for its newest."""
    dimension: int
    """Length of the vectors, as the column has it."""
    prompt: str
    """What is put before each text, empty for nothing."""
