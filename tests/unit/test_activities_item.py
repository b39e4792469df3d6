"""The item's activity against faults that a real database and a real model do not have on demand."""

import asyncio
import dataclasses
from collections.abc import Sequence
from datetime import timedelta
from typing import cast

import numpy as np
import pytest
import structlog
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities import all_activities, heartbeat, store
from db.items import Items, ItemState, WriteBack
from db.vectors import Vector
from embedding.encoder import Encoder
from evervec.errors import (
    BadItemError,
    ConfigurationError,
    DatabaseError,
    DimensionError,
    EvervecError,
    ModelUnavailableError,
    ServiceUnreachableError,
    SourceNotFoundError,
)
from evervec.messages import ItemEmbeddingRequest, ItemEmbeddingResult, Outcome
from evervec.model import ModelSpec
from evervec.settings import Settings

CANARY = "CANARY-2c9d"
STALE = ItemState(
    source="items",
    item_key="1",
    outbox_version=7,
    failed=False,
    forced=False,
    paused=False,
    exists=True,
    eligible=True,
    content=f"a drill | {CANARY}",
    content_hash="new",
    embedding_hash="old",
    model=ModelSpec(name="stub:3", revision="", dimension=3, prompt=""),
)
FRESH = dataclasses.replace(STALE, embedding_hash="new")
REQUEST = ItemEmbeddingRequest(source="items", item_key="1", content_hash="new")


class FakeItems:
    """One item; its write-backs end as the test says, the last answer again and again."""

    def __init__(self, state: ItemState, *answers: Outcome | Exception) -> None:
        self.state = state
        self.answers = list(answers or [Outcome.EMBEDDED])
        self.writes: list[WriteBack] = []
        self.failures: list[str] = []
        self.notes: list[str] = []
        self.given_up = False
        self.read_error: Exception | None = None

    async def read(self, _source: str, _item_keys: Sequence[str]) -> list[ItemState]:
        if self.read_error:
            raise self.read_error
        return [self.state]

    async def write_back(self, _source: str, writes: Sequence[WriteBack]) -> dict[str, Outcome]:
        self.writes.extend(writes)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return {write.item_key: answer for write in writes}

    async def record_failure(
        self, _source: str, _item_key: str, version: int | None, error: str, *, max_attempts: int
    ) -> bool:
        assert (version, max_attempts) == (self.state.outbox_version, 5)
        self.failures.append(error)
        return self.given_up

    async def note_error(self, _source: str, _waiting: Sequence[ItemState], error: str) -> None:
        self.notes.append(error)


