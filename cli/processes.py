"""How a command runs asynchronous code: once, or until somebody stops it."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it."""
    return asyncio.run(main)


def run_until_stopped(main: Coroutine[Any, Any, None]) -> None:
    """Run a service until it ends, or until Ctrl-C or SIGTERM cancels it: then it has stopped as it should.

    A second signal changes nothing: the service is stopping already, in bounded time.
    """
    asyncio.run(_until_stopped(main))


async def _until_stopped(main: Coroutine[Any, Any, None]) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main)
    asked: list[signal.Signals] = []

    def stop(stop_signal: signal.Signals) -> None:
        if not asked:
            asked.append(stop_signal)
            task.cancel()

    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop_signal, stop, stop_signal)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise
