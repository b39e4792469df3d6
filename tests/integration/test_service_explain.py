from collections.abc import AsyncIterator

import pytest

from evervec.errors import SourceNotFoundError
from service.explain import ItemReport, ItemState, explain
from tests.integration.service_lab import Lab, open_lab


@pytest.fixture
async def lab(database: str) -> AsyncIterator[Lab]:
    async with open_lab(database) as opened:
        await opened.fill()
        await opened.do("INSERT INTO items (id, name, description) VALUES (1, 'Bohrmaschine', 'mit Koffer')")
        yield opened


async def ask(lab: Lab, key: str = "1") -> ItemReport:
    return await explain(lab.sources, "items", key)


async def test_an_item_from_insert_to_edit(lab: Lab) -> None:
    report = await ask(lab)
    assert report.state is ItemState.STALE
    assert report.reason.startswith("no vector yet; waiting since 20")
    assert report.outbox is not None
    assert report.outbox["state"] == "pending"
    assert (report.embedding_hash, report.embedded_at) == (None, None)

    await lab.work()
    report = await ask(lab)
    assert report.state is ItemState.FRESH
    assert report.reason.startswith("the vector of the present content was written at 20")
    assert report.outbox is None
    assert report.embedding_hash == report.content_hash is not None
    assert report.embedded_at is not None

    await lab.do("UPDATE items SET name = 'Schlagbohrer'")
    report = await ask(lab)
    assert report.state is ItemState.STALE
    assert report.reason.startswith("the content changed since it was embedded at 20")
    assert "waiting since" in report.reason


async def test_ineligible_items_say_why(lab: Lab) -> None:
    await lab.do("UPDATE items SET active = false")
    report = await ask(lab)
    assert (report.state, report.reason) == (ItemState.INELIGIBLE, "inactive")
    await lab.do("UPDATE items SET active = true, name = E' \\t', description = NULL")
    report = await ask(lab)
    assert report.state is ItemState.INELIGIBLE
    assert report.reason == 'required column "name" is blank, required column "description" is blank'


@pytest.mark.parametrize("key", ["2", "no number", "", "99999999999999999999999"])
async def test_missing_items(lab: Lab, key: str) -> None:
    report = await ask(lab, key)
    assert (report.state, report.reason, report.outbox) == (ItemState.MISSING, "no row has this key", None)


async def test_a_failed_item_says_what_happened(lab: Lab) -> None:
    await lab.do("UPDATE items SET name = 'evervec-poison'")
    await lab.work(max_attempts=2)
    report = await ask(lab)
    assert report.state is ItemState.STALE
    assert "1 attempt failed, last error: the stub refuses content" in report.reason
    await lab.work(max_attempts=2)
    report = await ask(lab)
    assert report.state is ItemState.FAILED
    assert report.reason.startswith("gave up after 2 attempts: the stub refuses content")


async def test_a_paused_source_and_a_lost_change_are_told(lab: Lab) -> None:
    await lab.sources.pause("items")
    assert "the source is paused: `evervec resume items`" in (await ask(lab)).reason
    await lab.do("DELETE FROM evervec.outbox")
    assert "not in the outbox: `evervec verify items --repair`" in (await ask(lab)).reason


async def test_another_model_and_its_first_fill(lab: Lab) -> None:
    await lab.work()
    await lab.do("SELECT evervec.watch('items', '{name,description}', model => 'stub:8', prompt => 'passage: ')")
    report = await ask(lab)
    assert report.state is ItemState.STALE
    assert report.reason.startswith("the vector is of the model stub:8, the source's is stub:8#")
    assert report.reason.endswith("the first fill has yet to come to it")


async def test_a_regeneration_that_waits(lab: Lab) -> None:
    await lab.work()
    await lab.sources.refire_keys("items", ["1"], force=True)
    report = await ask(lab)
    assert report.state is ItemState.FRESH
    assert "to be embedded again: waiting since" in report.reason


async def test_an_unknown_source(lab: Lab) -> None:
    with pytest.raises(SourceNotFoundError):
        await explain(lab.sources, "nothing", "1")