class FakeEncoder:
    """Gives ones, or the error that the test wants."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.texts: list[str] = []
        self.release = asyncio.Event()
        self.release.set()

    async def embed(self, model: ModelSpec, texts: Sequence[str], *, live: bool) -> Vector:
        assert live
        self.texts.extend(texts)
        await self.release.wait()
        if self.error:
            raise self.error
        return np.ones((len(texts), model.dimension), dtype=np.float32)


async def run(
    items: FakeItems,
    encoder: FakeEncoder,
    request: ItemEmbeddingRequest = REQUEST,
    environment: ActivityEnvironment | None = None,
) -> ItemEmbeddingResult:
    settings = Settings(max_attempts=5)
    generate, *_ = all_activities(cast("Items", items), cast("Encoder", encoder), settings)
    result: ItemEmbeddingResult = await (environment or ActivityEnvironment()).run(generate, request)
    return result


async def failure_of_run(items: FakeItems, encoder: FakeEncoder) -> ApplicationError:
    with pytest.raises(ApplicationError) as caught:
        await run(items, encoder)
    failure = caught.value
    assert failure.__cause__ is None
    assert failure.__suppress_context__ or failure.__context__ is None
    assert CANARY not in failure.message
    return failure


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_WAITS", (0.0, 0.0, 0.0))


async def test_a_stale_item_is_embedded_and_written_with_its_version() -> None:
    items, encoder = FakeItems(STALE), FakeEncoder()
    result = await run(items, encoder)
    assert result == ItemEmbeddingResult(
        item_key="1", outcome=Outcome.EMBEDDED, embedding_dimensions=3, content_hash="new"
    )
    [write] = items.writes
    assert (write.outbox_version, write.content_hash, encoder.texts) == (7, "new", [STALE.content])
    assert write.vector is not None


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        (FRESH, Outcome.UNCHANGED),
        (dataclasses.replace(STALE, eligible=False), Outcome.INELIGIBLE),
        (dataclasses.replace(STALE, exists=False, eligible=False, content=None, content_hash=None), Outcome.GONE),
    ],
)
async def test_what_needs_no_vector_is_only_acknowledged(state: ItemState, outcome: Outcome) -> None:
    items, encoder = FakeItems(state, outcome), FakeEncoder()
    assert (await run(items, encoder)).outcome is outcome
    [write] = items.writes
    assert write.vector is None
    assert write.outbox_version == 7
    assert not encoder.texts


@pytest.mark.parametrize(
    ("state", "request_force"),
    [(dataclasses.replace(FRESH, forced=True), False), (dataclasses.replace(FRESH, outbox_version=None), True)],
)
async def test_a_fresh_item_is_embedded_when_forced(state: ItemState, request_force: bool) -> None:
    items, encoder = FakeItems(state), FakeEncoder()
    await run(items, encoder, REQUEST.model_copy(update={"force_regenerate": request_force}))
    assert encoder.texts == [state.content]


async def test_an_item_that_was_given_up_is_left_alone_unless_forced() -> None:
    items, encoder = FakeItems(dataclasses.replace(STALE, failed=True)), FakeEncoder()
    assert (await run(items, encoder)).outcome is Outcome.FAILED
    assert (items.writes, items.failures, encoder.texts) == ([], [], [])
    forced = await run(items, encoder, REQUEST.model_copy(update={"force_regenerate": True}))
    assert forced.outcome is Outcome.EMBEDDED


async def test_a_paused_source_is_left_alone() -> None:
    items, encoder = FakeItems(dataclasses.replace(STALE, paused=True)), FakeEncoder()
    assert (await run(items, encoder)).outcome is Outcome.PAUSED
    assert not items.writes
    assert not encoder.texts


async def test_a_vector_waits_for_a_lock_without_being_made_again() -> None:
    items, encoder = FakeItems(STALE, Outcome.LOCKED, Outcome.LOCKED, Outcome.EMBEDDED), FakeEncoder()
    assert (await run(items, encoder)).outcome is Outcome.EMBEDDED
    assert len(items.writes) == 3
    assert len(encoder.texts) == 1


async def test_an_item_that_stays_locked_is_tried_again_later() -> None:
    items = FakeItems(STALE, Outcome.LOCKED)
    failure = await failure_of_run(items, FakeEncoder())
    assert (failure.type, failure.non_retryable) == ("ItemLocked", False)
    assert failure.next_retry_delay == timedelta(seconds=5)
    assert not items.failures


@pytest.mark.parametrize(
    ("error", "recorded"),
    [(BadItemError("too odd"), "too odd"), (ValueError(CANARY), "ValueError")],
)
async def test_attempts_at_a_bad_item_are_counted(error: Exception, recorded: str) -> None:
    items, encoder = FakeItems(STALE), FakeEncoder(error)
    failure = await failure_of_run(items, encoder)
    assert (failure.type, failure.message) == (type(error).__name__, type(error).__name__)
    assert not failure.non_retryable
    items.given_up = True
    result = await run(items, encoder)
    assert (result.outcome, result.error_message) == (Outcome.FAILED, type(error).__name__)
    assert items.failures == [recorded, recorded]
    assert not items.writes


async def test_attempts_at_an_item_outside_the_outbox_end_as_well() -> None:
    items, encoder = FakeItems(dataclasses.replace(STALE, outbox_version=None)), FakeEncoder(BadItemError())
    await failure_of_run(items, encoder)
    environment = ActivityEnvironment()
    environment.info = dataclasses.replace(environment.info, attempt=5)
    assert (await run(items, encoder, environment=environment)).outcome is Outcome.FAILED


async def test_a_write_that_the_row_is_to_blame_for_is_counted() -> None:
    items = FakeItems(STALE, DatabaseError(f"no {CANARY} here", sqlstate="P0001"))
    failure = await failure_of_run(items, FakeEncoder())
    assert failure.message == "DatabaseError [P0001]"
    assert len(items.failures) == 1


@pytest.mark.parametrize(
    "error",
    [
        ServiceUnreachableError(f"PostgreSQL does not answer: {CANARY}"),
        DatabaseError(f"deadlock: {CANARY}", sqlstate="40P01"),
        OSError(CANARY),
    ],
)
async def test_what_the_database_is_to_blame_for_counts_nowhere(error: Exception) -> None:
    items = FakeItems(STALE, error)
    assert not (await failure_of_run(items, FakeEncoder())).non_retryable
    items.read_error = error
    assert not (await failure_of_run(items, FakeEncoder())).non_retryable
    assert not items.failures


async def test_an_encoder_that_closes_counts_nowhere() -> None:
    items = FakeItems(STALE)
    assert not (await failure_of_run(items, FakeEncoder(EvervecError("the encoder was closed")))).non_retryable
    assert not items.failures


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (ModelUnavailableError("install it"), False),
        (DimensionError("768 is not 512"), True),
        (ConfigurationError("a blank setting"), True),
    ],
)
async def test_what_the_configuration_is_to_blame_for_is_noted_and_not_counted(
    error: ConfigurationError, final: bool
) -> None:
    items = FakeItems(STALE)
    failure = await failure_of_run(items, FakeEncoder(error))
    assert (failure.message, failure.type, failure.non_retryable) == (str(error), type(error).__name__, final)
    assert items.notes == [str(error)]
    assert not items.failures


async def test_an_unwatched_source_is_final() -> None:
    items = FakeItems(STALE)
    items.read_error = SourceNotFoundError("items")
    failure = await failure_of_run(items, FakeEncoder())
    assert (failure.type, failure.non_retryable) == ("SourceNotFoundError", True)


async def test_a_long_attempt_sends_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.001)
    encoder = FakeEncoder()
    encoder.release.clear()
    beats: list[object] = []

    def beat(*_details: object) -> None:
        beats.append(None)
        if len(beats) == 3:
            encoder.release.set()

    environment = ActivityEnvironment()
    environment.on_heartbeat = beat
    await run(FakeItems(STALE), encoder, environment=environment)
    assert len(beats) >= 3


async def test_logs_name_the_item_and_not_its_text() -> None:
    with structlog.testing.capture_logs() as logs:
        await run(FakeItems(STALE), FakeEncoder())
        await failure_of_run(FakeItems(STALE), FakeEncoder(ValueError(CANARY)))
        await failure_of_run(FakeItems(STALE, Outcome.LOCKED), FakeEncoder())
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("item done", "info"),
        ("item not embedded", "warning"),
        ("item waits", "info"),
    ]
    names = ("source", "key", "hash", "workflow")
    assert {tuple(entry[name] for name in names) for entry in logs} == {("items", "1", "new", "test")}
    assert all("ms" in entry for entry in logs)
    assert CANARY not in str(logs)
