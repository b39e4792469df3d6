"""The way to Temporal, and what is said when it is barred."""

import asyncio
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from evervec import temporal
from evervec.errors import ConfigurationError, ServiceUnreachableError
from evervec.settings import Settings
from evervec.temporal import connect, ensure_search_attributes, fits_workflow_id, start_item_workflow
from tests.integration.listener_lab import Proxy
from tests.integration.temporal_lab import new_namespace

TLS = Path(__file__).with_name("tls")
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
TEXT = IndexedValueType.INDEXED_VALUE_TYPE_TEXT


async def test_attributes_are_registered_by_many_at_once(temporal_address: str) -> None:
    client = await new_namespace(temporal_address)
    await asyncio.gather(*(ensure_search_attributes(client) for _ in range(4)))
    await ensure_search_attributes(client)
    assert (await client.count_workflows("EvervecSource = 'items' AND EvervecState = 'fresh'")).count == 0


async def test_only_what_is_missing_is_registered(temporal_address: str) -> None:
    client = await new_namespace(temporal_address)
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(namespace=client.namespace, search_attributes={"EvervecState": KEYWORD})
    )
    await ensure_search_attributes(client)


async def test_an_attribute_of_another_type_is_done_without(temporal_address: str) -> None:
    client = await new_namespace(temporal_address)
    await client.operator_service.add_search_attributes(
        AddSearchAttributesRequest(namespace=client.namespace, search_attributes={"EvervecState": TEXT})
    )
    with capture_logs() as logs:
        assert not await ensure_search_attributes(client)
    assert "of type Keyword" in logs[0]["reason"]


