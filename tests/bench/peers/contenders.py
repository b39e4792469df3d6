"""How each side is set up: the bare model, evervec and its peers."""

import asyncio
import json
import sys
import uuid
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from cli.stack.ports import HOST, choose_port
from db.schema import apply_schema
from tests.bench.peers.sides import PROGRAMS, Bench, InTable, Pipeline, Side, SideError, Vectors

DIMENSION = 384
TUNED_BATCH = 256
"""What evervec's sweep takes at a time at this model's speed on two cores."""


class Bare(Side):
    """The model itself: one call with all texts, which sorts them by length. Loading it is not counted."""

    name = "bare"
    label = "the bare model"
    starts = False

    def measure(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        given, answer, vectors = (self.fresh_state() / name for name in ("texts.json", "seconds.json", "vectors.npy"))
        given.write_text(json.dumps(texts), encoding="utf-8")
        self.run(sys.executable, str(PROGRAMS / "bare_model.py"), str(given), str(answer), str(vectors))
        return json.loads(answer.read_text(encoding="utf-8")), np.load(vectors)


class Evervec(InTable):
    """evervec: listener and worker, which are started within the time."""

    name = "evervec"
    label = "evervec"
    table = "items"
    backend: ClassVar[str] = "torch"

    def prepare(self, texts: Sequence[str]) -> None:  # noqa: ARG002 - it prepares the same for any
        asyncio.run(apply_schema(self.conninfo))

    def begin(self) -> None:
        variables = {
            "EVERVEC_DATABASE_URL": self.conninfo,
            "EVERVEC_TEMPORAL_ADDRESS": self.bench.temporal.address,
            "EVERVEC_TASK_QUEUE": uuid.uuid4().hex,
            "EVERVEC_BACKEND": self.backend,
            "EVERVEC_MODEL_CACHE": str(self.state),
        }
        for command in ("listener", "worker"):
            self.start(sys.executable, "-m", "cli.main", command, **variables)
        self.execute(
            "SELECT evervec.watch('items', '{body}', model => %s, dimension => %s)", self.bench.model, DIMENSION
        )


class EvervecDefault(Evervec):
    """evervec as it comes, with the extra that its documentation recommends for speed."""

    name = "evervec_default"
    label = "evervec, defaults"
    backend = "auto"

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        # Which way is the fastest is found out anew: an earlier run may have been on a busy machine.
        self.fresh_state()

    def prepare(self, texts: Sequence[str]) -> None:
        if find_spec("openvino") is None:
            raise SideError(f"{self.label}: OpenVINO is not installed here: pip install -e '.[openvino]'")
        super().prepare(texts)


class CocoIndex(InTable):
    """CocoIndex: one `cocoindex update`. It does not let one set its batches."""

    name = "cocoindex"
    label = "CocoIndex 1.0.26"
    table = "item_embedding"

    def prepare(self, texts: Sequence[str]) -> None:
        """Nothing: CocoIndex makes its tables when it runs."""

    def begin(self) -> None:
        program = self.program("cocoindex", "cocoindex")
        variables = {"BENCH_DATABASE_URL": self.conninfo, "COCOINDEX_DB": str(self.fresh_state() / "cocoindex.db")}
        self.start(program, "update", str(PROGRAMS / "cocoindex_app.py"), **variables)


class Pgai(InTable):
    """pgai: one `pgai vectorizer worker --once`, its model behind a server that is started within the time.

    Its batches are its own choice: 50 rows.
    """

    name = "pgai"
    label = "pgai 0.12.1"
    table = "items_embedding_store"
    processing: ClassVar[str] = ""

    def prepare(self, texts: Sequence[str]) -> None:  # noqa: ARG002 - it prepares the same for any
        self.run(self.program("pgai", "pgai"), "install", "-d", self.conninfo)

    def begin(self) -> None:
        port = choose_port(None)
        server = str(PROGRAMS / "model_server.py")
        self.start(sys.executable, server, str(port), self.bench.model, str(self.bench.threads))
        self.execute(
            "SELECT ai.create_vectorizer('items', loading => ai.loading_column('body'), "
            "embedding => ai.embedding_openai('local-minilm', 384, base_url => %s), "
            "chunking => ai.chunking_none(), destination => ai.destination_table('items_embedding'), "
            f"processing => ai.processing_default({self.processing}))",
            f"http://{HOST}:{port}/v1",
        )
        program = self.program("pgai", "pgai")
        self.start(program, "vectorizer", "worker", "-d", self.conninfo, "--once", OPENAI_API_KEY="none")


class PgaiTuned(Pgai):
    """pgai with larger batches than it takes by itself."""

    name = "pgai_tuned"
    label = f"pgai 0.12.1, {TUNED_BATCH} rows a batch"
    processing = f"batch_size => {TUNED_BATCH}"


class Pixeltable(Pipeline):
    """Pixeltable: an embedding index on a table that has its rows. It does not let one set its batches."""

    name = "pixeltable"
    label = "Pixeltable 0.7.21"

    def prepare(self, texts: Sequence[str]) -> None:
        given = self.fresh_state() / "texts.json"
        given.write_text(json.dumps(texts), encoding="utf-8")
        self.run(*self._command("prepare", str(given)), **self._variables)

    def begin(self) -> None:
        self.start(*self._command("embed", str(self._marker), str(self._vectors)), **self._variables)

    def embedded(self) -> int:
        return int(self._marker.read_text()) if self._marker.exists() else 0

    def vectors(self) -> Vectors:
        self.finish()
        vectors: Vectors = np.load(self._vectors)
        return vectors

    def _command(self, *arguments: str) -> list[str]:
        return [self.program("pixeltable", "python"), str(PROGRAMS / "pixeltable_app.py"), *arguments]

    @property
    def _variables(self) -> dict[str, str]:
        return {"PIXELTABLE_HOME": str(self.state / "home"), "PIXELTABLE_DB_CONNECT_STR": self.conninfo}

    @property
    def _marker(self) -> Path:
        return self.state / "embedded"

    @property
    def _vectors(self) -> Path:
        return self.state / "vectors.npy"


SIDES: tuple[type[Side], ...] = (Bare, Evervec, CocoIndex, EvervecDefault, Pgai, PgaiTuned, Pixeltable)
"""In the order in which they are measured: evervec between its peers."""
