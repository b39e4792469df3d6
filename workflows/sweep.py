"""A source's sweep: embeds whatever waits in its outbox, in batches."""

import asyncio
from collections import Counter, deque
from datetime import timedelta
from typing import NoReturn

from temporalio import workflow
from temporalio.common import Priority
from temporalio.exceptions import ActivityError, ApplicationError

with workflow.unsafe.imports_passed_through():
    from evervec.messages import (
        BATCH_GENERATE_EMBEDDINGS,
        FETCH_ITEMS_FOR_EMBEDDING,
        ITEMS_WAITING_SIGNAL,
        SWEEP_STATUS_QUERY,
        SWEEP_WORKFLOW,
        BatchEmbeddingRequest,
        BatchEmbeddingResult,
        FetchItemsRequest,
        FetchItemsResult,
        Outcome,
        SweepProgress,
        SweepStatus,
        SweepWorkflowInput,
    )
    from workflows.retries import HEARTBEAT_TIMEOUT, NO_SUCH_SOURCE, RETRY_POLICY

LANES = 3
"""Batches at a time: while one is encoded, another is read and a third one written."""
FIRST_BATCH, SMALLEST_BATCH, LARGEST_BATCH = 128, 32, 1024
SHORT_SECONDS, LONG_SECONDS = 3.0, 12.0
"""A batch that took less is followed by larger ones, one that took more by smaller ones."""
PACED_SECONDS = 5.0
"""With a rate, a batch is what may be done in so long; then the rate is read again."""
FIRST_REST, LONGEST_REST = 1.0, 5.0
"""Between passes that change nothing, because users' transactions hold all that waits."""
SHORTEST_REST, ERROR_REST = 0.02, 60.0
FETCH_TIMEOUT = timedelta(minutes=1)
BATCH_TIMEOUT = timedelta(hours=1)
BEHIND_LIVE_EDITS = Priority(priority_key=5)

SHOWN = {Outcome.EMBEDDED, Outcome.UNCHANGED, Outcome.FAILED, Outcome.LOCKED}


