"""The last events of a workflow, in words."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryReverseRequest
from temporalio.client import Client
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.service import RPCError, RPCStatusCode

from evervec.messages import ItemChange, ItemEmbeddingResult
from evervec.temporal import ASK_TIMEOUT, unreachable_if_away

_Value = TypeVar("_Value", ItemChange, ItemEmbeddingResult)

EVENTS = 60
"""How many of the last events are looked at."""

PLAIN = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED: "the workflow began",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: "the workflow ended",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: "the workflow went on with a new history",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED: "somebody cancelled the workflow",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: "the workflow was cancelled",
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: "somebody terminated the workflow",
}
"""Events that say the same whatever they hold."""


class Step(NamedTuple):
    """Something that happened to a workflow."""

    at: datetime
    what: str


async def last_steps(client: Client, workflow_id: str) -> list[Step]:
    """What happened last to an item's workflow, the latest first; nothing when there is no such workflow.

    ServiceUnreachableError when Temporal is away.
    """
    request = GetWorkflowExecutionHistoryReverseRequest(
        namespace=client.namespace,
        execution=WorkflowExecution(workflow_id=workflow_id),
        maximum_page_size=EVENTS,
    )
    try:
        with unreachable_if_away(client):
            found = await client.workflow_service.get_workflow_execution_history_reverse(request, timeout=ASK_TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return []
        raise
    return list(_steps(found.history.events))


def _steps(events: Iterable[HistoryEvent]) -> Iterable[Step]:
    for event in events:
        if what := _words(event):
            yield Step(event.event_time.ToDatetime(UTC), what)


def _words(event: HistoryEvent) -> str | None:
    """What an event says to people; None for those that tell them nothing."""
    match event.event_type:
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            return _told(event.workflow_execution_signaled_event_attributes.input)
        case EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            attributes = event.activity_task_started_event_attributes
            again = f", attempt {attributes.attempt}" if attributes.attempt > 1 else ""
            return f"taken up by {attributes.identity}{again}"
        case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            return _came_of_it(event.activity_task_completed_event_attributes.result)
        case EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED:
            return f"failed: {event.activity_task_failed_event_attributes.failure.message}"
    return PLAIN.get(event.event_type)


def _told(payloads: Payloads) -> str:
    change = _first(payloads, ItemChange)
    if change is None or not change.content_hash:
        return "told to look at the item"
    return f"told of content {change.content_hash[:12]}…"


def _came_of_it(payloads: Payloads) -> str:
    result = _first(payloads, ItemEmbeddingResult)
    if result is None:
        return "done"
    return f"{result.outcome}: {result.error_message}" if result.error_message else str(result.outcome)


def _first(payloads: Payloads, kind: type[_Value]) -> _Value | None:
    """What an event carries; None where another version wrote something else, or a codec hides it."""
    try:
        [value] = pydantic_data_converter.payload_converter.from_payloads(list(payloads.payloads)[:1], [kind])
    except Exception:  # noqa: BLE001 - a converter raises what it likes; the page does without
        return None
    return value if isinstance(value, kind) else None
