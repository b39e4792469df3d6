"""Items: find them, and have one explained."""

import asyncio
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response
from temporalio.service import RPCError

from dashboard.context import Context
from dashboard.errors import RequestError
from dashboard.web import Dash, Looking, Ordered, Posted, back_to, checked, fragment, page, temporal_link, text_of
from dashboard.words import fits_url
from db.pages import ItemPage
from evervec.errors import EvervecError
from evervec.temporal import fits_workflow_id, item_workflow_id, sweep_workflow_id
from service.explain import ItemReport, explain
from service.history import Step, last_steps
from service.refire import refire_keys, retry
from service.workflow import WorkflowStatus, workflow_status

router = APIRouter(include_in_schema=False)

PAGE = 50
CONTENT_CHARACTERS = 20_000
NEIGHBOURS = 8
NEIGHBOUR_SECONDS = 15.0
TEMPORAL_SECONDS = 4.0


class State(StrEnum):
    """Which items a list shows."""

    ANY = "any"
    STALE = "stale"
    """In the outbox: pending or failed."""
    PENDING = "pending"
    FAILED = "failed"


@router.get("/items")
async def items(
    request: Request,
    dash: Dash,
    _visitor: Looking,
    source: str = "",
    state: State = State.ANY,
    after: str | None = None,
) -> Response:
    """A page of items."""
    return await _list(request, dash, source, state, after)


@router.post("/items")
async def items_after_long_key(request: Request, dash: Dash, form: Posted) -> Response:
    """The same beyond a key that is too long for a link."""
    state = text_of(form, "state")
    if state not in set(State):
        raise RequestError(f"there is no state {state!r}")
    return await _list(request, dash, text_of(form, "source"), State(state), text_of(form, "after"))


async def _list(request: Request, dash: Context, source: str, state: State, after: str | None) -> Response:
    names = await dash.sources.names()
    chosen = source or (names[0] if names else "")
    found = ItemPage([], None)
    if chosen:
        await dash.sources.get(checked(chosen, "source"))
        found = await _page_of(dash, chosen, state, None if after is None else checked(after, "after"))
    return page(
        request,
        "items.html",
        names=names,
        source=chosen,
        state=state,
        states=list(State),
        after=after,
        found=found,
    )


async def _page_of(dash: Context, source: str, state: State, after: str | None) -> ItemPage:
    match state:
        case State.ANY:
            return await dash.pages.items(source, after=after, limit=PAGE)
        case State.STALE:
            return await dash.pages.waiting(source, None, after=after, limit=PAGE)
    return await dash.pages.waiting(source, state.value, after=after, limit=PAGE)


@router.get("/item")
async def item(request: Request, dash: Dash, _visitor: Looking, source: str, key: str = "") -> Response:
    """One item, explained."""
    return await _item_page(request, dash, checked(source, "source"), checked(key, "key"))


@router.post("/item")
async def item_of_long_key(request: Request, dash: Dash, form: Posted) -> Response:
    """The same for a key that is too long for a link."""
    return await _item_page(request, dash, text_of(form, "source"), text_of(form, "key"))


@router.get("/item/neighbours")
async def neighbours(request: Request, dash: Dash, _visitor: Looking, source: str, key: str = "") -> Response:
    """The items nearest to an item: a part of its page that may take longer; a page of its own without scripts."""
    found = await _neighbours(dash, checked(source, "source"), checked(key, "key"))
    if request.headers.get("sec-fetch-dest") == "document":
        return page(request, "neighbours.html", source=source, key=key, neighbours=found)
    return HTMLResponse(found)


@router.post("/item/embed")
async def embed(request: Request, dash: Dash, form: Ordered) -> Response:
    """Embed an item again, whatever its state."""
    source, key = text_of(form, "source"), text_of(form, "key")
    enqueued = await refire_keys(dash.sources, source, [key], force=True)
    return await _after(request, dash, source, key, "embedding" if enqueued else "ineligible")


@router.post("/item/retry")
async def retry_item(request: Request, dash: Dash, form: Ordered) -> Response:
    """Try a failed item again."""
    source, key = text_of(form, "source"), text_of(form, "key")
    return await _after(request, dash, source, key, "retried", n=await retry(dash.sources, source, [key]))


async def _after(request: Request, dash: Context, source: str, key: str, done: str, **numbers: int) -> Response:
    dash.monitor.hurry()
    if fits_url(key):
        return back_to("/item", done, source=source, key=key, **numbers)
    return await _item_page(request, dash, source, key)


async def _item_page(request: Request, dash: Context, source: str, key: str) -> Response:
    report = await explain(dash.sources, source, key)
    content, length = await dash.pages.content(source, key, limit=CONTENT_CHARACTERS)
    with_neighbours = "" if fits_url(key) else await _neighbours(dash, source, key)
    return page(
        request,
        "item.html",
        report=report,
        content=content,
        length=length,
        neighbours=with_neighbours,
        **await _workflow(dash, report),
    )


async def _neighbours(dash: Context, source: str, key: str) -> str:
    try:
        async with asyncio.timeout(NEIGHBOUR_SECONDS):
            found = await dash.pages.neighbours(source, key, limit=NEIGHBOURS)
    except TimeoutError:
        return fragment("part/slow.html", seconds=NEIGHBOUR_SECONDS)
    return fragment(
        "part/hits.html", source=source, hits=found, nothing="It has no vector of the source's present model."
    )


async def _workflow(dash: Context, report: ItemReport) -> dict[str, Any]:
    """What Temporal knows of the item: its own workflow, and the sweep that it may wait for."""
    own: WorkflowStatus | None = None
    sweep: WorkflowStatus | None = None
    steps: list[Step] = []
    problem = None
    workflow_id = item_workflow_id(dash.instance, report.source, report.key)
    try:
        async with asyncio.timeout(TEMPORAL_SECONDS):
            client = await dash.temporal.client()
            if fits_workflow_id(dash.instance, report.source, report.key):
                own = await workflow_status(client, workflow_id)
                steps = await last_steps(client, workflow_id) if own else []
            if report.outbox:
                sweep = await workflow_status(client, sweep_workflow_id(dash.instance, report.source))
    except EvervecError as error:
        problem = str(error)
    except RPCError as error:
        problem = f"Temporal refuses: {error.status.name.lower()}"
    except TimeoutError:
        problem = "Temporal takes too long to answer"
    running = sweep if sweep and sweep.status == "running" else None
    return {
        "workflow": own,
        "workflow_link": temporal_link(dash, workflow_id) if own else None,
        "steps": steps,
        "sweep": running,
        "sweep_link": temporal_link(dash, running.id) if running else None,
        "temporal_problem": problem,
    }
