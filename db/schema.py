"""The database contract, brought into a database."""

from importlib.resources import files

from db.connection import connect, translated


async def apply_schema(conninfo: str) -> list[str]:
    """Run `triggers.sql`, as `psql -f` would. Returns the server's notices, such as roles it may not create."""
    sql = files("db").joinpath("triggers.sql").read_bytes()
    notices: list[str] = []
    connection = await connect(conninfo, application_name="evervec init")
    connection.add_notice_handler(lambda diagnosis: notices.append(diagnosis.message_primary or ""))
    async with connection:
        with translated():
            await connection.execute(sql)
    return notices
