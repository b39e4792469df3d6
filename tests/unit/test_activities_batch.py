"""The batch's activity against faults that a real database and a real model do not have on demand."""

import asyncio
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest
import structlog
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import all_activities, batch
from db.items import FailedAttempt, Items, ItemState, WriteBack
from db.vectors import Vector
from embedding.encoder import Encoder
from evervec.errors import BadItemError, DatabaseError, DimensionError, ModelUnavailableError, ServiceUnreachableError
from evervec.messages import BatchEmbeddingRequest, BatchEmbeddingResult, Outcome
from evervec.model import ModelSpec
from evervec.settings import Settings

CANARY = "CANARY-77f0"
KEYS = [str(number) for number in range(300)]
MODEL = ModelSpec(name="stub:3", revision="", dimension=3, prompt="")


def state_of(key: str) -> ItemState:
    return ItemState(
        source="items",
        item_key=key,
        outbox_version=int(key) + 1,
        failed=False,
        forced=False,
        paused=False,
        exists=True,
        eligible=True,
        content=f"{CANARY} {key}",
        content_hash=f"new {key}",
        embedding_hash=None,
        model=MODEL,
    )


class FakeItems:
    """Items that are all stale; some keys' write-backs are refused, or come out as the test says."""

    def __init__(self) -> None:
        self.refused: dict[str, Exception] = {}
        self.outcomes: dict[str, list[Outcome]] = {}
        self.written: list[str] = []
        self.statements = 0
        self.failures: list[FailedAttempt] = []
        self.notes: list[tuple[int, str]] = []

    async def read(self, _source: str, item_keys: Sequence[str]) -> list[ItemState]:
        return [state_of(key) for key in item_keys]

    async def write_back(self, _source: str, writes: Sequence[WriteBack]) -> dict[str, Outcome]:
        self.statements += 1
        for write in writes:
            if error := self.refused.get(write.item_key):
                raise error
        outcomes = {}
        for write in writes:
            scripted = self.outcomes.get(write.item_key)
            outcomes[write.item_key] = scripted.pop(0) if scripted else Outcome.EMBEDDED
            if outcomes[write.item_key] is Outcome.EMBEDDED:
                self.written.append(write.item_key)
        return outcomes

    async def record_failures(self, _source: str, failed: Sequence[FailedAttempt], max_attempts: int) -> set[str]:
        assert max_attempts == 5
        self.failures += failed
        return {"7"} & {attempt.item_key for attempt in failed}

    async def note_error(self, _source: str, waiting: Sequence[ItemState], error: str) -> None:
        self.notes.append((len(waiting), error))


class FakeEncoder:
    """Gives ones; fails with the error of the first of its texts that has one, unless it is that text's alone."""

    def __init__(self, **errors: Exception) -> None:
        self.errors = {f"{CANARY} {key.removeprefix('item_')}": error for key, error in errors.items()}
        self.release = asyncio.Event()
        self.release.set()
        self.calls = 0
        self.busy = asyncio.Event()

    async def embed_each(self, model: ModelSpec, texts: Sequence[str], *, live: bool) -> list[Vector | BadItemError]:
        assert not live
        self.calls += 1
        if self.calls == batch.BATCHES_AT_ONCE:
            self.busy.set()
        await self.release.wait()
        answers: list[Vector | BadItemError] = []
        for text in texts:
            error = self.errors.get(text)
            if isinstance(error, BadItemError):
                answers.append(error)
            elif error:
                raise error
            else:
                answers.append(np.ones(model.dimension, dtype=np.float32))
        return answers


async def run(items: FakeItems, encoder: FakeEncoder) -> BatchEmbeddingResult:
    _, generate, *_ = all_activities(cast("Items", items), cast("Encoder", encoder), Settings(max_attempts=5))
    result: BatchEmbeddingResult = await ActivityEnvironment().run(
        generate, BatchEmbeddingRequest(source="items", item_keys=KEYS)
    )
    return result


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LOCK_WAITS", (0.0, 0.0))


async def test_a_batch_is_one_call_of_the_model_and_few_statements() -> None:
    items, encoder = FakeItems(), FakeEncoder()
    result = await run(items, encoder)
    assert (result.total_items, result.successful, result.failed, result.results) == (300, 300, 0, [])
    assert (encoder.calls, items.statements) == (1, 2)
    assert sorted(items.written) == sorted(KEYS)


