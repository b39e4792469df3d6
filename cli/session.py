"""What a command works with: the settings, and the database's sources."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from db.connection import open_pool
from db.sources import Sources
from evervec.settings import LogLevel, Settings, load_settings

POOL_SIZE = 2


def command_settings() -> Settings:
    """The environment's settings. A command that ends by itself logs warnings only, unless told otherwise."""
    settings = load_settings()
    if "log_level" not in settings.model_fields_set:
        logging.getLogger().setLevel(LogLevel.WARNING)
    return settings


@asynccontextmanager
async def open_sources(settings: Settings) -> AsyncIterator[Sources]:
    """The sources of the settings' database."""
    async with open_pool(settings.database_conninfo, size=POOL_SIZE, application_name="evervec cli") as pool:
        yield Sources(pool)
