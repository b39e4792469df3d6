"""No text of a row and no vector leaves the database, whatever goes wrong: not in a history, not in a log."""

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload

from evervec.messages import SAFETY_NET_WORKFLOW
from evervec.temporal import start_sweep_workflow
from tests.integration.pipeline import DESTINATIONS, WAIT_SECONDS, Site, Table, new_table, until
from tests.integration.program import Program, programs
from tests.integration.sweep_lab import sweep_status
from tests.integration.temporal_lab import new_namespace

CANARY = f"CANARY-{uuid.uuid4().hex}"
FINE, CHECKED, TRIGGERED, POISONED = 1, 2, 3, 4
FAILED = {CHECKED: "violates check constraint", TRIGGERED: "a trigger of the user's", POISONED: "evervec-poison"}


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    """In a namespace of its own, all of whose histories can be read."""
    namespace = (await new_namespace(temporal_address)).namespace
    async with Site.open(database, temporal_address, temporal_namespace=namespace, max_attempts=2) as site:
        yield site


async def refuse_write_backs(table: Table) -> None:
    """Have the database refuse two rows' vectors with messages that quote the row."""
    await table.do(f"ALTER TABLE {{e}} ADD CHECK (embedding IS NULL OR id <> {CHECKED})")
    function = f"refuse_{uuid.uuid4().hex}"
    await table.site.run(
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE secret text; BEGIN "
        f"IF NEW.id = {TRIGGERED} AND NEW.embedding IS NOT NULL THEN "
        f"SELECT name INTO secret FROM public.{table.identifier.as_string()} WHERE id = NEW.id; "
        "RAISE EXCEPTION 'a trigger of the user''s does not like %', secret USING DETAIL = secret, HINT = secret; "
        "END IF; RETURN NEW; END $$"
    )
    trigger = "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OF embedding ON {e} FOR EACH ROW EXECUTE FUNCTION"
    await table.do(f"{trigger} {function}()")


async def test_nothing_of_a_row_leaves_the_database(site: Site, tmp_path: Path) -> None:
    tables = [await new_table(site, destination) for destination in DESTINATIONS]
    listener, worker = (Program(name, site.settings, tmp_path / f"{name}.log") for name in ("listener", "worker"))
    async with programs(listener, worker):
        for table in tables:
            await refuse_write_backs(table)
            await table.do("INSERT INTO {t} SELECT n, %s || n FROM generate_series(1, 3) AS n", CANARY)
            await table.do("INSERT INTO {t} VALUES (%s, %s)", POISONED, f"evervec-poison {CANARY}")
        for table in tables:
            await table.settled()
            await table.do("UPDATE {t} SET description = name WHERE id = %s", FINE)
        for table in tables:
            await table.settled()
            await check_outcome(table)
        assert [await program.end() for program in (listener, worker)] == [0, 0]

    for program in (listener, worker):
        assert not found_canary(program.log.read_bytes())
    done = [line["outcome"] for line in worker.lines("item done")]
    assert done.count("embedded") == 4
    assert done.count("failed") >= 6  # more where a late signal finds it given up
    errors = {line["error"] for line in worker.lines("item not embedded")}
    assert errors >= {"DatabaseError [23514]", "DatabaseError [P0001]", "BadItemError"}

    vectors = [row.vector for table in tables for row in await table.rows() if row.vector]
    await check_histories(site, vectors, workflows=8)


