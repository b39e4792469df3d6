"""One item's workflow: embeds it whenever it changed, and waits for the next change."""

import asyncio
from datetime import timedelta
from typing import NoReturn

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from evervec.messages import (
        GENERATE_ITEM_EMBEDDING,
        ITEM_CHANGED_SIGNAL,
        ITEM_HELD_UP_SIGNAL,
        ITEM_STATUS_QUERY,
        ITEM_WORKFLOW,
        STATE_ATTRIBUTE,
        ItemChange,
        ItemEmbeddingRequest,
        ItemEmbeddingResult,
        ItemWorkflowInput,
        ItemWorkflowState,
        ItemWorkflowStatus,
        Outcome,
        StateShown,
    )
    from workflows.retries import HEARTBEAT_TIMEOUT, NO_SUCH_SOURCE, RETRY_POLICY

STATE = SearchAttributeKey.for_keyword(STATE_ATTRIBUTE)

ATTEMPT_TIMEOUT = timedelta(minutes=10)
SHORTEST_TIMER = 0.01
MOST_ROUNDS = 10
"""In one run. A worker keeps in memory what has happened in each run that is open, some 5 kB a round."""
SHORT_RUNS = "short runs"
"""What runs of before do not know: they go on until their history is long."""

# The state after each outcome. The others leave the item pending: what they wait for sends a signal of its own.
SETTLED = {
    Outcome.EMBEDDED: ItemWorkflowState.FRESH,
    Outcome.UNCHANGED: ItemWorkflowState.FRESH,
    Outcome.INELIGIBLE: ItemWorkflowState.FRESH,
    Outcome.GONE: ItemWorkflowState.FRESH,
    Outcome.FAILED: ItemWorkflowState.FAILED,
}


@workflow.defn(name=ITEM_WORKFLOW)
class ItemEmbeddingWorkflow:
    """Runs from an item's first change until the item is gone, or quiet for the idle time."""

    @workflow.init
    def __init__(self, start: ItemWorkflowInput) -> None:
        # Set here and not in run(): a signal that came with the start is handled in between.
        self._start = start
        self._dirty = start.dirty
        self._force = start.force_regenerate
        self._content_hash = start.content_hash
        self._rounds = start.rounds
        self._state = self._shown = start.state
        self._last_outcome = start.last_outcome
        self._last_error = start.last_error
        self._gone = False
        self._active_at = workflow.time()
        self._idle_timer: asyncio.Task[None]

    @workflow.signal(name=ITEM_CHANGED_SIGNAL)
    def item_changed(self, change: ItemChange) -> None:
        """Note the newest hash; changes that come during a round share the next one."""
        self._content_hash = change.content_hash
        self._force = self._force or change.force_regenerate
        self._dirty = True
        self._active_at = workflow.time()

    @workflow.signal(name=ITEM_HELD_UP_SIGNAL)
    def item_held_up(self) -> None:
        """The attempts of this round fail, and more follow: it is seen from outside that the item waits."""
        self._show_state()

    @workflow.query(name=ITEM_STATUS_QUERY)
    def status(self) -> ItemWorkflowStatus:
        """Where the item stands."""
        return ItemWorkflowStatus(
            source=self._start.source,
            item_key=self._start.item_key,
            state=self._state,
            content_hash=self._content_hash,
            rounds=self._rounds,
            last_outcome=self._last_outcome,
            last_error=self._last_error,
        )

    @workflow.run
    async def run(self, _start: ItemWorkflowInput) -> None:
        """Embed while there are changes; end when idle or when the item is gone, begin a new run when this is long."""
        self._idle_timer = asyncio.create_task(self._idle())
        while await self._next_change():
            if self._is_long():
                self._continue_as_new()
            await self._round()

    def _is_long(self) -> bool:
        if workflow.info().is_continue_as_new_suggested():
            return True
        return self._rounds >= self._start.rounds + MOST_ROUNDS and workflow.patched(SHORT_RUNS)

    async def _next_change(self) -> bool:
        """Wait for a change; False when it is time to end.

        Nothing is awaited between the answer and the end, so a signal is either seen here, or the server makes the
        decision to end void and has it taken again with the signal in sight.
        """
        if self._idle_timer.done():
            self._idle_timer = asyncio.create_task(self._idle())
        await workflow.wait_condition(lambda: self._dirty or self._gone or self._idle_timer.done())
        return self._dirty

    async def _idle(self) -> None:
        """Return when nothing happened for the idle time.

        One timer serves many changes: if each change started its own, that would be two more events of history.
        """
        while (rest := self._active_at + self._start.idle_seconds - workflow.time()) > 0:
            await workflow.sleep(max(rest, SHORTEST_TIMER))

    async def _round(self) -> None:
        force = self._force
        self._dirty = self._force = False
        self._set_state(ItemWorkflowState.PENDING)
        try:
            self._note(await self._generate(force))
        except ActivityError as error:
            self._give_up(error)
        if self._state is ItemWorkflowState.PENDING:
            self._force = self._force or force
        self._show_state()
        self._rounds += 1
        self._active_at = workflow.time()

    async def _generate(self, force: bool) -> ItemEmbeddingResult:
        activity: workflow.ActivityHandle[ItemEmbeddingResult] = workflow.start_activity(
            GENERATE_ITEM_EMBEDDING,
            ItemEmbeddingRequest(
                source=self._start.source,
                item_key=self._start.item_key,
                content_hash=self._content_hash,
                force_regenerate=force,
            ),
            result_type=ItemEmbeddingResult,
            start_to_close_timeout=ATTEMPT_TIMEOUT,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
            retry_policy=RETRY_POLICY,
        )
        await workflow.wait_condition(lambda: activity.done() or workflow.info().is_continue_as_new_suggested())
        if not activity.done():
            # Signals fill the history while a long retry goes on. The next run begins this round again;
            # what is left of this one may still write, which does no harm.
            self._dirty = True
            self._force = self._force or force
            self._show_state()
            self._continue_as_new()
        return await activity

    def _note(self, result: ItemEmbeddingResult) -> None:
        self._gone = result.outcome is Outcome.GONE
        self._last_outcome = result.outcome
        if result.outcome is not Outcome.FAILED or result.error_message:  # else: given up before, for what it said then
            self._last_error = result.error_message
        if not self._dirty:
            self._content_hash = result.content_hash
        self._set_state(SETTLED.get(result.outcome, ItemWorkflowState.PENDING))

    def _give_up(self, error: ActivityError) -> None:
        """Wait for the next signal after an error that no retry helps."""
        cause = error.cause
        self._gone = isinstance(cause, ApplicationError) and cause.type == NO_SUCH_SOURCE
        self._last_outcome = None
        self._last_error = cause.message if isinstance(cause, ApplicationError) else type(cause).__name__

    def _set_state(self, state: ItemWorkflowState) -> None:
        self._state = state
        if self._start.state_shown is StateShown.EACH:
            self._show_state()

    def _show_state(self) -> None:
        if self._state is not self._shown and self._start.state_shown is not StateShown.NEVER:
            self._shown = self._state
            workflow.upsert_search_attributes([STATE.value_set(self._state.value)])

    def _continue_as_new(self) -> NoReturn:
        workflow.continue_as_new(
            ItemWorkflowInput(
                source=self._start.source,
                item_key=self._start.item_key,
                idle_seconds=self._start.idle_seconds,
                state_shown=self._start.state_shown,
                dirty=self._dirty,
                force_regenerate=self._force,
                content_hash=self._content_hash,
                rounds=self._rounds,
                state=self._state,
                last_outcome=self._last_outcome,
                last_error=self._last_error,
            )
        )
