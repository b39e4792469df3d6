"""What the sides of the comparison have in common: processes, a database with the rows, and a clock."""

import os
import resource
import shutil
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, LiteralString

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from cli.stack.postgres import PostgresServer
from cli.stack.temporal import TemporalServer
from tests.bench.results import ROOT

PROGRAMS = Path(__file__).parent
LONGEST_SECONDS = 900.0
STOP_SECONDS = 20.0
POLL_SECONDS = 0.05
FOREIGN = ("EVERVEC_", "SENTENCE_TRANSFORMER_", "EMBEDDING_", "PG", "COCOINDEX_", "OPENAI_", "PIXELTABLE_")
"""Variables that would set up a side in another way than its class here says."""

Vectors = NDArray[np.float32]


class SideError(Exception):
    """One side could not be measured: which, why and where to look."""


@dataclass(frozen=True)
class Bench:
    """What all sides share."""

    postgres: PostgresServer
    temporal: TemporalServer
    folder: Path
    """Where the peers' environments are, and where logs and state go."""
    model: str
    """The folder of all-MiniLM-L6-v2."""
    threads: int

    def environment(self) -> dict[str, str]:
        """What every process is told: the same model and threads, no model hub, no telemetry."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
        return inherited | {
            "BENCH_MODEL": self.model,
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "COCOINDEX_DISABLE_USAGE_TRACKING": "1",
            "DD_TRACE_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }


class Side(ABC):
    """One of those that are measured, and its processes."""

    name: ClassVar[str]
    label: ClassVar[str]
    """As the table shows it."""
    starts: ClassVar[bool] = True
    """Whether the time holds a start-up."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.log = bench.folder / "log" / f"{self.name}.log"
        self.state = bench.folder / "state" / self.name
        """What it keeps outside its database, and what is handed to it."""
        self.cpu_seconds = 0.0
        """Processor time of the processes of the last measurement."""
        self._processes: list[subprocess.Popen[bytes]] = []

    @abstractmethod
    def measure(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        """Embed the texts: the seconds that it took, and the vectors."""

    def program(self, environment: str, name: str) -> str:
        """The path of a program in a peer's environment."""
        path = self.bench.folder / environment / "bin" / name
        if not path.exists():
            raise SideError(f"{self.label} is not installed, {path} is missing: `make bench-peers` installs it")
        return str(path)

    def start(self, *command: str, **variables: str) -> None:
        """Start a process that `stop` ends; its output goes to the side's log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = self.bench.environment() | variables
        with self.log.open("ab") as log:
            self._processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))

    def run(self, *command: str, **variables: str) -> None:
        """Run a process to its end."""
        self.start(*command, **variables)
        self.finish()

    def finish(self) -> None:
        """Wait until the process that was started last ends by itself."""
        self._check_code(self._processes.pop().wait(LONGEST_SECONDS))

    def check_processes(self) -> None:
        """Raise the SideError of a process that has failed."""
        for process in self._processes:
            self._check_code(process.poll() or 0)

    def stop(self) -> None:
        """End what runs."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def fresh_state(self) -> Path:
        """An empty folder for its state."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir(parents=True)
        return self.state

    def log_line(self) -> str:
        """The last thing that it said."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.exists() else []
        last = next((line for line in reversed(lines) if line.strip()), "nothing")
        return f"its log ends with {last.strip()!r} (see {self.log})"

    def _check_code(self, code: int) -> None:
        if code:
            raise SideError(f"{self.label} ended with code {code}: {self.log_line()}")


class Pipeline(Side):
    """A side that embeds the rows of a table: `items (id bigint primary key, body text)`, in a database of its own."""

    _connection: psycopg.Connection[tuple[Any, ...]]

    def measure(self, texts: Sequence[str]) -> tuple[float, Vectors]:
        """From rows without vectors, and no process running, to the last vector in the database."""
        with self._database(texts):
            try:
                self.prepare(texts)
                used = _cpu_seconds()
                started = time.perf_counter()
                self.begin()
                self._wait(len(texts), started + LONGEST_SECONDS)
                seconds = time.perf_counter() - started
                vectors = self.vectors()
            finally:
                self.stop()
            self.cpu_seconds = _cpu_seconds() - used
            return seconds, vectors

    @abstractmethod
    def prepare(self, texts: Sequence[str]) -> None:
        """What is not timed: what one does once for a database."""

    @abstractmethod
    def begin(self) -> None:
        """Declare the embeddings and start the processes that make them."""

    @abstractmethod
    def embedded(self) -> int:
        """How many rows have their vectors in the database."""

    @abstractmethod
    def vectors(self) -> Vectors:
        """All vectors, in the order of the texts."""

    @property
    def conninfo(self) -> str:
        """The connection string of its database."""
        return self.bench.postgres.conninfo(self.name)

    def execute(self, statement: sql.Composed | LiteralString, *parameters: object) -> list[tuple[Any, ...]]:
        """Run one statement in its database; the rows that it returns."""
        cursor = self._connection.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _database(self, texts: Sequence[str]) -> Iterator[None]:
        name = sql.Identifier(self.name)
        with psycopg.connect(self.bench.postgres.conninfo("postgres"), autocommit=True) as server:
            server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(name))
            with psycopg.connect(self.conninfo) as connection, connection.cursor() as cursor:
                cursor.execute("CREATE EXTENSION vector")
                cursor.execute("CREATE TABLE items (id bigint PRIMARY KEY, body text NOT NULL)")
                with cursor.copy("COPY items FROM STDIN") as copy:
                    for row in enumerate(texts, 1):
                        copy.write_row(row)
            # One for all questions: a new one for each would cost the side that is measured its share of a core.
            with psycopg.connect(self.conninfo, autocommit=True) as self._connection:
                self.execute("VACUUM ANALYZE items")
                yield
            server.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def _wait(self, rows: int, deadline: float) -> None:
        while (count := self.embedded()) < rows:
            self.check_processes()
            if time.perf_counter() > deadline:
                raise SideError(f"{self.label} embedded {count} of {rows} rows in time: {self.log_line()}")
            time.sleep(POLL_SECONDS)


def _cpu_seconds() -> float:
    """Of the processes that were started here and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


class InTable(Pipeline):
    """A side whose vectors are in a column `embedding` of a table of its database."""

    table: ClassVar[str]

    def embedded(self) -> int:
        query = sql.SQL("SELECT count(embedding) FROM {}").format(sql.Identifier(self.table))
        try:
            [(count,)] = self.execute(query)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
            return 0
        return int(count)

    def vectors(self) -> Vectors:
        query = sql.SQL("SELECT embedding::real[] FROM {} ORDER BY id").format(sql.Identifier(self.table))
        return np.array([vector for (vector,) in self.execute(query)], dtype=np.float32)
