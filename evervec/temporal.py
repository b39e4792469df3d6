"""The way to Temporal: the client, what may be told of an error, search attributes, workflow ids."""

import asyncio
import dataclasses
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.failure.v1 import Failure
from temporalio.api.operatorservice.v1 import AddSearchAttributesRequest, ListSearchAttributesRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DefaultFailureConverter, PayloadConverter
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory, FailureError
from temporalio.runtime import Runtime
from temporalio.service import RPCError, RPCStatusCode, TLSConfig

from evervec import tracing
from evervec.errors import ConfigurationError, ModelUnavailableError, ServiceUnreachableError
from evervec.log import describe_error, get_logger
from evervec.messages import (
    ITEM_CHANGED_SIGNAL,
    ITEM_WORKFLOW,
    ITEMS_WAITING_SIGNAL,
    SOURCE_ATTRIBUTE,
    STATE_ATTRIBUTE,
    SWEEP_WORKFLOW,
    ItemChange,
    ItemWorkflowInput,
    ItemWorkflowState,
    StateShown,
    SweepWorkflowInput,
    shortened,
    sweep_summary,
)
from evervec.settings import Settings

CONNECT_SECONDS = 10.0
USABLE_SECONDS = 30.0
"""How long a cluster may take until every one of its hosts knows a new search attribute."""
ASK_TIMEOUT = timedelta(seconds=3)

MAX_ID_BYTES = 1000
"""Temporal's default limit (`limit.maxIDLength`)."""

_ITEM_ID = "item-embedding/"
_SWEEP_ID = "embedding-sweep/"
_SOURCE = SearchAttributeKey.for_keyword(SOURCE_ATTRIBUTE)
_STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)
_ITEM_DETAILS = (
    "Runs from the row's first change until the row is gone or was quiet for a while. "
    "`evervec item SOURCE KEY` says why the row is fresh or stale, the query `status` where this workflow stands."
)
_SWEEP_DETAILS = (
    "Embeds in batches whatever waits in the source's outbox, and ends when nothing does. The query `status` says how "
    "far it is, `evervec pause SOURCE` stops it. It may be cancelled: nothing is lost, and it is begun anew."
)
_KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
# UNKNOWN is what the client says when the connection breaks in the middle of a call.
_AWAY = {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.UNKNOWN}
_NOT_ALLOWED = {RPCStatusCode.PERMISSION_DENIED, RPCStatusCode.UNAUTHENTICATED, RPCStatusCode.UNIMPLEMENTED}


_log = get_logger(__name__)


class StatedError(ApplicationError):
    """A failure whose text evervec wrote itself, without a word of the row: the only text that gets into a history."""


def failure_of(error: Exception, *, next_retry_delay: timedelta | None = None) -> StatedError:
    """What Temporal may be told of an error: its class and SQLSTATE, and the message of a ConfigurationError.

    A ConfigurationError is final, but for a model that can still be installed. Raise the failure `from None`.
    """
    return StatedError(
        _text_of(error),
        type=type(error).__name__,
        non_retryable=isinstance(error, ConfigurationError) and not isinstance(error, ModelUnavailableError),
        next_retry_delay=next_retry_delay,
    )


def passing_failure(name: str, *, next_retry_delay: timedelta) -> StatedError:
    """A failure that is part of normal work: retried after the delay, and no warning in the worker's log."""
    return StatedError(name, type=name, next_retry_delay=next_retry_delay, category=ApplicationErrorCategory.BENIGN)


class RowlessFailureConverter(DefaultFailureConverter):
    """Strips messages, causes and stack traces: a database error's DETAIL quotes the row, an encoder's its text."""

    def to_failure(self, exception: BaseException, payload_converter: PayloadConverter, failure: Failure) -> None:
        """Tell the error's class, SQLSTATE and retry options."""
        super().to_failure(exception, payload_converter, failure)
        if isinstance(exception, FailureError) and exception.failure:
            return  # it comes from a history, where it was stripped on its way in
        failure.message = _text_of(exception)
        failure.stack_trace = ""
        failure.ClearField("cause")
        for kind in ("application_failure_info", "canceled_failure_info"):
            if failure.HasField(kind):
                getattr(failure, kind).ClearField("details")


data_converter = dataclasses.replace(pydantic_data_converter, failure_converter_class=RowlessFailureConverter)


def _text_of(error: BaseException) -> str:
    if isinstance(error, StatedError):
        return error.message
    if isinstance(error, ApplicationError):
        return error.type or type(error).__name__
    if isinstance(error, ConfigurationError):
        return str(error)
    return describe_error(error)


