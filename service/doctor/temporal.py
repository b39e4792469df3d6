"""Temporal: namespace, search attributes, workers on the task queue, and the safety net's schedule."""

from collections.abc import AsyncIterator

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from evervec.errors import EvervecError
from evervec.log import describe_error
from evervec.schedule import schedule_id
from evervec.settings import Settings
from evervec.temporal import connect, how_to_register, knows_search_attributes, unreachable_if_away
from service.doctor.check import Check, advice, fault, fine
from service.health import workers


async def check_temporal(settings: Settings, instance: str | None) -> AsyncIterator[Check]:
    """All that evervec needs of Temporal; the schedule is that of the instance, if one is known."""
    try:
        client = await connect(settings)
        with unreachable_if_away(client):
            namespace = await _namespace(client)
            yield namespace
            if namespace.ok:
                yield await _attributes(client)
                yield await _worker(client, settings)
                if instance:
                    yield await _schedule(client, instance)
    except EvervecError as error:
        yield fault("Temporal", str(error), "start Temporal, or correct the EVERVEC_TEMPORAL_ variables")
    except RPCError as error:
        yield fault(
            "Temporal",
            f"{settings.temporal_address} refuses: {error.status.name}",
            "check EVERVEC_TEMPORAL_API_KEY, the certificates and their rights on the namespace",
        )


async def _namespace(client: Client) -> Check:
    address = client.service_client.config.target_host
    try:
        await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return fault(
                "Temporal",
                f"{address} has no namespace {client.namespace!r}",
                f"set EVERVEC_TEMPORAL_NAMESPACE, or `temporal operator namespace create -n {client.namespace}`",
            )
        raise
    return fine("Temporal", f"{address} has the namespace {client.namespace!r}")


async def _attributes(client: Client) -> Check:
    if await knows_search_attributes(client):
        return fine("search attributes", "EvervecSource and EvervecState are registered")
    return advice(
        "search attributes",
        "they are missing in the namespace: items and sweeps can't be listed by source and state",
        how_to_register(client.namespace),
    )


async def _worker(client: Client, settings: Settings) -> Check:
    # One poller is listed for each worker.
    found = {poller.identity for poller in await workers(client, settings)}
    if found:
        return fine("worker", f"{len(found)} at work on the task queue {settings.task_queue!r}")
    return fault(
        "worker",
        f"none asks for work on the task queue {settings.task_queue!r}",
        "start one: `evervec worker`, with the EVERVEC_TASK_QUEUE that the listener has",
    )


async def _schedule(client: Client, instance: str) -> Check:
    try:
        found = await client.get_schedule_handle(schedule_id(instance)).describe()
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return fault(
                "safety net",
                f"there is no schedule {schedule_id(instance)}: what nobody heard of is not swept",
                "start a listener, which makes it: `evervec listener`",
            )
        return fault("safety net", f"its schedule is not known: {describe_error(error)}", "see Temporal's log")
    if found.schedule.state.paused:
        return advice(
            "safety net",
            f"the schedule {schedule_id(instance)} is paused",
            f"`temporal schedule toggle --unpause -s {schedule_id(instance)}`",
        )
    return fine("safety net", f"schedule {schedule_id(instance)}")
