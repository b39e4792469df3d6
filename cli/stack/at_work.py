"""Whether listener and worker do what they are for, seen from the servers that they serve."""

import psycopg
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest
from temporalio.service import RPCError

from evervec import temporal
from evervec.errors import ServiceUnreachableError
from evervec.settings import Settings


async def listener_listens(settings: Settings) -> bool:
    """Whether a listener is connected to the database."""
    query = """
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'evervec listener'
    """
    try:
        async with await psycopg.AsyncConnection.connect(settings.database_conninfo, connect_timeout=5) as connection:
            return (await connection.execute(query)).rowcount > 0
    except psycopg.OperationalError:
        return False


async def worker_polls(settings: Settings) -> bool:
    """Whether a worker asks Temporal for work on the task queue."""
    request = DescribeTaskQueueRequest(
        namespace=settings.temporal_namespace,
        task_queue=TaskQueue(name=settings.task_queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
    )
    try:
        client = await temporal.connect(settings)
        return bool((await client.workflow_service.describe_task_queue(request)).pollers)
    except (RPCError, ServiceUnreachableError):
        return False