async def connect(settings: Settings, runtime: Runtime | None = None) -> Client:
    """Connect to the settings' namespace; ServiceUnreachableError when Temporal does not answer."""
    tls = _tls(settings)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            return await Client.connect(
                settings.temporal_address,
                namespace=settings.temporal_namespace,
                api_key=settings.temporal_api_key.get_secret_value() if settings.temporal_api_key else None,
                tls=tls,
                data_converter=data_converter,
                runtime=runtime,
                interceptors=tracing.interceptors(),
            )
    except ValueError as error:
        raise ConfigurationError(f"EVERVEC_TEMPORAL_ADDRESS is not a host:port: {error}") from None
    except (RuntimeError, TimeoutError) as error:
        raise ServiceUnreachableError(_no_answer(settings.temporal_address, str(error), with_tls=bool(tls))) from None


def _no_answer(address: str, detail: str, *, with_tls: bool) -> str:
    reason = re.search(r'(?:message|error): "([^"]+)"', detail)
    because = f" ({reason[1]})" if reason else ""
    also = " and the TLS settings" if with_tls else ""
    return f"Temporal does not answer at {address}{because}: start it, or check EVERVEC_TEMPORAL_ADDRESS{also}"


def _tls(settings: Settings) -> TLSConfig | bool:
    ca, cert, key = (
        settings.temporal_tls_server_root_ca_cert,
        settings.temporal_tls_client_cert,
        settings.temporal_tls_client_private_key,
    )
    if not (ca or cert or key or settings.temporal_tls_domain):
        return settings.temporal_api_key is not None
    _check_pem_files(ca, cert, key)
    return TLSConfig(
        server_root_ca_cert=ca.read_bytes() if ca else None,
        domain=settings.temporal_tls_domain,
        client_cert=cert.read_bytes() if cert else None,
        client_private_key=key.read_bytes() if key else None,
    )


def _check_pem_files(ca: Path | None, cert: Path | None, key: Path | None) -> None:
    """Let OpenSSL read the files: its errors come before, and are clearer than, those of a failed connection."""
    context = ssl.create_default_context()
    name = "EVERVEC_TEMPORAL_TLS_SERVER_ROOT_CA_CERT"
    try:
        if ca:
            context.load_verify_locations(ca)
        name = "EVERVEC_TEMPORAL_TLS_CLIENT_CERT or …_CLIENT_PRIVATE_KEY"
        if cert and key:
            context.load_cert_chain(cert, key)
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be used: {error.strerror or error}") from None


@contextmanager
def unreachable_if_away(client: Client) -> Iterator[None]:
    """Raise ServiceUnreachableError in place of the RPC errors that say that Temporal is away."""
    try:
        yield
    except RPCError as error:
        if error.status not in _AWAY:
            raise
        address = client.service_client.config.target_host
        raise ServiceUnreachableError(_no_answer(address, "", with_tls=False)) from None


async def ensure_search_attributes(client: Client) -> bool:
    """Register EvervecSource and EvervecState where they are missing, and wait until queries know them.

    False where they can't be had: workflows go without them, and the log says what to do. ConfigurationError when the
    namespace does not exist.
    """
    refused = False
    try:
        with unreachable_if_away(client):
            refused = not await _register_missing(client)
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            raise ConfigurationError(
                f"Temporal has no namespace {client.namespace!r}: "
                f"set EVERVEC_TEMPORAL_NAMESPACE, or `temporal operator namespace create -n {client.namespace}`"
            ) from None
        if error.status not in _NOT_ALLOWED | {RPCStatusCode.ALREADY_EXISTS}:
            raise
        refused = error.status in _NOT_ALLOWED
    deadline = time.monotonic() + (0 if refused else USABLE_SECONDS)
    while not await knows_search_attributes(client):
        if time.monotonic() >= deadline:
            _log.warning("workflows can't be listed by source and state", reason=how_to_register(client.namespace))
            return False
        await asyncio.sleep(0.1)
    return True


async def _register_missing(client: Client) -> bool:
    """False when one of them is there with another type."""
    operator = client.operator_service
    listed = (
        await operator.list_search_attributes(ListSearchAttributesRequest(namespace=client.namespace))
    ).custom_attributes
    names = (SOURCE_ATTRIBUTE, STATE_ATTRIBUTE)
    if any(listed.get(name, _KEYWORD) != _KEYWORD for name in names):
        return False
    missing = {name: _KEYWORD for name in names if name not in listed}
    if missing:
        await operator.add_search_attributes(
            AddSearchAttributesRequest(namespace=client.namespace, search_attributes=missing)
        )
    return True


