"""Whether Temporal answers, and who works on the task queue."""

from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, GetSystemInfoRequest
from temporalio.client import Client

from evervec.settings import Settings
from evervec.temporal import ASK_TIMEOUT, unreachable_if_away

POLL_AGE = timedelta(seconds=75)
"""A worker asks for work at least once a minute; the server lists one that is gone for some minutes more."""


class Poller(NamedTuple):
    """A worker, as the server of the task queue sees it."""

    identity: str
    """Process and host."""
    seen_at: datetime


async def workers(client: Client, settings: Settings) -> list[Poller]:
    """Who asks for work on the task queue, the latest first.

    ServiceUnreachableError when Temporal is away.
    """
    request = DescribeTaskQueueRequest(
        namespace=settings.temporal_namespace,
        task_queue=TaskQueue(name=settings.task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    with unreachable_if_away(client):
        found = await client.workflow_service.describe_task_queue(request, timeout=ASK_TIMEOUT)
    pollers = [Poller(one.identity, one.last_access_time.ToDatetime(UTC)) for one in found.pollers]
    since = datetime.now(UTC) - POLL_AGE
    return sorted((one for one in pollers if one.seen_at > since), key=lambda one: one.seen_at, reverse=True)


async def temporal_version(client: Client) -> str:
    """The server's version. ServiceUnreachableError when Temporal is away."""
    with unreachable_if_away(client):
        info = await client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=ASK_TIMEOUT)
    return info.server_version
