"""The overview: how every source stands and what the pipeline does, kept up to date while somebody looks."""

from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.responses import Response

from dashboard.charts import Frame, charts
from dashboard.monitor import Snapshot
from dashboard.web import Dash, Looking, fragment, page

router = APIRouter(include_in_schema=False)

LIVE = {
    "overview": ("alerts", "totals", "sources", "sweeps", "charts", "health"),
    "sources": ("alerts", "sweeps"),
}
"""The parts of a page that are sent again whenever they have changed, by the page's name."""


@router.get("/")
async def overview(request: Request, dash: Dash, _visitor: Looking) -> Response:
    """How things stand."""
    snapshot = await dash.monitor.snapshot()
    return await page(request, "overview.html", live=parts("overview", snapshot))


@router.get("/events", response_class=EventSourceResponse)
async def events(_visitor: Looking, dash: Dash, of: str = "overview") -> AsyncIterator[ServerSentEvent]:
    """The parts of a page that have changed since they were sent last: their name and their HTML."""
    sent: dict[str, str] = {}
    async for snapshot in dash.monitor.snapshots():
        for name, html in parts(of, snapshot).items():
            if sent.get(name) != html:
                sent[name] = html
                yield ServerSentEvent(event=name, raw_data=html)


def parts(of: str, snapshot: Snapshot) -> dict[str, str]:
    """The live parts of a page, as HTML."""
    values = {"snapshot": snapshot, "charts": charts(snapshot.history), "frame": Frame()}
    return {name: fragment(f"live/{name}.html", **values) for name in LIVE.get(of, ())}
