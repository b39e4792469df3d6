"""How a trace gets from the listener's signal to the worker's activity. Needs the extra `evervec[otel]`.

The context travels in Temporal's headers. A workflow hands on that of the last signal, and makes no spans of its own:
it lives for many edits, and is replayed.
"""

from collections.abc import Mapping
from typing import Any, NoReturn

from temporalio.api.common.v1 import Payload
from temporalio.contrib import opentelemetry as contrib
from temporalio.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleSignalInput,
    StartActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from temporalio.workflow import ActivityHandle

HEADER = "_tracer-data"
"""As `TracingInterceptor` calls it."""


class Interceptor(contrib.TracingInterceptor):
    """Spans for calls to Temporal and for activities."""

    def workflow_interceptor_class(self, input: WorkflowInterceptorClassInput) -> Any:  # noqa: A002, ARG002 - its name
        """What workflows do: hand on."""
        return HandOn


class HandOn(WorkflowInboundInterceptor):
    """Keeps the last header that came in."""

    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        """Put the header on what goes out."""
        self.header: Payload | None = None
        super().init(_Outbound(outbound, self))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        """The header of the start, unless a signal came with it."""
        self.header = self.header or input.headers.get(HEADER)
        return await super().execute_workflow(input)

    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
        """The header of a signal; one without is of somebody who does not trace."""
        self.header = input.headers.get(HEADER)
        await super().handle_signal(input)

    def on(self, headers: Mapping[str, Payload]) -> Mapping[str, Payload]:
        """The headers, and ours."""
        return {**headers, HEADER: self.header} if self.header else headers


class _Outbound(WorkflowOutboundInterceptor):
    def __init__(self, following: WorkflowOutboundInterceptor, inbound: HandOn) -> None:
        super().__init__(following)
        self._inbound = inbound

    def start_activity(self, input: StartActivityInput) -> ActivityHandle[Any]:  # noqa: A002
        input.headers = self._inbound.on(input.headers)
        return super().start_activity(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        input.headers = self._inbound.on(input.headers)
        super().continue_as_new(input)
