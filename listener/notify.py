"""What comes in by NOTIFY: read it, and never stop reading."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Protocol

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from evervec.log import get_logger
from listener.debounce import Clock, Key

IDLE_SECONDS = 5.0
"""How long nothing may come in before the connection is asked whether it lives."""
PING_SECONDS = 5.0
READ_SECONDS = 0.01
"""The socket is read at most once in this time: what comes in meanwhile is taken in at once."""

# PostgreSQL has no NUL in its texts: such a name is not one of ours, and could not be looked up.
_Text = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$")]

_log = get_logger(__name__)


class _Ring(BaseModel):
    model_config = ConfigDict(strict=True)

    source: _Text
    items: list[tuple[_Text, _Text | None]]


class Stream(Protocol):
    """A connection that listens."""

    async def payloads(self, seconds: float) -> list[str]:
        """What came in, as soon as there is something; empty when nothing did for so long."""

    async def ping(self, seconds: float) -> None:
        """ServiceUnreachableError when the server does not answer within this time."""


class Hearer(Protocol):
    """Who wants to know of changes. Never waits, so that the socket is always drained."""

    def changed(self, key: Key, content_hash: str) -> bool:
        """The item's content has this hash now; returns whether that was of use."""

    def gone(self, key: Key) -> bool:
        """The item was deleted; returns whether that was of use."""


def read_payload(payload: str) -> list[tuple[Key, str | None]] | None:
    """The items of a notification, each with its hash (None: deleted); None when the payload is not ours.

    Anybody may notify on any channel, so nothing is taken for granted.
    """
    try:
        ring = _Ring.model_validate_json(payload)
    except ValidationError:
        return None
    return [(Key(ring.source, item_key), content_hash) for item_key, content_hash in ring.items]


class Ear:
    """Drains one connection after another into `hearer`, and rings `bell` whenever something came in.

    Calls `useless` for each notification of ours that was of no use.
    """

    def __init__(
        self,
        hearer: Hearer,
        bell: asyncio.Event,
        useless: Callable[[], None] = lambda: None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._hearer = hearer
        self._bell = bell
        self._useless = useless
        self._clock = clock
        self.heard = 0
        """Notifications so far."""
        self.garbage = 0
        """Those of them that were not ours."""

    async def run(self, stream: Stream) -> None:
        """Listen until the connection is lost (ServiceUnreachableError)."""
        read_at = float("-inf")
        while True:
            await asyncio.sleep(max(0.0, read_at + READ_SECONDS - self._clock()))
            payloads = await stream.payloads(IDLE_SECONDS)
            read_at = self._clock()
            for payload in payloads:
                self.hear(payload)
            if not payloads:
                await stream.ping(PING_SECONDS)

    def hear(self, payload: str) -> None:
        """Take in one notification; one that can't be read is a ring all the same."""
        self.heard += 1
        self._bell.set()
        items = read_payload(payload)
        if items is None:
            self._count_garbage(len(payload))
            return
        of_use = [self._take_in(key, content_hash) for key, content_hash in items]
        if not any(of_use):
            self._useless()

    def _take_in(self, key: Key, content_hash: str | None) -> bool:
        return self._hearer.gone(key) if content_hash is None else self._hearer.changed(key, content_hash)

    def _count_garbage(self, length: int) -> None:
        if not self.garbage:
            _log.warning("somebody else notifies on our channel; such notifications count as a ring", length=length)
        self.garbage += 1
