"""Explain one item: fresh, or why not."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from db.sources import Explanation, Source, Sources


class ItemState(StrEnum):
    """How an item stands."""

    FRESH = "fresh"
    STALE = "stale"
    FAILED = "failed"
    INELIGIBLE = "ineligible"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class ItemReport:
    """One item, for people."""

    source: str
    key: str
    state: ItemState
    reason: str
    content_hash: str | None
    embedding_hash: str | None
    embedded_at: datetime | None
    outbox: dict[str, Any] | None


async def explain(sources: Sources, source: str, key: str) -> ItemReport:
    """The state of an item and the reason for it; the item need not exist."""
    about = await sources.get(source)
    found = await sources.explain(source, key)
    state = _state(found)
    return ItemReport(
        source=source,
        key=key,
        state=state,
        reason=_reason(found, state, about),
        content_hash=found.content_hash,
        embedding_hash=found.embedding_hash,
        embedded_at=found.embedded_at if found.embedding_hash else None,
        outbox=found.outbox,
    )


def _state(found: Explanation) -> ItemState:
    if not found.row_exists:
        return ItemState.MISSING
    if not found.eligible:
        return ItemState.INELIGIBLE
    if found.outbox and found.outbox["state"] == "failed":
        return ItemState.FAILED
    return ItemState.FRESH if found.embedding_hash == found.content_hash else ItemState.STALE


def _reason(found: Explanation, state: ItemState, source: Source) -> str:
    match state:
        case ItemState.MISSING:
            return "no row has this key"
        case ItemState.INELIGIBLE:
            return _why_ineligible(found)
        case ItemState.FAILED:
            return f"{_why_failed(found)}; `evervec retry {source.name}` tries again"
        case ItemState.FRESH:
            again = f"; to be embedded again: {_why_waiting(found, source)}" if found.outbox else ""
            return f"the vector of the present content was written at {_time(found.embedded_at)}{again}"
        case ItemState.STALE:
            return f"{_why_stale(found)}; {_why_still_stale(found, source)}"


def _why_ineligible(found: Explanation) -> str:
    reasons = [] if found.active else ["inactive"]
    reasons += [f'required column "{column}" is blank' for column in found.blank_columns]
    return ", ".join(reasons)


def _why_failed(found: Explanation) -> str:
    assert found.outbox  # noqa: S101 - what failed is in the outbox
    return f"gave up after {_count(found.outbox['attempts'], 'attempt')}: {found.outbox['last_error']}"


def _why_stale(found: Explanation) -> str:
    if found.embedding_hash is None:
        return "no vector yet"
    if found.embedding_model != found.model_label:
        return f"the vector is of the model {found.embedding_model}, the source's is {found.model_label}"
    return f"the content changed since it was embedded at {_time(found.embedded_at)}"


def _why_still_stale(found: Explanation, source: Source) -> str:
    if found.outbox:
        return _why_waiting(found, source)
    if source.filling:
        return "the first fill has yet to come to it"
    return f"not in the outbox: `evervec verify {source.name} --repair` enqueues it"


def _why_waiting(found: Explanation, source: Source) -> str:
    assert found.outbox  # noqa: S101 - what waits is in the outbox
    reason = f"waiting since {found.outbox['queued_at']}"
    if found.paused:
        reason += f", the source is paused: `evervec resume {source.name}`"
    if source.rate:
        reason += f", at most {source.rate:g} items a second are swept: `evervec.throttle` changes that"
    if found.outbox["attempts"]:
        reason += f", {_count(found.outbox['attempts'], 'attempt')} failed"
    if found.outbox["last_error"]:
        reason += f", last error: {found.outbox['last_error']}"
    if found.outbox["attempts"]:
        reason += f", next attempt due at {found.outbox['due_at']}"
    return reason


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="seconds") if moment else "an unknown time"