async def test_bad_texts_and_bad_rows_are_found_among_good_ones() -> None:
    items = FakeItems()
    items.refused = {
        "9": DatabaseError(f"no {CANARY} here", sqlstate="23514"),
        "280": DatabaseError(f"no {CANARY} here", sqlstate="P0001"),
    }
    result = await run(items, FakeEncoder(item_7=BadItemError("too odd"), item_8=ValueError(CANARY)))
    bad = {"7": "BadItemError", "8": "ValueError", "9": "DatabaseError [23514]", "280": "DatabaseError [P0001]"}
    assert sorted(items.written) == sorted(set(KEYS) - set(bad))
    assert {failed.item_key: failed.error_message for failed in result.results} == bad
    assert (result.successful, result.failed, result.counts[Outcome.FAILED]) == (296, 4, 1)
    recorded = {failed.item_key: (failed.outbox_version, failed.error) for failed in items.failures}
    assert recorded["7"] == (8, "too odd")
    assert recorded["8"] == (9, "ValueError")
    assert recorded["280"] == (281, f"no {CANARY} here")  # for the outbox, not for Temporal
    assert CANARY not in result.model_dump_json()


async def test_texts_that_are_known_to_be_bad_cost_no_second_call_of_the_model() -> None:
    items = FakeItems()
    encoder = FakeEncoder(item_7=BadItemError("too odd"), item_200=BadItemError("too odd"))
    result = await run(items, encoder)
    assert (encoder.calls, result.successful, result.failed) == (1, 298, 2)


async def test_a_good_half_is_written_before_the_other_is_embedded() -> None:
    items, encoder = FakeItems(), FakeEncoder(item_200=ValueError())
    written: list[int] = []
    embed_each = encoder.embed_each

    async def watched(model: ModelSpec, texts: Sequence[str], *, live: bool) -> list[Vector | BadItemError]:
        written.append(len(items.written))
        return await embed_each(model, texts, live=live)

    encoder.embed_each = watched  # type: ignore[method-assign]
    await run(items, encoder)
    assert written[:4] == [0, 0, 150, 150]
    assert (len(items.written), len(items.failures)) == (299, 1)


@pytest.mark.parametrize(
    "error", [ServiceUnreachableError(CANARY), DatabaseError(CANARY, sqlstate="53100"), OSError(CANARY)]
)
async def test_what_the_database_is_to_blame_for_counts_nowhere(error: Exception) -> None:
    items = FakeItems()
    items.refused = {"280": error}
    with pytest.raises(ApplicationError) as caught:
        await run(items, FakeEncoder())
    assert not caught.value.non_retryable
    assert CANARY not in caught.value.message
    assert not items.failures


@pytest.mark.parametrize(("error", "final"), [(ModelUnavailableError("install it"), False), (DimensionError(), True)])
async def test_what_the_configuration_is_to_blame_for_is_noted_with_all(error: Exception, final: bool) -> None:
    items = FakeItems()
    with pytest.raises(ApplicationError) as caught:
        await run(items, FakeEncoder(item_0=error))
    assert (caught.value.type, caught.value.non_retryable) == (type(error).__name__, final)
    assert items.notes == [(300, str(error))]
    assert not items.failures


async def test_locked_rows_are_tried_again_and_left_without_delaying_others() -> None:
    items = FakeItems()
    items.outcomes = {"3": [Outcome.LOCKED, Outcome.LOCKED], "5": [Outcome.LOCKED] * 3, "6": [Outcome.SUPERSEDED]}
    result = await run(items, FakeEncoder())
    assert result.counts == {Outcome.EMBEDDED: 298, Outcome.LOCKED: 1, Outcome.SUPERSEDED: 1}
    assert items.written[-1] == "3"
    assert items.statements == 2 + 2


async def test_a_worker_that_has_enough_to_do_leaves_batches_to_others() -> None:
    items, encoder = FakeItems(), FakeEncoder()
    encoder.release.clear()
    _, generate, *_ = all_activities(cast("Items", items), cast("Encoder", encoder), Settings())
    request = BatchEmbeddingRequest(source="items", item_keys=KEYS)
    running = [asyncio.create_task(ActivityEnvironment().run(generate, request)) for _ in range(batch.BATCHES_AT_ONCE)]
    await encoder.busy.wait()
    with pytest.raises(ApplicationError, match="WorkerBusy"):
        await ActivityEnvironment().run(generate, request)
    encoder.release.set()
    await asyncio.gather(*running)
    await run(items, encoder)


async def test_a_batch_is_one_line_in_the_log() -> None:
    with structlog.testing.capture_logs() as logs:
        await run(FakeItems(), FakeEncoder(item_7=BadItemError(CANARY)))
    [line] = logs
    assert (line["event"], line["source"], line["items"], line["embedded"], line["failed"]) == (
        "batch done",
        "items",
        300,
        299,
        1,
    )
    assert CANARY not in str(logs)
