"""The process: bind, serve, stop in bounded time."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from dashboard.app import make_app
from dashboard.context import open_context
from dashboard.guard import Address, Guard
from evervec.errors import ConfigurationError
from evervec.log import get_logger
from evervec.settings import Settings

STOP_SECONDS = 2
"""How long requests may take to end, live streams among them, before they are cut off."""

log = get_logger(__name__)


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the command, which cancels what it runs."""
        yield


async def run_dashboard(settings: Settings) -> None:
    """Serve until cancelled.

    ConfigurationError where address and token do not go together or the address is taken, ServiceUnreachableError
    when PostgreSQL does not answer at the start. Later pages say what is away.
    """
    with _bound(Guard(settings).address) as listening:
        async with open_context(settings) as context:
            config = uvicorn.Config(
                make_app(context),
                log_config=None,
                log_level="warning",
                access_log=False,  # a URL holds keys
                server_header=False,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
            server = _Server(config)
            address = Address(*listening.getsockname()[:2])
            log.info("dashboard ready", url=address.url, token="asked for" if not context.guard.is_open else "none")
            serving = asyncio.create_task(server.serve(sockets=[listening]))
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.should_exit = True
                await serving
                raise


@contextmanager
def _bound(address: Address) -> Iterator[socket.socket]:
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        listening = socket.create_server(found[0][4][:2], family=found[0][0], backlog=512)
    except OSError as error:
        raise ConfigurationError(
            f"the dashboard cannot listen on {address.host}:{address.port}: {error.strerror or error}; "
            "set EVERVEC_DASHBOARD_ADDRESS to another host:port"
        ) from None
    with listening:
        yield listening
