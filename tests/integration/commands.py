"""`evervec …` in a process of its own, as a user runs it; commands that end by themselves share one.

A process for each of some hundred commands would take longer than the commands. Run as a program, this module reads
requests and writes what each command said, a line of JSON each.
"""

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self

from cli.errors import exit_code_of
from evervec.settings import Settings

FOREIGN = ("EVERVEC_", "SENTENCE_TRANSFORMER_", "EMBEDDING_")


class Answer(NamedTuple):
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which holds one document and nothing else."""
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """Standard error, which holds one line."""
        [line] = self.err.splitlines()
        return line


class CommandProcess:
    """Runs commands, one after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Self]:
        """The process, until the block ends."""
        server = cls()
        try:
            yield server
        finally:
            server._process.communicate(timeout=30)

    def run(self, arguments: tuple[str, ...], variables: dict[str, str]) -> Answer:
        """Run a command to its end, in a clean environment with these variables."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([arguments, variables]) + "\n")
        self._process.stdin.flush()
        return Answer(*json.loads(self._process.stdout.readline()))


class Cli:
    """The commands on one database."""

    def __init__(self, process: CommandProcess, settings: Settings) -> None:
        self._process = process
        self.variables = {
            "EVERVEC_DATABASE_URL": settings.database_conninfo,
            "EVERVEC_TEMPORAL_ADDRESS": settings.temporal_address,
            "EVERVEC_TASK_QUEUE": settings.task_queue,
        }

    async def __call__(self, *arguments: str, **variables: str) -> Answer:
        """Run a command, with some more environment."""
        async with asyncio.timeout(120):
            return await asyncio.to_thread(self._process.run, arguments, self.variables | variables)

    async def ok(self, *arguments: str, **variables: str) -> Answer:
        """Run a command that succeeds."""
        answer = await self(*arguments, **variables)
        assert answer.code == 0, answer
        return answer


def _serve() -> None:
    """Answer the requests on standard input."""
    from cli.main import app  # noqa: PLC0415 - for the process alone

    for request in sys.stdin:
        arguments, variables = json.loads(request)
        for name in [name for name in os.environ if name.startswith(FOREIGN)]:
            del os.environ[name]
        os.environ.update(variables)
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
            code = exit_code_of(partial(app, arguments, standalone_mode=False))
        sys.stdout.write(json.dumps([code, out.getvalue(), err.getvalue()]) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
