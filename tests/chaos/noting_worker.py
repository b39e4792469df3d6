"""`evervec worker` with a stub that takes its time, and notes each text that it has encoded in a file."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from embedding import stub
from embedding.base import Vectors

FILE = "NOTED_TEXTS"
"""The variable that names the file."""
SECONDS_A_TEXT = 0.002


class NotingStub(stub.StubEmbedder):
    """Slow enough that a batch can be caught in the middle."""

    def encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        with Path(os.environ[FILE]).open("a", encoding="utf-8") as noted:
            noted.writelines(f"{text}\n" for text in texts)
        time.sleep(SECONDS_A_TEXT * len(texts))
        return super().encode(texts, prompt)


if __name__ == "__main__":
    stub.StubEmbedder = NotingStub  # type: ignore[misc]
    from cli.main import run

    run()
