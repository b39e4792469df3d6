"""Temporal behind a proxy that ends TLS: client certificates, an API key, and the whole pipeline through it."""

from pathlib import Path
from typing import Any

import pytest
from temporalio.service import RPCError, RPCStatusCode

from evervec.errors import ServiceUnreachableError
from evervec.settings import Settings
from evervec.temporal import connect
from tests.integration.pipeline import Site, new_table
from tests.integration.tls_lab import Authority, haproxy_in_front_of, needs_haproxy, needs_openssl

pytestmark = [needs_haproxy, needs_openssl]

HOST = "temporal.evervec.test"
KEY = "an-api-key-that-nobody-guesses"


async def test_the_pipeline_works_through_mtls_with_an_api_key(
    database: str, temporal_address: str, tmp_path: Path
) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    client, stranger = ours.issue("client"), theirs.issue("client")
    async with haproxy_in_front_of(
        temporal_address, tmp_path, ours.issue(HOST), clients=ours.root.cert, api_key=KEY
    ) as address:
        through: dict[str, Any] = {
            "temporal_tls_server_root_ca_cert": ours.root.cert,
            "temporal_tls_domain": HOST,
            "temporal_tls_client_cert": client.cert,
            "temporal_tls_client_private_key": client.key,
            "temporal_api_key": KEY,
        }
        async with Site.open(database, address, **through) as site, site.running():
            table = await new_table(site, "column")
            await table.fill(3)
            await table.fresh()

        async def refused(**changes: Any) -> str:
            settings = Settings.model_validate(through | {"temporal_address": address} | changes)
            with pytest.raises(ServiceUnreachableError) as caught:
                await connect(settings)
            assert KEY not in str(caught.value)
            return str(caught.value)

        without = {"temporal_tls_client_cert": None, "temporal_tls_client_private_key": None}
        strange = {"temporal_tls_client_cert": stranger.cert, "temporal_tls_client_private_key": stranger.key}
        for changes in (
            without,
            strange,
            {"temporal_tls_server_root_ca_cert": theirs.root.cert},
            {"temporal_tls_domain": "elsewhere.evervec.test"},
        ):
            told = await refused(**changes)
            assert told.endswith("check EVERVEC_TEMPORAL_ADDRESS and the TLS settings")
            assert "\n" not in told
        for key in (None, "wrong"):
            await refused(temporal_api_key=key)


async def test_the_proxy_asks_for_the_key(temporal_address: str, tmp_path: Path) -> None:
    """What shows that the key was sent: with it calls are answered, after it was taken away they are not."""
    ours = Authority(tmp_path, "ours")
    async with haproxy_in_front_of(temporal_address, tmp_path, ours.issue(HOST), api_key=KEY) as address:
        values = {
            "temporal_address": address,
            "temporal_tls_server_root_ca_cert": ours.root.cert,
            "temporal_tls_domain": HOST,
            "temporal_api_key": KEY,
        }
        client = await connect(Settings.model_validate(values))
        await client.count_workflows()
        client.api_key = "another"
        with pytest.raises(RPCError) as caught:
            await client.count_workflows()
        assert caught.value.status is RPCStatusCode.UNAUTHENTICATED
