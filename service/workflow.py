"""An item's workflow, as Temporal tells of it."""

from datetime import timedelta
from typing import NamedTuple

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle, WorkflowQueryFailedError
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from evervec.messages import ITEM_STATUS_QUERY, STATE_ATTRIBUTE, ItemWorkflowStatus
from evervec.temporal import unreachable_if_away

TIMEOUT = timedelta(seconds=3)

_STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)


class WorkflowStatus(NamedTuple):
    """Where a workflow stands."""

    id: str
    status: str
    """Temporal's word: running, completed, canceled, terminated, timed_out, failed."""
    state: str | None
    """The item's: pending, fresh or failed."""
    rounds: int | None
    """How often the item was looked at; None when no worker answers."""
    last_error: str | None


async def workflow_status(client: Client, workflow_id: str) -> WorkflowStatus | None:
    """The status of a workflow, None when there is no such workflow. ServiceUnreachableError when Temporal is away."""
    handle = client.get_workflow_handle(workflow_id)
    try:
        with unreachable_if_away(client):
            description = await handle.describe(rpc_timeout=TIMEOUT)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return None
        raise
    answer = await _ask(handle)
    if answer is None:
        return WorkflowStatus(workflow_id, _word(description), _state(description), None, None)
    return WorkflowStatus(workflow_id, _word(description), answer.state.value, answer.rounds, answer.last_error)


async def _ask(handle: "WorkflowHandle[object, object]") -> ItemWorkflowStatus | None:
    """The workflow's own answer, which takes a worker; None when there is none."""
    try:
        answer: ItemWorkflowStatus = await handle.query(
            ITEM_STATUS_QUERY, result_type=ItemWorkflowStatus, rpc_timeout=TIMEOUT
        )
    except (RPCError, WorkflowQueryFailedError):
        return None
    return answer


def _word(description: WorkflowExecutionDescription) -> str:
    return description.status.name.lower() if description.status else "unknown"


def _state(description: WorkflowExecutionDescription) -> str | None:
    return description.typed_search_attributes.get(_STATE)
