"""A transaction pooler: many clients share one session of the server, a transaction at a time, as with PgBouncer."""

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_SSL_REQUEST = 80877103
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

_READY = b"Z\x00\x00\x00\x05I"


@asynccontextmanager
async def transaction_pooler(conninfo: str, sessions: int = 1) -> AsyncIterator[str]:
    """A pooler in front of the database, with so many sessions of it: the connection string that leads through it."""
    pooler = _Pooler()
    async with AsyncExitStack() as opened:
        for _ in range(sessions):
            session = opened.enter_context(psycopg.connect(conninfo, sslmode="disable", autocommit=True))
            # The session is logged in; from here on its messages are passed on as they are.
            backend = await asyncio.open_connection(sock=socket.socket(fileno=os.dup(session.fileno())))
            opened.callback(backend[1].close)
            pooler.free.put_nowait(backend)
        pooler.version = session.info.parameter_status("server_version") or ""
        server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        parts = conninfo_to_dict(conninfo)
        try:
            yield make_conninfo(host=host, port=port, dbname=parts["dbname"], user=parts.get("user"), sslmode="disable")
        finally:
            server.close()
            for client in [*pooler.clients]:
                client.close()
            await server.wait_closed()


class _Pooler:
    def __init__(self) -> None:
        self.free: asyncio.Queue[Streams] = asyncio.Queue()
        self.version = ""
        self.clients: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._welcome(reader, writer)
            while (message := await _message(reader))[:1] != b"X":
                backend = await self.free.get()
                try:
                    await self._transaction(message, (reader, writer), backend)
                finally:
                    self.free.put_nowait(backend)
        self.clients.discard(writer)
        writer.close()

    async def _welcome(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            startup = await reader.readexactly(length - 4)
            if struct.unpack("!I", startup[:4])[0] != _SSL_REQUEST:
                break
            writer.write(b"N")
        writer.write(b"R" + struct.pack("!II", 8, 0))
        for name, value in ("server_encoding", "UTF8"), ("client_encoding", "UTF8"), ("server_version", self.version):
            text = f"{name}\0{value}\0".encode()
            writer.write(b"S" + struct.pack("!I", len(text) + 4) + text)
        writer.write(b"K" + struct.pack("!III", 12, 1, 1) + _READY)
        await writer.drain()

    async def _transaction(self, message: bytes, client: Streams, backend: Streams) -> None:
        """Pass on messages until the server is idle again."""
        while True:
            backend[1].write(message)
            if message[:1] in {b"Q", b"S"}:
                answer = b""
                while answer[:1] != b"Z":
                    answer = await _message(backend[0])
                    if answer[:1] != b"A":  # a notification that nobody asked for is thrown away
                        client[1].write(answer)
                await client[1].drain()
                if answer == _READY:
                    return
            message = await _message(client[0])


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    return head + await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
