"""All checks, one after the other."""

import os
from collections.abc import AsyncIterator

from db.diagnosis import Diagnosis
from evervec.errors import ConfigurationError, EvervecError
from evervec.settings import Settings, load_settings
from service.doctor.check import Check, fault, fine
from service.doctor.database import SCHEMA, check_installation, check_listening, check_server
from service.doctor.environment import check_environment, check_model_cache
from service.doctor.models import check_models
from service.doctor.sources import check_sources
from service.doctor.temporal import check_temporal


async def diagnose(*, models: bool = True) -> AsyncIterator[Check]:
    """Check this process's environment, and all that it leads to."""
    for check in check_environment(os.environ):
        yield check
    try:
        settings = load_settings()
    except ConfigurationError as error:
        yield fault("settings", str(error), "correct it; `evervec --help` lists the variables")
        return
    yield fine("settings", "every value can be used")
    yield check_model_cache(settings)
    async for check in examine(settings, models=models):
        yield check


async def examine(settings: Settings, *, models: bool) -> AsyncIterator[Check]:
    """Check the database and Temporal of some settings, one thing after the other.

    What cannot be looked at, since something before it is wrong, is left out. With `models` the models of all sources
    are loaded, which may take long.
    """
    instance: str | None = None
    try:
        async with await Diagnosis.open(settings.database_conninfo) as database:
            async for check in _check_database(database, settings, models=models):
                yield check
                if check.name == SCHEMA and check.ok:
                    instance = (await database.installation()).instance
    except EvervecError as error:
        yield fault("database", str(error), "start PostgreSQL, or correct EVERVEC_DATABASE_URL")
    async for check in check_temporal(settings, instance):
        yield check


async def _check_database(database: Diagnosis, settings: Settings, *, models: bool) -> AsyncIterator[Check]:
    server = await database.server()
    for check in check_server(server):
        yield check
    async for check in check_listening(database, server, settings):
        yield check
    installed = False
    async for check in check_installation(database, server):
        installed = installed or (check.name == SCHEMA and check.ok)
        yield check
    if installed:
        facts = await database.sources()
        async for check in check_sources(database, facts):
            yield check
        if models:
            async for check in check_models(facts, settings):
                yield check
