"""A thread of its own for work that blocks."""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


class WorkThread:
    """Calls one function after the other, in the order in which they were handed in.

    A daemon: work that hangs, such as a download, must not keep the process from ending.
    """

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def call(self, function: Callable[[], T]) -> T:
        """What the function returns or raises, there."""
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits, and the thread lives on
                future.set_exception(error)

        self._work.put(work)
        return await asyncio.wrap_future(future)

    async def stop(self, seconds: float) -> None:
        """End the thread; after so many seconds leave it to itself."""
        self._work.put(None)
        await asyncio.to_thread(self._thread.join, seconds)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
