"""The way to Temporal, made when it is first needed and again when it was away."""

import asyncio
import time

from temporalio.client import Client

from evervec.errors import ServiceUnreachableError
from evervec.settings import Settings
from evervec.temporal import connect

REST_SECONDS = 3.0
"""How long nobody tries again where Temporal did not answer: pages do not wait for it meanwhile."""


class TemporalLink:
    """One client for all."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: Client | None = None
        self._connecting = asyncio.Lock()
        self._away: tuple[float, ServiceUnreachableError] | None = None

    async def client(self) -> Client:
        """The client. ServiceUnreachableError when Temporal is away, at once where it just was."""
        async with self._connecting:
            if self._client is None:
                if self._away and time.monotonic() < self._away[0]:
                    raise self._away[1]
                try:
                    self._client = await connect(self._settings)
                except ServiceUnreachableError as error:
                    self._away = (time.monotonic() + REST_SECONDS, error)
                    raise
            return self._client
