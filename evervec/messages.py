"""What travels through Temporal: keys, hashes and counts, never an item's text or a vector.

Each activity takes one model and returns one, so that fields can be added without breaking workflows that run.
"""

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

ITEM_WORKFLOW = "ItemEmbeddingWorkflow"
ITEM_CHANGED_SIGNAL = "item_changed"
ITEM_HELD_UP_SIGNAL = "item_held_up"
ITEM_STATUS_QUERY = "status"
GENERATE_ITEM_EMBEDDING = "generate_item_embedding"
SWEEP_WORKFLOW = "EmbeddingSweepWorkflow"
ITEMS_WAITING_SIGNAL = "items_waiting"
SWEEP_STATUS_QUERY = "status"
FETCH_ITEMS_FOR_EMBEDDING = "fetch_items_for_embedding"
BATCH_GENERATE_EMBEDDINGS = "batch_generate_embeddings"
SAFETY_NET_WORKFLOW = "EmbeddingSafetyNetWorkflow"
FIND_WAITING_SOURCES = "find_waiting_sources"
SOURCE_ATTRIBUTE = "EvervecSource"
STATE_ATTRIBUTE = "EvervecState"
SUMMARY_BYTES = 200
"""Temporal takes 400; a character that JSON escapes counts for more."""


class Message(BaseModel):
    """Base of all messages: immutable, and deaf to fields that a newer version added."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Outcome(StrEnum):
    """What became of one item in one attempt."""

    EMBEDDED = "embedded"
    """A new vector was written."""
    UNCHANGED = "unchanged"
    """The stored vector is that of the present content already: nothing was embedded."""
    INELIGIBLE = "ineligible"
    """Inactive, or a required column is blank."""
    GONE = "gone"
    """The row does not exist."""
    SUPERSEDED = "superseded"
    """The content changed while it was embedded; the change has its own place in the outbox."""
    LOCKED = "locked"
    """A user's transaction holds the row; it stays in the outbox."""
    PAUSED = "paused"
    """The source is paused; the item stays in the outbox."""
    FAILED = "failed"
    """Given up until the content changes or somebody retries it."""


class ItemEmbeddingRequest(Message):
    """Embed one item, if what is stored does not fit its content any more."""

    source: str
    item_key: str
    content_hash: str | None = None
    """The newest hash that was heard of, for people who read the history; the activity reads the row itself."""
    force_regenerate: bool = False
    """Embed even if the hash is unchanged."""


class ItemEmbeddingResult(Message):
    """What became of the item."""

    item_key: str
    outcome: Outcome
    embedding_dimensions: int | None = None
    error_message: str | None = None
    """An error's class and SQLSTATE, never text of the row."""
    content_hash: str | None = None
    """The hash of the content that was seen."""


class ItemChange(Message):
    """The signal: this item changed; embed it when its hash is not the stored one."""

    content_hash: str | None = None
    force_regenerate: bool = False


class ItemWorkflowState(StrEnum):
    """Where an item's workflow stands; the value of the search attribute EvervecState."""

    PENDING = "pending"
    FRESH = "fresh"
    FAILED = "failed"


class StateShown(StrEnum):
    """When a workflow sets EvervecState anew. How it began decides, so that its history can be replayed."""

    EACH = "each"
    """At each change, as workflows of earlier versions do: two events an edit."""
    AT_REST = "at_rest"
    """When a round has ended, or is held up, with another state than is shown: an edit costs no event."""
    NEVER = "never"
    """The namespace does not know the attribute."""


class ItemWorkflowInput(Message):
    """How an item's workflow starts, and what it carries over when it continues as new."""

    source: str
    item_key: str
    idle_seconds: float = Field(gt=0)
    state_shown: StateShown = StateShown.EACH
    dirty: bool = False
    force_regenerate: bool = False
    content_hash: str | None = None
    rounds: int = 0
    state: ItemWorkflowState = ItemWorkflowState.PENDING
    last_outcome: Outcome | None = None
    last_error: str | None = None


