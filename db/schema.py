"""The database contract, brought into a database."""

import re
from functools import cache
from importlib.resources import files

from db.connection import connect, translated


async def apply_schema(conninfo: str) -> list[str]:
    """Run `triggers.sql`, as `psql -f` would. Returns the server's notices, such as roles it may not create."""
    notices: list[str] = []
    connection = await connect(conninfo, application_name="evervec init")
    connection.add_notice_handler(lambda diagnosis: notices.append(diagnosis.message_primary or ""))
    async with connection:
        with translated():
            await connection.execute(_triggers())
    return notices


@cache
def schema_version() -> int:
    """The version of the schema that `triggers.sql` makes."""
    found = re.search(r"INTO evervec\.instance \(schema_version\) VALUES \((\d+)\)", _triggers().decode())
    assert found  # noqa: S101 - the file is ours
    return int(found[1])


def _triggers() -> bytes:
    return files("db").joinpath("triggers.sql").read_bytes()