def refuse(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the operator API answer as it does to somebody who may not use it."""

    async def refused(*_args: object) -> None:
        raise RPCError("Request unauthorized.", RPCStatusCode.PERMISSION_DENIED, b"")

    monkeypatch.setattr(client.operator_service, "list_search_attributes", refused)


async def test_who_may_not_register_is_told_the_command(temporal_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await new_namespace(temporal_address)
    refuse(client, monkeypatch)
    with capture_logs() as logs:
        assert not await ensure_search_attributes(client)
    assert (
        f"temporal operator search-attribute create --namespace {client.namespace} "
        "--name EvervecSource --type Keyword --name EvervecState --type Keyword"
    ) in logs[0]["reason"]


async def test_who_may_not_register_can_work_where_others_have(
    temporal_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await new_namespace(temporal_address)
    assert await ensure_search_attributes(client)
    refuse(client, monkeypatch)
    assert await ensure_search_attributes(client)


async def test_a_namespace_that_does_not_exist_is_an_error(temporal_address: str) -> None:
    client = await connect(Settings(temporal_address=temporal_address, temporal_namespace="nowhere"))
    with pytest.raises(ConfigurationError, match="no namespace 'nowhere'"):
        await ensure_search_attributes(client)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:7233"])
async def test_an_address_where_nobody_answers_is_one_clear_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "CONNECT_SECONDS", 60.0)  # a name server may take its time to know no such host
    with pytest.raises(ServiceUnreachableError, match=rf"does not answer at {address} \(.+\): start it") as caught:
        await connect(Settings(temporal_address=address))
    assert "\n" not in str(caught.value)


async def test_an_address_where_somebody_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporal, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ServiceUnreachableError, match=f"does not answer at {address}"):
            await connect(Settings(temporal_address=address))


async def test_a_malformed_address_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="EVERVEC_TEMPORAL_ADDRESS"):
        await connect(Settings(temporal_address="not an address"))


async def test_a_server_that_went_away_is_a_service_that_cannot_be_reached(
    temporal_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(temporal_address=temporal_address)
    client = await connect(settings)

    async def away(*_args: object, **_options: object) -> None:
        raise RPCError("tcp connect error", RPCStatusCode.UNAVAILABLE, b"")

    monkeypatch.setattr(client, "start_workflow", away)
    with pytest.raises(ServiceUnreachableError, match=f"does not answer at .*{temporal_address}"):
        await start_item_workflow(client, settings, "lab", "items", "1", content_hash=None)


@asynccontextmanager
async def tls_in_front_of(address: str, *, ask_for_certificate: bool) -> AsyncIterator[str]:
    """The server as server.evervec.test behind TLS: its address."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=TLS / "ca.pem")
    context.load_cert_chain(TLS / "server.pem", TLS / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED if ask_for_certificate else ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    host, port = address.split(":")

    connections: set[asyncio.Task[None] | None] = set()

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        inner_reader, inner_writer = await asyncio.open_connection(host, port)
        try:
            await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, inner_writer):
                end.transport.abort()
                with suppress(OSError):
                    await end.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in filter(None, connections):
            connection.cancel()
        await asyncio.gather(*filter(None, connections), return_exceptions=True)


async def test_tls_settings_are_used(temporal_address: str) -> None:
    async with tls_in_front_of(temporal_address, ask_for_certificate=True) as address:
        trusting = {
            "temporal_address": address,
            "temporal_tls_server_root_ca_cert": TLS / "ca.pem",
            "temporal_tls_domain": "server.evervec.test",
        }
        certified = trusting | {
            "temporal_tls_client_cert": TLS / "client.pem",
            "temporal_tls_client_private_key": TLS / "client.key",
        }
        client = await connect(Settings.model_validate(certified))
        await client.count_workflows()
        for missing in ("temporal_tls_server_root_ca_cert", "temporal_tls_domain"):
            less = {name: value for name, value in certified.items() if name != missing}
            with pytest.raises(ServiceUnreachableError, match="TLS settings"):
                await connect(Settings.model_validate(less))
        with pytest.raises(ServiceUnreachableError, match="TLS settings"):
            await connect(Settings.model_validate(trusting))


async def test_an_api_key_is_sent_and_only_over_tls(temporal_address: str) -> None:
    with_key = {"temporal_address": temporal_address, "temporal_api_key": "secret"}
    with pytest.raises(ServiceUnreachableError, match="TLS settings") as caught:
        await connect(Settings.model_validate(with_key))
    assert "secret" not in str(caught.value)
    async with tls_in_front_of(temporal_address, ask_for_certificate=False) as address:
        with_key |= {
            "temporal_address": address,
            "temporal_tls_server_root_ca_cert": str(TLS / "ca.pem"),
            "temporal_tls_domain": "server.evervec.test",
        }
        client = await connect(Settings.model_validate(with_key))
        assert client.api_key == "secret"
        await client.count_workflows()


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["temporal_tls_server_root_ca_cert"], "EVERVEC_TEMPORAL_TLS_SERVER_ROOT_CA_CERT"),
        (["temporal_tls_client_cert", "temporal_tls_client_private_key"], "EVERVEC_TEMPORAL_TLS_CLIENT_CERT"),
    ],
)
@pytest.mark.parametrize("make", [Path.touch, lambda _path: None], ids=["empty", "missing"])
async def test_a_file_that_is_no_certificate_is_named(
    tmp_path: Path, names: list[str], told: str, make: Callable[[Path], None]
) -> None:
    path = tmp_path / "file.pem"
    make(path)
    settings = Settings.model_validate(dict.fromkeys(names, path))
    with pytest.raises(ConfigurationError, match=told):
        await connect(settings)


async def test_the_longest_key_that_fits_can_be_used(temporal_address: str) -> None:
    settings = Settings(temporal_address=temporal_address, task_queue=uuid.uuid4().hex)
    client = await connect(settings)
    await ensure_search_attributes(client)
    key = "ü" * 600
    while not fits_workflow_id("lab", "items", key):
        key = key[:-1]
    handle = await start_item_workflow(client, settings, "lab", "items", key, content_hash=None)
    await handle.terminate()
    with pytest.raises(RPCError):
        await start_item_workflow(client, settings, "lab", "items", f"{key}ü", content_hash=None)


async def test_a_connection_that_breaks_in_the_middle_of_a_call_is_temporal_away(
    temporal_address: str,
) -> None:
    host, _, port = temporal_address.rpartition(":")
    proxy = Proxy(host, int(port))
    await proxy.start()
    client = await connect(Settings(temporal_address=proxy.address))
    proxy.freeze()
    call = asyncio.create_task(ensure_search_attributes(client))
    assert await asyncio.wait((call,), timeout=0.5) == (set(), {call})
    await proxy.stop()
    with pytest.raises(ServiceUnreachableError, match="does not answer"):
        await call