@workflow.defn(name=SWEEP_WORKFLOW)
class EmbeddingSweepWorkflow:
    """Goes through a source's waiting items in the order of their keys, again and again, until none is left.

    It ends as well when the source is paused or gone. It may be cancelled at any time: the outbox has it all.
    """

    @workflow.init
    def __init__(self, start: SweepWorkflowInput) -> None:
        progress = start.progress or SweepProgress(started_at=workflow.now())
        self._source = start.source
        self._after = start.after
        self._batch_size = start.batch_size or FIRST_BATCH
        self._started_at = progress.started_at
        self._busy_seconds = progress.busy_seconds
        self._passes = progress.passes
        self._items = progress.items
        self._counts = Counter(progress.counts)
        self._last_error = progress.last_error
        self._rate: float | None = None
        self._rest = FIRST_REST
        self._woken = False
        self._pass_began: float | None = None
        # Of the present pass:
        self._keys: deque[str] = deque()
        self._running = 0
        self._fetched_all = False
        self._found = False
        self._changed = False
        self._blocked = False
        self._over = False
        self._wait_seconds: float | None = None

    @workflow.signal(name=ITEMS_WAITING_SIGNAL)
    def items_waiting(self) -> None:
        """Look again: there are new items, or the source was resumed."""
        self._woken = True

    @workflow.query(name=SWEEP_STATUS_QUERY)
    def status(self) -> SweepStatus:
        """How far it is."""
        busy = self._busy_seconds + (workflow.time() - self._pass_began if self._pass_began else 0)
        return SweepStatus(
            source=self._source,
            started_at=self._started_at,
            pass_number=self._passes,
            items=self._items,
            embedded=self._counts[Outcome.EMBEDDED],
            unchanged=self._counts[Outcome.UNCHANGED],
            failed=self._counts[Outcome.FAILED],
            locked=self._counts[Outcome.LOCKED],
            others=self._items - sum(self._counts[outcome] for outcome in SHOWN),
            rate=self._rate,
            items_per_second=round(self._items / busy, 1) if busy > 0 else 0.0,
            last_error=self._last_error,
        )

    @workflow.run
    async def run(self, _start: SweepWorkflowInput) -> None:
        """Make passes until one finds that nothing is pending, or that the source is paused or gone.

        Nothing is awaited between that answer and the end, so a signal is either seen here, or the server makes the
        decision to end void and has it taken again with the signal in sight.
        """
        while True:
            self._woken = False
            rest = await self._pass()
            if rest is None and not self._woken:
                return
            if workflow.info().is_continue_as_new_suggested():
                self._continue_as_new()
            if rest:
                await self._sleep(max(rest, SHORTEST_REST))

    async def _pass(self) -> float | None:
        """Go through the outbox once: seconds to rest before the next pass, None if there is no need of one."""
        from_the_start = self._after is None
        self._fetched_all = self._found = self._changed = self._blocked = self._over = False
        self._pass_began = workflow.time()
        self._passes += from_the_start
        await asyncio.gather(self._fetch_pages(), *(self._lane() for _ in range(LANES)))
        self._busy_seconds += workflow.time() - self._pass_began
        self._pass_began = None
        self._keys.clear()
        if self._halted() and not (self._over or self._blocked):
            return 0.0  # the next run goes on from here
        self._after = None
        return self._rest_after_pass(from_the_start)

    def _rest_after_pass(self, from_the_start: bool) -> float | None:
        if self._over:
            return None
        if self._blocked:
            return ERROR_REST
        if not self._found:
            return self._wait_seconds if from_the_start else 0.0
        if self._changed:
            self._rest = FIRST_REST
            return 0.0
        rest, self._rest = self._rest, min(2 * self._rest, LONGEST_REST)
        return rest

    def _halted(self) -> bool:
        """Whether nothing more is to be begun in this pass."""
        return self._over or self._blocked or workflow.info().is_continue_as_new_suggested()

    async def _fetch_pages(self) -> None:
        """Keep some keys at hand, so that no lane waits for them."""
        while not (self._fetched_all or self._halted()):
            await workflow.wait_condition(lambda: self._halted() or len(self._keys) < self._size())
            if not self._halted():
                await self._fetch_page()

    async def _fetch_page(self) -> None:
        request = FetchItemsRequest(
            source=self._source,
            after=self._keys[-1] if self._keys else self._after,
            limit=self._size() if self._rate else (LANES + 1) * self._size(),
        )
        try:
            page = await workflow.execute_activity(
                FETCH_ITEMS_FOR_EMBEDDING,
                request,
                result_type=FetchItemsResult,
                start_to_close_timeout=FETCH_TIMEOUT,
                retry_policy=RETRY_POLICY,
                priority=BEHIND_LIVE_EDITS,
            )
        except ActivityError as error:
            self._give_up(error)
            return
        self._over = self._over or page.paused
        self._rate = page.rate
        self._keys.extend(page.item_keys)
        self._found = self._found or bool(page.item_keys)
        self._fetched_all = page.last
        self._wait_seconds = page.wait_seconds
        if self._rate:
            self._put_back()

    def _put_back(self) -> None:
        """Keep no more keys than may be embedded before the rate is read again."""
        while len(self._keys) > self._size():
            self._keys.pop()
            self._fetched_all = False

    async def _lane(self) -> None:
        """Do one batch after the other."""
        while True:
            await workflow.wait_condition(lambda: self._may_begin() or self._nothing_to_begin())
            if self._nothing_to_begin():
                return
            if self._may_begin():  # else another lane, woken by the same keys, was first
                await self._batch()

    def _may_begin(self) -> bool:
        return bool(self._keys) and not (self._rate and self._running)

    def _nothing_to_begin(self) -> bool:
        return self._halted() or (self._fetched_all and not self._keys)

    def _size(self) -> int:
        """How many keys the next batch has."""
        if self._rate:
            return min(max(1, int(self._rate * PACED_SECONDS)), LARGEST_BATCH)
        return self._batch_size

    async def _batch(self) -> None:
        keys = [self._keys.popleft() for _ in range(min(self._size(), len(self._keys)))]
        self._after = keys[-1]
        self._running += 1
        try:
            result = await workflow.execute_activity(
                BATCH_GENERATE_EMBEDDINGS,
                BatchEmbeddingRequest(source=self._source, item_keys=keys, rate=self._rate),
                result_type=BatchEmbeddingResult,
                start_to_close_timeout=BATCH_TIMEOUT,
                heartbeat_timeout=HEARTBEAT_TIMEOUT,
                retry_policy=RETRY_POLICY,
                priority=BEHIND_LIVE_EDITS,
            )
        except ActivityError as error:
            self._give_up(error)
        else:
            self._note(result)
        finally:
            self._running -= 1

    def _note(self, result: BatchEmbeddingResult) -> None:
        self._items += result.total_items
        self._counts.update(result.counts)
        self._changed = self._changed or bool(result.successful or result.failed)
        self._over = self._over or Outcome.PAUSED in result.counts
        if result.results:
            self._last_error = result.results[-1].error_message
        if self._rate:
            return
        if result.seconds > LONG_SECONDS:
            self._batch_size = max(self._batch_size // 2, SMALLEST_BATCH)
        elif result.seconds < SHORT_SECONDS and result.total_items == self._batch_size:
            self._batch_size = min(self._batch_size * 2, LARGEST_BATCH)

    def _give_up(self, error: ActivityError) -> None:
        """No retry helps: the source is gone, or its configuration has to be changed first."""
        cause = error.cause
        if isinstance(cause, ApplicationError) and cause.type == NO_SUCH_SOURCE:
            self._over = True
        else:
            self._blocked = True
        self._last_error = cause.message if isinstance(cause, ApplicationError) else type(cause).__name__

    async def _sleep(self, seconds: float) -> None:
        """Wait until something may be due, or a signal comes."""
        try:
            await workflow.wait_condition(lambda: self._woken, timeout=seconds)
        except TimeoutError:
            return

    def _continue_as_new(self) -> NoReturn:
        workflow.continue_as_new(
            SweepWorkflowInput(
                source=self._source,
                after=self._after,
                batch_size=self._batch_size,
                progress=SweepProgress(
                    started_at=self._started_at,
                    busy_seconds=self._busy_seconds,
                    passes=self._passes,
                    items=self._items,
                    counts=dict(self._counts),
                    last_error=self._last_error,
                ),
            )
        )
