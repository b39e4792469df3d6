"""How rows stand: fresh, stale, failed or ineligible, and why; exact, from their content's hash."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.utils.dateparse import parse_datetime
from django.utils.timesince import timesince

from django_evervec import contract
from django_evervec.contract import Explanation
from django_evervec.sources import Embedded

FRESH, STALE, FAILED, INELIGIBLE, MISSING = "fresh", "stale", "failed", "ineligible", "missing"


@dataclass(frozen=True)
class Report:
    """One row, for people."""

    state: str
    reason: str


def explain(about: Embedded, keys: Iterable[object]) -> dict[str, Report]:
    """A report of each row, by its key as text. One statement."""
    found = contract.explanations(about.using, about.source.name, [str(key) for key in keys])
    return {key: _report(explanation, filling=about.source.filling) for key, explanation in found.items()}


def _report(found: Explanation, *, filling: bool) -> Report:
    if not found.row_exists:
        return Report(MISSING, "no row has this key")
    if not found.eligible:
        reasons = [] if found.active else ["inactive"]
        reasons += [f"{column} is blank" for column in found.blank_columns]
        return Report(INELIGIBLE, ", ".join(reasons))
    outbox = found.outbox
    if outbox and outbox["state"] == "failed":
        failed = _since(parse_datetime(outbox["failed_at"]))
        return Report(FAILED, f"given up {failed} ago after {outbox['attempts']} attempts: {outbox['last_error']}")
    if found.embedding_hash == found.content_hash:
        again = ", to be embedded again" if outbox else ""
        return Report(FRESH, f"embedded {_since(found.embedded_at)} ago{again}")
    return Report(STALE, f"{_why_stale(found)}; {_why_still(found, filling=filling)}")


def _why_stale(found: Explanation) -> str:
    if found.embedding_hash is None:
        return "no vector yet"
    if found.embedding_model != found.model_label:
        return f"its vector is of the model {found.embedding_model}"
    return f"changed since it was embedded {_since(found.embedded_at)} ago"


def _why_still(found: Explanation, *, filling: bool) -> str:
    outbox = found.outbox
    if not outbox:
        return "the first fill has yet to come to it" if filling else "not in the outbox: generate its embedding"
    reason = f"waiting for {_since(parse_datetime(outbox['queued_at']))}"
    if found.paused:
        reason += ", the source is paused"
    if outbox["last_error"]:
        reason += f", {outbox['attempts']} attempts failed, last error: {outbox['last_error']}"
    return reason


def _since(moment: datetime | None) -> str:
    return timesince(moment, depth=1) if moment else "some time"
