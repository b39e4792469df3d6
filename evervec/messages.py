"""What travels through Temporal: keys, hashes and counts, never an item's text or a vector.

Each activity takes one model and returns one, so that fields can be added without breaking workflows that run.
"""

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

ITEM_WORKFLOW = "ItemEmbeddingWorkflow"
ITEM_CHANGED_SIGNAL = "item_changed"
ITEM_STATUS_QUERY = "status"
GENERATE_ITEM_EMBEDDING = "generate_item_embedding"
SWEEP_WORKFLOW = "EmbeddingSweepWorkflow"
ITEMS_WAITING_SIGNAL = "items_waiting"
SWEEP_STATUS_QUERY = "status"
FETCH_ITEMS_FOR_EMBEDDING = "fetch_items_for_embedding"
BATCH_GENERATE_EMBEDDINGS = "batch_generate_embeddings"
SOURCE_ATTRIBUTE = "EvervecSource"
STATE_ATTRIBUTE = "EvervecState"


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


class ItemWorkflowInput(Message):
    """How an item's workflow starts, and what it carries over when it continues as new."""

    source: str
    item_key: str
    idle_seconds: float = Field(gt=0)
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


class SweepWorkflowInput(Message):
    """How a source's sweep starts, and what it carries over when it continues as new."""

    source: str


class SweepStatus(Message):
    """The answer to the sweep's query: counts since the sweep began."""

    source: str
