"""What the shell completes, beside commands and options."""

import asyncio

from cli.processes import run_async
from cli.session import open_sources
from evervec.settings import load_settings

SECONDS = 2.0
"""Somebody waits for it with a finger on the key."""


def complete_sources(incomplete: str) -> list[str]:
    """The sources whose names begin so; none, without a word, where the database does not tell them in time."""
    try:
        names = run_async(_names())
    except Exception:  # noqa: BLE001 - an error would be written into the line that somebody types
        return []
    return [name for name in names if name.startswith(incomplete)]


async def _names() -> list[str]:
    async with asyncio.timeout(SECONDS), open_sources(load_settings()) as sources:
        return await sources.names()