async def knows_search_attributes(client: Client) -> bool:
    """Whether queries know evervec's search attributes. ServiceUnreachableError when Temporal is away."""
    try:
        with unreachable_if_away(client):
            await client.count_workflows(f"{SOURCE_ATTRIBUTE} = '' AND {STATE_ATTRIBUTE} = ''")
    except RPCError as error:
        if error.status is not RPCStatusCode.INVALID_ARGUMENT:
            raise
        return False
    return True


def how_to_register(namespace: str) -> str:
    """What to do where the search attributes are missing, or have another type."""
    return (
        f"namespace {namespace!r} lacks evervec's search attributes, of type Keyword: let somebody who may do it run "
        f"`temporal operator search-attribute create --namespace {namespace} "
        f"--name {SOURCE_ATTRIBUTE} --type Keyword --name {STATE_ATTRIBUTE} --type Keyword`"
    )


def item_workflow_id(instance: str, source: str, key: str) -> str:
    """The id of an item's workflow; the instance keeps two databases on one namespace apart."""
    return f"{_ITEM_ID}{instance}/{source}/{key}"


def sweep_workflow_id(instance: str, source: str) -> str:
    """The id of a source's sweep."""
    return f"{_SWEEP_ID}{instance}/{source}"


def is_sweep(workflow_id: str) -> bool:
    """Whether the id is a sweep's."""
    return workflow_id.startswith(_SWEEP_ID)


def instance_of(workflow_id: str) -> str | None:
    """The instance that an item's workflow or a sweep belongs to; None for a workflow of another kind."""
    for prefix in (_ITEM_ID, _SWEEP_ID):
        if workflow_id.startswith(prefix):
            return workflow_id.removeprefix(prefix).partition("/")[0]
    return None


def fits_workflow_id(instance: str, source: str, key: str) -> bool:
    """Whether the key is short enough for a workflow of its own."""
    return len(item_workflow_id(instance, source, key).encode()) <= MAX_ID_BYTES


async def start_item_workflow(
    client: Client,
    settings: Settings,
    instance: str,
    source: str,
    key: str,
    *,
    content_hash: str | None,
    force: bool = False,
    searchable: bool = True,
) -> WorkflowHandle[object, None]:
    """Tell an item's workflow that the item changed, starting it where there is none.

    `searchable`: whether the namespace knows evervec's search attributes.

    ServiceUnreachableError when Temporal is away.
    """
    with unreachable_if_away(client):
        return await client.start_workflow(
            ITEM_WORKFLOW,
            ItemWorkflowInput(
                source=source,
                item_key=key,
                idle_seconds=settings.item_idle_seconds,
                state_shown=StateShown.AT_REST if searchable else StateShown.NEVER,
            ),
            id=item_workflow_id(instance, source, key),
            task_queue=settings.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            start_signal=ITEM_CHANGED_SIGNAL,
            start_signal_args=[ItemChange(content_hash=content_hash, force_regenerate=force)],
            search_attributes=_attributes(source, ItemWorkflowState.PENDING) if searchable else None,
            static_summary=shortened(f"keeps item {key} of {source} true"),
            static_details=_ITEM_DETAILS,
            result_type=type(None),
        )


async def start_sweep_workflow(
    client: Client, settings: Settings, instance: str, source: str, *, searchable: bool = True
) -> WorkflowHandle[object, None]:
    """Tell a source's sweep that items wait, starting it where there is none.

    `searchable`: whether the namespace knows evervec's search attributes.

    ServiceUnreachableError when Temporal is away.
    """
    with unreachable_if_away(client):
        return await client.start_workflow(
            SWEEP_WORKFLOW,
            SweepWorkflowInput(source=source),
            id=sweep_workflow_id(instance, source),
            task_queue=settings.task_queue,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE,
            start_signal=ITEMS_WAITING_SIGNAL,
            search_attributes=_attributes(source) if searchable else None,
            static_summary=sweep_summary(source),
            static_details=_SWEEP_DETAILS,
            result_type=type(None),
        )


def _attributes(source: str, state: ItemWorkflowState | None = None) -> TypedSearchAttributes:
    pairs = [SearchAttributePair(_SOURCE, source)]
    return TypedSearchAttributes([*pairs, SearchAttributePair(_STATE, state.value)] if state else pairs)


async def sweep_is_open(client: Client, instance: str, source: str) -> bool:
    """Whether the source's sweep is at work. ServiceUnreachableError when Temporal is away."""
    try:
        with unreachable_if_away(client):
            description = await client.get_workflow_handle(sweep_workflow_id(instance, source)).describe(
                rpc_timeout=ASK_TIMEOUT
            )
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:
            return False
        raise
    return description.status is WorkflowExecutionStatus.RUNNING
