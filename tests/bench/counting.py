"""An evervec process that notes how many texts it embeds: `python -m tests.bench.counting worker`.

The process is the ordinary one in all else. Each call of the stub appends its number of texts to the file that
BENCH_COUNTS names.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from cli.main import run
from embedding.base import Vectors
from embedding.stub import StubEmbedder

COUNTS = "BENCH_COUNTS"


def texts_encoded(counts: Path) -> int:
    """How many texts have been embedded so far."""
    return sum(map(int, counts.read_text(encoding="ascii").split())) if counts.exists() else 0


if __name__ == "__main__":
    _encode = StubEmbedder.encode

    def _encode_and_count(self: StubEmbedder, texts: Sequence[str], prompt: str) -> Vectors:
        with Path(os.environ[COUNTS]).open("a", encoding="ascii") as counts:
            counts.write(f"{len(texts)}\n")
        return _encode(self, texts, prompt)

    StubEmbedder.encode = _encode_and_count  # type: ignore[method-assign]
    run()
