"""The face that every part of the stack has."""

import signal
from abc import ABC, abstractmethod

from cli.stack.child import Child


class Service(ABC):
    """A child process that can be started again and again."""

    name: str

    def __init__(self) -> None:
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._child.pid if self._child else None

    @abstractmethod
    async def start(self) -> None:
        """Stop what an earlier run left, start, wait until it answers."""

    @abstractmethod
    def describe(self) -> str:
        """What it is and where, in one line, without secrets."""

    async def stop(self) -> None:
        """Stop in bounded time; nothing happens when it is not running."""
        if self._child:
            await self._child.stop()

    async def wait(self) -> str:
        """Wait until it has ended, and say how."""
        if self._child is None:
            raise RuntimeError(f"{self.name} was never started")
        code = await self._child.wait()
        if code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        said = self._child.log_tail(1)
        reason = f", saying {said!r}" if said.startswith("evervec: ") else ""
        return f"ended with code {code}{reason}"
