"""Certificates, made on the spot, and servers that speak TLS with them."""

import asyncio
import os
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

HAPROXY = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
needs_haproxy = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed: apt-get install haproxy")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
"""What a PostgreSQL client says first when it wants TLS."""
HAPROXY_CONFIG = """
defaults
  mode http
  timeout connect 5s
  timeout client 1m
  timeout server 1m
frontend outside
  bind fd@{socket} ssl crt {both} alpn h2 {verify}
  {deny}
  default_backend temporal
backend temporal
  server one {to} proto h2
"""
# As a gRPC server does: the status of the call, and no body.
REFUSAL = (
    "http-request return status 200 content-type application/grpc hdr grpc-status 16 hdr grpc-message unauthorized "
    "unless {{ req.hdr(authorization) -m str 'Bearer {}' }}"
)

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, in PEM files."""

    cert: Path
    key: Path


class Authority:
    """A certificate authority, good for a day."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self.root = self._files(name)
        subject = ("-subj", f"/CN={name}")
        _openssl("req", "-x509", *_NEW_KEY, "-days", "1", *subject, *self._out(self.root))

    def issue(self, name: str, *alternatives: str) -> Certificate:
        """A certificate for a host or a client, for more names too, such as `IP:127.0.0.1`."""
        issued, request, extensions = self._files(f"{self._name}-{name}"), *map(self._file, ("request", "extensions"))
        names = ",".join((f"DNS:{name}", *alternatives))
        extensions.write_text(f"subjectAltName={names}\nbasicConstraints=critical,CA:FALSE\n")
        _openssl("req", "-new", *_NEW_KEY, "-subj", f"/CN={name}", "-keyout", str(issued.key), "-out", str(request))
        signer = ("-CA", str(self.root.cert), "-CAkey", str(self.root.key), "-CAcreateserial", "-days", "1")
        _openssl(
            *("x509", "-req", "-in", str(request), *signer),
            *("-extfile", str(extensions), "-out", str(issued.cert)),
        )
        return issued

    def _files(self, name: str) -> Certificate:
        return Certificate(self._file(f"{name}.pem"), self._file(f"{name}.key"))

    def _file(self, name: str) -> Path:
        return self._folder / name

    @staticmethod
    def _out(files: Certificate) -> tuple[str, ...]:
        return ("-keyout", str(files.key), "-out", str(files.cert))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@asynccontextmanager
async def haproxy_in_front_of(
    address: str, folder: Path, server: Certificate, *, clients: Path | None = None, api_key: str | None = None
) -> AsyncIterator[str]:
    """HAProxy, which ends TLS before a gRPC server: its address.

    It asks for a client's certificate where the authority `clients` is given, and for an API key where one is.
    """
    assert HAPROXY
    both = folder / "haproxy.pem"
    both.write_text(server.cert.read_text() + server.key.read_text())
    verify = f"ca-file {clients} verify required" if clients else ""
    deny = REFUSAL.format(api_key) if api_key else ""
    config, log = folder / "haproxy.cfg", folder / "haproxy.log"
    with socket.create_server(("127.0.0.1", 0)) as outside, log.open("wb") as stderr:
        # It inherits the socket, on which connections wait until it is ready.
        config.write_text(
            HAPROXY_CONFIG.format(socket=outside.fileno(), both=both, verify=verify, deny=deny, to=address)
        )
        process = await asyncio.create_subprocess_exec(
            HAPROXY, "-db", "-f", str(config), pass_fds=[outside.fileno()], stderr=stderr
        )
        try:
            yield f"127.0.0.1:{outside.getsockname()[1]}"
        finally:
            assert process.returncode is None, log.read_text()
            process.kill()
            await process.wait()


class TlsForPostgres:
    """Ends TLS before a PostgreSQL server that speaks none itself, and takes no connection without."""

    def __init__(self, host: str, port: int, certificate: Certificate, *, clients: Path | None = None) -> None:
        self._target = (host, port)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=clients)
        self._context.load_cert_chain(certificate.cert, certificate.key)
        if clients:
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._links: set[asyncio.Task[None] | None] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[int]:
        """Take connections: the port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for link in filter(None, self._links):
                link.cancel()
            await asyncio.gather(*filter(None, self._links), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.add(asyncio.current_task())
        with suppress(OSError, asyncio.CancelledError, asyncio.IncompleteReadError):
            try:
                if await reader.readexactly(8) == SSL_REQUEST:
                    writer.write(b"S")
                    await writer.start_tls(self._context)
                    await self._link(reader, writer)
            finally:
                writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(*self._target)
        try:
            await asyncio.gather(_copy(reader, there), _copy(back, writer))
        finally:
            there.transport.abort()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while data := await source.read(65536):
        target.write(data)
        await target.drain()
    target.transport.abort()
