"""Texts of a database that knows no characters (SQL_ASCII): whatever bytes it holds, they can be read."""

from typing import Any

from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.adapt import Loader

NO_ENCODING = "SQL_ASCII"
_TYPES = ("text", "varchar", "bpchar", "name")


class BytesLoader(Loader):
    """Reads UTF-8; each byte that is none becomes half a surrogate pair, which the encoder refuses as no character."""

    def load(self, data: Buffer) -> str:
        """The text."""
        return bytes(data).decode(errors="surrogateescape")


def knows_characters(connection: AsyncConnection[Any]) -> bool:
    """Whether the database has an encoding, and so holds nothing that is no text."""
    return connection.info.parameter_status("server_encoding") != NO_ENCODING


def register_bytes(connection: AsyncConnection[Any]) -> None:
    """Have the connection read texts as they come: asked for UTF-8, the server fails a query that finds other bytes."""
    for name in _TYPES:
        connection.adapters.register_loader(name, BytesLoader)
