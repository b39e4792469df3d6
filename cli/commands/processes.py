"""`evervec listener`, `evervec worker` and `evervec dashboard`: the processes that run until they are stopped."""

from cli.processes import run_until_stopped
from evervec.errors import ConfigurationError
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


def dashboard() -> None:
    """Serve the web page that shows how things stand, and sets to work, on EVERVEC_DASHBOARD_ADDRESS.

    Where others than this machine can reach it, it asks for EVERVEC_DASHBOARD_TOKEN. EVERVEC_DASHBOARD_VIEWER_TOKEN
    is for those who may look and change nothing.
    """
    try:
        from dashboard.server import run_dashboard  # noqa: PLC0415 - an extra, which other commands do without
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'evervec[dashboard]'") from None

    run_until_stopped(run_dashboard(load_settings()))
