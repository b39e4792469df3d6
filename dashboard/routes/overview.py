"""The overview: how every source stands and what the pipeline does, kept up to date while somebody looks."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from dashboard.backfills import Backfills
from dashboard.charts import Frame, charts
from dashboard.errors import BusyError
from dashboard.monitor import Snapshot
from dashboard.web import Dash, Looking, fragment, page

router = APIRouter(include_in_schema=False)

STREAMS = 100

LIVE = {
    "overview": ("alerts", "totals", "sources", "sweeps", "charts", "health"),
    "sources": ("alerts", "backfills", "sweeps"),
}
"""The parts of a page that are sent again whenever they have changed, by the page's name."""


@router.get("/")
async def overview(request: Request, dash: Dash, _visitor: Looking) -> Response:
    """How things stand."""
    snapshot = await dash.monitor.snapshot()
    return page(request, "overview.html", live=parts("overview", snapshot, dash.backfills))


def room_to_watch(dash: Dash) -> None:
    """BusyError when too many look already: each stream keeps a connection open."""
    if dash.monitor.watchers >= STREAMS:
        raise BusyError


@router.get("/events", response_class=EventSourceResponse, dependencies=[Depends(room_to_watch)])
async def events(_visitor: Looking, dash: Dash, of: str = "overview") -> AsyncIterator[ServerSentEvent]:
    """The parts of a page that have changed since they were sent last: their name and their HTML."""
    sent: dict[str, str] = {}
    async for snapshot in dash.monitor.snapshots():
        for name, html in parts(of, snapshot, dash.backfills).items():
            if sent.get(name) != html:
                sent[name] = html
                yield ServerSentEvent(event=name, raw_data=html)


def parts(of: str, snapshot: Snapshot, backfills: Backfills) -> dict[str, str]:
    """The live parts of a page, as HTML."""
    values = {
        "snapshot": snapshot,
        "charts": charts(snapshot.history),
        "frame": Frame(),
        "backfills": backfills.shown,
    }
    return {name: fragment(f"live/{name}.html", **values) for name in LIVE.get(of, ())}
