"""A watched table, and what the doctor says of it."""

from evervec.settings import Settings
from service.doctor.check import Check
from service.doctor.diagnose import examine

TABLE = "CREATE TABLE items (id bigint PRIMARY KEY, name text, description text, active boolean DEFAULT true)"
WATCH = "SELECT evervec.watch('items', '{name,description}', active => 'active', model => 'stub:8')"


async def checks_of(settings: Settings) -> dict[str, Check]:
    """What the doctor says, by the names of the checks."""
    return {check.name: check async for check in examine(settings, models=True)}


async def found(settings: Settings, name: str, detail: str, remedy: str) -> None:
    """The doctor finds this fault and says this."""
    check = (await checks_of(settings))[name]
    assert not check.ok
    assert detail in check.detail
    assert remedy in (check.remedy or "")


async def advised(settings: Settings, name: str, detail: str, remedy: str) -> None:
    """The doctor finds nothing wrong, but advises this."""
    check = (await checks_of(settings))[name]
    assert check.ok
    assert detail in check.detail
    assert remedy in (check.remedy or "")
