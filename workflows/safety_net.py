"""The safety net: finds sources whose waiting items nobody was told of, and starts their sweeps."""

from datetime import timedelta

from temporalio import workflow
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.workflow import ParentClosePolicy

with workflow.unsafe.imports_passed_through():
    from evervec.messages import (
        FIND_WAITING_SOURCES,
        SAFETY_NET_WORKFLOW,
        SOURCE_ATTRIBUTE,
        SWEEP_WORKFLOW,
        SafetyNetInput,
        SweepWorkflowInput,
        WaitingSourcesRequest,
        WaitingSourcesResult,
        sweep_summary,
    )
    from workflows.retries import RETRY_POLICY

SOURCE = SearchAttributeKey.for_keyword(SOURCE_ATTRIBUTE)
ATTEMPT_TIMEOUT = timedelta(minutes=1)


@workflow.defn(name=SAFETY_NET_WORKFLOW)
class EmbeddingSafetyNetWorkflow:
    """Runs now and then, by a schedule."""

    @workflow.run
    async def run(self, start: SafetyNetInput) -> None:
        """Start a sweep, which outlives this workflow, for each source that needs one and has none."""
        waiting = await workflow.execute_activity(
            FIND_WAITING_SOURCES,
            WaitingSourcesRequest(instance=start.instance),
            result_type=WaitingSourcesResult,
            start_to_close_timeout=ATTEMPT_TIMEOUT,
            retry_policy=RETRY_POLICY,
        )
        for source, workflow_id in waiting.sweeps.items():
            attributes = TypedSearchAttributes([SearchAttributePair(SOURCE, source)])
            try:
                await workflow.start_child_workflow(
                    SWEEP_WORKFLOW,
                    SweepWorkflowInput(source=source),
                    id=workflow_id,
                    parent_close_policy=ParentClosePolicy.ABANDON,
                    search_attributes=attributes if start.searchable else None,
                    static_summary=sweep_summary(source),
                )
            except WorkflowAlreadyStartedError:
                workflow.logger.debug("a sweep is open", extra={"source": source})