async def test_nothing_of_a_row_leaves_the_database_by_a_sweep(site: Site, tmp_path: Path) -> None:
    tables = [await new_table(site, destination) for destination in DESTINATIONS]
    instance = await site.value("SELECT evervec.instance_id()")
    worker = Program("worker", site.settings, tmp_path / "worker.log")
    async with programs(worker):
        await worker.logged("worker ready")
        for table in tables:
            await refuse_write_backs(table)
            await table.do("INSERT INTO {t} SELECT n, %s || n FROM generate_series(1, 3) AS n", CANARY)
            await table.do("INSERT INTO {t} VALUES (%s, %s)", POISONED, f"evervec-poison {CANARY}")
            await table.do("UPDATE {t} SET description = name WHERE id = %s", FINE)
            handle = await start_sweep_workflow(site.client, site.settings, instance, table.source)
            await asyncio.wait_for(handle.result(), WAIT_SECONDS)
            await check_outcome(table)
            assert not found_canary((await sweep_status(handle)).model_dump_json().encode())
        assert await worker.end() == 0

    assert not found_canary(worker.log.read_bytes())
    done = worker.lines("batch done")
    assert sum(line.get("embedded", 0) for line in done) == len(tables)
    vectors = [row.vector for table in tables for row in await table.rows() if row.vector]
    await check_histories(site, vectors, workflows=len(tables))


async def check_outcome(table: Table) -> None:
    """The good row has its vector, the bad ones are kept as failed with what the database said."""
    outbox = {int(key): (state, attempts, error) for key, state, attempts, error in await table.outbox()}
    assert outbox.keys() == FAILED.keys()
    for key, says in FAILED.items():
        state, attempts, error = outbox[key]
        assert (state, attempts) == ("failed", 2)
        assert says in error
    fine, *bad = await table.rows()
    assert fine.vector is not None
    np.testing.assert_allclose(fine.vector, table.embed(f"{CANARY}1 | {CANARY}1"), rtol=1e-6)
    assert [row.vector for row in bad] == [None] * len(bad)


async def check_histories(site: Site, vectors: list[list[float]], workflows: int) -> None:
    """Every event of every workflow in the namespace is free of texts and vectors."""
    # The listener's schedule starts one of its own once in five minutes.
    ours = f"WorkflowType != '{SAFETY_NET_WORKFLOW}'"

    async def listed() -> bool:
        return (await site.client.count_workflows(ours)).count == workflows

    await until(listed)
    seen = 0
    async for history in site.client.list_workflows().map_histories():
        for event in history.events:
            raw = event.SerializeToString()
            assert not found_canary(raw)
            for payload in payloads(event):
                seen += 1
                assert len(payload.data) < 1000
                assert not found_canary(payload.data)
                assert not holds_vector(json.loads(payload.data or "null"))
            for vector in vectors:
                assert np.asarray(vector, np.float32).tobytes()[:8] not in raw
    assert seen > workflows


def found_canary(data: bytes) -> bool:
    """Whether the canary is in there, plain, in hexadecimal or in base64 wherever that begins."""
    plain = CANARY.encode()
    shifted = (base64.b64encode(b"x" * shift + plain)[4:-4] for shift in range(3))
    return any(form in data for form in (plain, plain.hex().encode(), CANARY.encode("utf-16-le"), *shifted))


def payloads(message: Message) -> Iterator[Payload]:
    """All payloads in a message, however deep."""
    if isinstance(message, Payload):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is None:
            continue
        if descriptor.message_type.GetOptions().map_entry:
            parts = [part for part in value.values() if isinstance(part, Message)]
        else:
            parts = list(value) if descriptor.is_repeated else [value]
        for part in parts:
            yield from payloads(part)


def holds_vector(value: Any) -> bool:
    """Whether some list in there is of numbers."""
    if isinstance(value, dict):
        return any(map(holds_vector, value.values()))
    if isinstance(value, list):
        return any(isinstance(part, int | float) or holds_vector(part) for part in value)
    return False


def test_the_search_finds_what_it_is_to_find() -> None:
    for shift in range(3):
        assert found_canary(base64.b64encode(b"y" * shift + CANARY.encode() + b" and more"))
    assert found_canary(b"... " + CANARY.encode() + b" ...")
    assert not found_canary(b"CANARY-")
    assert holds_vector({"a": [{"b": [0.5, 0.5]}]})
    assert not holds_vector({"a": [{"b": ["x"], "c": 3600.0}]})
