"""What everything waits for, when it does not go on: as Temporal sees it."""

from collections import Counter
from datetime import UTC, datetime

from temporalio.api.enums.v1 import PendingActivityState, PendingWorkflowTaskState
from temporalio.client import Client, WorkflowExecutionDescription

from tests.chaos.site import Site

SHOWN = 12


async def what_is_under_way(site: Site) -> list[str]:
    """The tasks of open workflows that are under way or to be tried again, alike ones counted."""
    client = await Client.connect(site.temporal.address)
    now = datetime.now(UTC)
    seen: Counter[str] = Counter()
    async for workflow in client.list_workflows("ExecutionStatus = 'Running'"):
        description = await client.get_workflow_handle(workflow.id).describe()
        seen.update(_tasks(description, now) or [f"{workflow.workflow_type} waits for a signal"])
    return [f"{count} x {task}" for task, count in seen.most_common(SHOWN)]


def _tasks(description: WorkflowExecutionDescription, now: datetime) -> list[str]:
    raw = description.raw_description
    tasks = []
    if raw.HasField("pending_workflow_task"):
        task = raw.pending_workflow_task
        state = PendingWorkflowTaskState.Name(task.state).removeprefix("PENDING_WORKFLOW_TASK_STATE_")
        age = (now - task.scheduled_time.ToDatetime(UTC)).total_seconds()
        tasks.append(
            f"{description.workflow_type} workflow task {state}, attempt {task.attempt}, {age // 10 * 10:.0f} s old"
        )
    for activity in raw.pending_activities:
        state = PendingActivityState.Name(activity.state).removeprefix("PENDING_ACTIVITY_STATE_")
        due = (activity.scheduled_time.ToDatetime(UTC) - now).total_seconds()
        why = f", {activity.last_failure.message}" if activity.HasField("last_failure") else ""
        tasks.append(
            f"{activity.activity_type.name} {state}, attempt {activity.attempt}, due in {due // 10 * 10:.0f} s, "
            f"by {activity.last_worker_identity}{why}"
        )
    return tasks
