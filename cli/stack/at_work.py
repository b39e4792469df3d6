"""Whether listener, worker and dashboard do what they are for, seen from those whom they serve."""

import asyncio
from http.client import HTTPConnection, HTTPException

import psycopg
from temporalio.service import RPCError

from evervec import temporal
from evervec.errors import ServiceUnreachableError
from evervec.settings import Settings
from service.health import workers


async def listener_listens(settings: Settings) -> bool:
    """Whether a listener is connected to the database."""
    query = """
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'evervec listener'
    """
    try:
        async with await psycopg.AsyncConnection.connect(settings.database_conninfo, connect_timeout=5) as connection:
            return (await connection.execute(query)).rowcount > 0
    except psycopg.OperationalError:
        return False


async def worker_polls(settings: Settings) -> bool:
    """Whether a worker asks Temporal for work on the task queue."""
    try:
        return bool(await workers(await temporal.connect(settings), settings))
    except (RPCError, ServiceUnreachableError):
        return False


async def dashboard_answers(host: str, port: int) -> bool:
    """Whether the dashboard answers."""
    return await asyncio.to_thread(_is_alive, host, port)


def _is_alive(host: str, port: int) -> bool:
    connection = HTTPConnection(host, port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200  # noqa: PLR2004 - HTTP's OK
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
