"""`evervec listener` and `evervec worker`: the two processes that do the work."""

from cli.processes import run_until_stopped
from evervec.memory import limit_arenas
from evervec.settings import load_settings

STOP_SECONDS = 45.0
"""A worker gives what it has begun 30 s; what takes longer waits for a server that hangs."""


def listener() -> None:
    """Hear of changed rows and start their workflows."""
    limit_arenas()
    from listener.daemon import run_listener  # noqa: PLC0415 - a command loads what it runs, no more

    run_until_stopped(run_listener(load_settings()), within=STOP_SECONDS)


def worker() -> None:
    """Embed changed items and write their vectors back."""
    limit_arenas()
    from service.worker import run_worker  # noqa: PLC0415 - a command loads what it runs, no more

    run_until_stopped(run_worker(load_settings()), within=STOP_SECONDS)
