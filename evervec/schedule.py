"""The safety net: a Temporal Schedule that has waiting items swept, whatever became of bell and listener."""

from dataclasses import replace
from datetime import timedelta
from zlib import crc32

from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleSpec,
    ScheduleUpdate,
    ScheduleUpdateInput,
)
from temporalio.service import RPCError, RPCStatusCode

from evervec.errors import ServiceUnreachableError
from evervec.messages import SAFETY_NET_WORKFLOW, SafetyNetInput
from evervec.settings import Settings
from evervec.temporal import unreachable_if_away

EVERY = timedelta(minutes=5)
CATCH_UP = timedelta(minutes=1)
"""How late a run may be: one that was missed is made up for by the next."""


def schedule_id(instance: str) -> str:
    """The id of an installation's schedule, and of the workflows that it starts."""
    return f"embedding-sweeps/{instance}"


def turn_of(instance: str) -> timedelta:
    """How long after each multiple of `EVERY` an installation has its turn: not all of a server at once."""
    return timedelta(seconds=crc32(instance.encode()) % round(EVERY.total_seconds()))


async def ensure_schedule(client: Client, settings: Settings, instance: str, *, searchable: bool) -> None:
    """Make the schedule, or bring it up to date; one that somebody has paused stays paused.

    `searchable`: whether the namespace knows evervec's search attributes.

    ServiceUnreachableError when Temporal is away, RPCError when it refuses or knows no schedules.
    """
    schedule = Schedule(
        action=ScheduleActionStartWorkflow(
            SAFETY_NET_WORKFLOW,
            SafetyNetInput(instance=instance, searchable=searchable),
            id=schedule_id(instance),
            task_queue=settings.task_queue,
            execution_timeout=EVERY,
            static_summary="finds what was overlooked, and has it swept",
        ),
        spec=ScheduleSpec(intervals=[ScheduleIntervalSpec(every=EVERY, offset=turn_of(instance))]),
        policy=SchedulePolicy(overlap=ScheduleOverlapPolicy.SKIP, catchup_window=CATCH_UP),
    )

    def present(found: ScheduleUpdateInput) -> ScheduleUpdate:
        return ScheduleUpdate(replace(schedule, state=found.description.schedule.state))

    with unreachable_if_away(client):
        try:
            await client.create_schedule(schedule_id(instance), schedule)
        except ScheduleAlreadyRunningError:
            await client.get_schedule_handle(schedule_id(instance)).update(present)


async def delete_schedule(client: Client, instance: str) -> None:
    """Delete an installation's schedule, if there is one. ServiceUnreachableError when Temporal is away or refuses."""
    try:
        with unreachable_if_away(client):
            await client.get_schedule_handle(schedule_id(instance)).delete()
    except RPCError as error:
        if error.status is not RPCStatusCode.NOT_FOUND:
            raise ServiceUnreachableError(f"Temporal refuses: {error.status.name}") from None
