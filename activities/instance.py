"""Whose tasks these are: workers of two databases may poll the same task queue."""

from datetime import timedelta

from temporalio import activity

from db.items import Items
from evervec.log import get_logger
from evervec.temporal import instance_of, passing_failure

MISDIRECTED_RETRY, LONGEST_MISDIRECTED_RETRY = timedelta(seconds=0.1), timedelta(seconds=10)
"""Soon, and each time a little later: every other attempt or so gets to the right worker, if it runs."""

log = get_logger(__name__)


class InstanceCheck:
    """Leaves the tasks of another database to its workers."""

    def __init__(self, items: Items) -> None:
        self._items = items
        self._instance: str | None = None
        self._warned = False

    async def check(self, asking: str | None = None) -> None:
        """Fail, to be retried by another worker, unless `asking`, or the instance in the workflow's id, is ours."""
        asking = asking or instance_of(activity.info().workflow_id or "")
        if asking in (None, self._instance):
            return
        self._instance = await self._items.instance()
        if asking != self._instance:
            self._warn()
            delay = min(MISDIRECTED_RETRY * activity.info().attempt, LONGEST_MISDIRECTED_RETRY)
            raise passing_failure("AnotherDatabase", next_retry_delay=delay)

    def _warn(self) -> None:
        if not self._warned:
            log.warning(
                "another database's items come to our task queue, which costs time: give each database its own with "
                "EVERVEC_TASK_QUEUE",
                task_queue=activity.info().task_queue,
            )
        self._warned = True