class ItemWorkflowStatus(Message):
    """The answer to the workflow's query."""

    source: str
    item_key: str
    state: ItemWorkflowState
    content_hash: str | None
    rounds: int
    last_outcome: Outcome | None
    last_error: str | None


class FetchItemsRequest(Message):
    """Ask for a source's next items to embed, in the order of their keys, beyond `after`."""

    source: str
    after: str | None = None
    limit: int = Field(gt=0)


class FetchItemsResult(Message):
    """The next page of keys, and what to do when it is empty."""

    item_keys: list[str]
    last: bool = False
    """Nothing comes after this page."""
    paused: bool = False
    rate: float | None = None
    """How many items a second may be embedded; None: no limit."""
    wait_seconds: float | None = None
    """Where a pass begins with an empty page: until a pending item may be taken, None when none is pending."""


class BatchEmbeddingRequest(Message):
    """Embed some items of one source, each if its stored vector does not fit its content any more."""

    source: str
    item_keys: list[str]
    batch_size: int = Field(256, gt=0)
    """How many items are written back together."""
    force_regenerate: bool = False
    """Embed even if the hash is unchanged."""
    rate: float | None = Field(None, gt=0)
    """Take at most so many items a second; None: no limit."""


class BatchEmbeddingResult(Message):
    """What became of the items. What is neither successful nor failed stays in the outbox as it was."""

    total_items: int
    successful: int = 0
    """Nothing is left to do: embedded, unchanged, ineligible or gone."""
    failed: int = 0
    """The attempt failed: it is tried again when it is due, or given up."""
    results: list[ItemEmbeddingResult] = []
    """Of the failed items only."""
    counts: dict[Outcome, int] = {}
    """How many items had each outcome; FAILED are those that are given up."""
    seconds: float = 0.0


class SweepProgress(Message):
    """What a sweep has done since it began."""

    started_at: datetime
    busy_seconds: float = 0.0
    """Without the pauses in which nothing could be done."""
    passes: int = 0
    items: int = 0
    """Items looked at; one that had to wait counts again when it is looked at again."""
    counts: dict[Outcome, int] = {}
    last_error: str | None = None


class SweepWorkflowInput(Message):
    """How a source's sweep starts, and what it carries over when it continues as new."""

    source: str
    after: str | None = None
    """The last key that its pass has taken."""
    batch_size: int | None = None
    progress: SweepProgress | None = None


class SweepStatus(Message):
    """The answer to the sweep's query: counts since the sweep began."""

    source: str
    started_at: datetime
    pass_number: int
    items: int
    """Items looked at; one that had to wait counts again when it is looked at again."""
    embedded: int
    unchanged: int
    failed: int
    """Given up."""
    locked: int
    others: int
    """Ineligible, gone, changed meanwhile, or to be tried again."""
    rate: float | None
    """Items a second that it may embed."""
    items_per_second: float
    """What it does, pauses left out in which nothing could be done."""
    last_error: str | None
    """An error's class and SQLSTATE, never text of the row."""


def sweep_summary(source: str) -> str:
    """A line for a sweep in Temporal's web page."""
    return shortened(f"embeds what waits in {source}")


def shortened(line: str) -> str:
    """As much of a line as Temporal takes for a summary, and room for its quotes."""
    encoded = " ".join(line.split()).encode(errors="replace")
    if len(encoded) <= SUMMARY_BYTES:
        return encoded.decode()
    return f"{encoded[: SUMMARY_BYTES - 3].decode(errors='ignore')}…"


class SafetyNetInput(Message):
    """How the safety net's workflow starts: the schedule gives the installation that it belongs to."""

    instance: str
    searchable: bool = True
    """Whether the namespace knows evervec's search attributes."""


class WaitingSourcesRequest(Message):
    """Ask which sources have items that wait longer than they should."""

    instance: str


class WaitingSourcesResult(Message):
    """Sources that are not paused, and the ids of their sweeps' workflows."""

    sweeps: dict[str, str]
