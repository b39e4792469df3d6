"""An item's workflow, or a source's sweep, as Temporal tells of it."""

from datetime import timedelta
from typing import NamedTuple, TypeVar

from temporalio.client import Client, WorkflowExecutionDescription, WorkflowHandle, WorkflowQueryFailedError
from temporalio.common import SearchAttributeKey
from temporalio.service import RPCError, RPCStatusCode

from evervec.messages import ITEM_STATUS_QUERY, STATE_ATTRIBUTE, SWEEP_STATUS_QUERY, ItemWorkflowStatus, SweepStatus
from evervec.temporal import is_sweep, unreachable_if_away

TIMEOUT = timedelta(seconds=3)

_STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)
_Answer = TypeVar("_Answer", ItemWorkflowStatus, SweepStatus)


class WorkflowStatus(NamedTuple):
    """Where a workflow stands."""

    id: str
    status: str
    """Temporal's word: running, completed, canceled, terminated, timed_out, failed."""
    state: str | None = None
    """The item's: pending, fresh or failed; None for a sweep."""
    rounds: int | None = None
    """How often the item, or all that waits, was looked at; None when no worker answers."""
    last_error: str | None = None
    sweep: SweepStatus | None = None
    """What a sweep has done; None for an item's workflow, and when no worker answers."""


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
    found = WorkflowStatus(workflow_id, _word(description), _state(description))
    if is_sweep(workflow_id):
        sweep = await _ask(handle, SWEEP_STATUS_QUERY, SweepStatus)
        if sweep:
            found = found._replace(rounds=sweep.pass_number, last_error=sweep.last_error, sweep=sweep)
    elif item := await _ask(handle, ITEM_STATUS_QUERY, ItemWorkflowStatus):
        found = found._replace(state=item.state.value, rounds=item.rounds, last_error=item.last_error)
    return found


async def _ask(handle: "WorkflowHandle[object, object]", query: str, answer: type[_Answer]) -> _Answer | None:
    """The workflow's own answer, which takes a worker; None when there is none."""
    try:
        told: _Answer = await handle.query(query, result_type=answer, rpc_timeout=TIMEOUT)
    except (RPCError, WorkflowQueryFailedError):
        return None
    return told


def _word(description: WorkflowExecutionDescription) -> str:
    return description.status.name.lower() if description.status else "unknown"


def _state(description: WorkflowExecutionDescription) -> str | None:
    return description.typed_search_attributes.get(_STATE)
