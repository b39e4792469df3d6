"""How a command runs asynchronous code: once, or until somebody stops it."""

import asyncio
import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NoReturn, TypeVar

from evervec.log import get_logger

T = TypeVar("T")

log = get_logger(__name__)


def exit_without_teardown(action: Callable[[], int]) -> NoReturn:
    """Exit with the code that the action returns, after everything but the teardown of the interpreter.

    In that, a thread of Temporal's client that is about to hand over an answer aborts the process or makes it hang:
    https://github.com/temporalio/sdk-python/issues/300
    """
    code = 1

    def leave() -> None:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):  # nobody reads it any more, or it is closed
                stream.flush()
        os._exit(code)

    atexit.register(leave)  # what is registered first, and so before what the action imports, runs last
    code = action()
    sys.exit(code)


def run_async(main: Coroutine[Any, Any, T]) -> T:
    """Run a command's coroutine; Ctrl-C cancels it."""
    return asyncio.run(main)


def run_until_stopped(main: Coroutine[Any, Any, None], within: float | None = None) -> None:
    """Run a service until it ends, or until Ctrl-C or SIGTERM cancels it: then it has stopped as it should.

    A second signal changes nothing: the service is stopping already, in bounded time. One that may be killed at any
    moment ends `within` so many seconds, come what may.
    """
    asyncio.run(_until_stopped(main, within))


async def _until_stopped(main: Coroutine[Any, Any, None], within: float | None) -> None:
    loop = asyncio.get_running_loop()
    task = loop.create_task(main)
    asked: list[signal.Signals] = []

    def stop(stop_signal: signal.Signals) -> None:
        if not asked:
            asked.append(stop_signal)
            task.cancel()
            if within is not None:
                _end_within(within)

    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop_signal, stop, stop_signal)
    try:
        await task
    except asyncio.CancelledError:
        if not asked:
            raise


def _end_within(seconds: float) -> None:
    """End this process when the time is up; by a thread, since the loop may have ended and something else hang."""
    deadline = threading.Timer(seconds, _give_up, (seconds,))
    deadline.daemon = True
    deadline.start()


def _give_up(seconds: float) -> None:
    log.warning("ended without an orderly stop: a server does not answer", seconds=seconds)
    sys.stderr.flush()
    os._exit(0)
