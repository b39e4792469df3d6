"""What a worker's log says of the items it works on, for programs and for people."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from evervec.temporal import item_workflow_id, sweep_workflow_id
from tests.integration.pipeline import Site, new_table, until
from tests.integration.program import Program, programs

CANARY = f"CANARY-{uuid.uuid4().hex}"


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address, sweep_threshold=5) as site:
        yield site


async def worked(site: Site, log: Path, log_format: str) -> str:
    """The log of a worker that embedded an edit and some bulk; the source is called `things`."""
    table = await new_table(site, "column", name="things")
    worker = Program("worker", site.settings, log, EVERVEC_LOG_FORMAT=log_format)
    async with programs(worker), site.listening():
        await table.do("INSERT INTO {t} VALUES (1, %s)", CANARY)
        await table.fresh()
        await table.do("INSERT INTO {t} SELECT n, 'bulk ' || n FROM generate_series(100, 120) AS n")
        await table.fresh()
        await until(lambda: "batch done" in log.read_text())
        assert await worker.end() == 0
    return await asyncio.to_thread(log.read_text)


async def test_a_line_of_json_names_source_key_hash_and_workflow(site: Site, tmp_path: Path) -> None:
    said = await worked(site, tmp_path / "worker.log", "json")
    lines = [json.loads(line) for line in said.splitlines()]
    instance = await site.value("SELECT evervec.instance_id()")
    edits = [line for line in lines if line["event"] == "item done" and line["key"] == "1"]
    assert {line["hash"] for line in edits} == {await site.value("SELECT embedding_hash FROM things WHERE id = 1")}
    assert {(line["source"], line["workflow"]) for line in edits} == {
        ("things", item_workflow_id(instance, "things", "1"))
    }
    batches = [line for line in lines if line["event"] == "batch done"]
    assert {(line["source"], line["workflow"]) for line in batches} == {
        ("things", sweep_workflow_id(instance, "things"))
    }
    assert CANARY not in said


async def test_a_line_for_people_names_the_same(site: Site, tmp_path: Path) -> None:
    said = await worked(site, tmp_path / "worker.log", "console")
    line, *_ = re.findall(r"^.*item done .*key=1 .*$", said, re.MULTILINE)
    assert {"source=things", "outcome=embedded"} <= {*line.split()}
    assert re.search(r"hash=[0-9a-f]{64} ", line)
    assert "workflow=item-embedding/" in line
    assert CANARY not in said
