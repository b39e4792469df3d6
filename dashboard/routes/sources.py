"""The sources: how each is read, and what sets it to work or stops it."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from dashboard.errors import RequestError
from dashboard.routes.overview import parts
from dashboard.web import Dash, Looking, Ordered, back_to, page, text_of

router = APIRouter(include_in_schema=False)

LARGEST_RATE = 1_000_000.0


@router.get("/sources")
async def sources(request: Request, dash: Dash, _visitor: Looking) -> Response:
    """All of them, with their settings."""
    snapshot = await dash.monitor.snapshot()
    details = await dash.pages.details()
    return page(
        request,
        "sources.html",
        details=details,
        live=parts("sources", snapshot, dash.backfills),
    )


@router.post("/sources/pause")
async def pause(dash: Dash, form: Ordered) -> Response:
    """Stop the work on a source."""
    await dash.sources.pause(text_of(form, "source"))
    dash.monitor.hurry()
    return back_to("/sources", "paused")


@router.post("/sources/resume")
async def resume(dash: Dash, form: Ordered) -> Response:
    """Go on with it."""
    await dash.sources.resume(text_of(form, "source"))
    dash.monitor.hurry()
    return back_to("/sources", "resumed")


@router.post("/sources/backfill")
async def backfill(dash: Dash, form: Ordered) -> Response:
    """Enqueue what is stale, or everything, that satisfies a predicate; at a rate, if one is given."""
    source = text_of(form, "source")
    predicate = text_of(form, "where", "").strip() or "true"
    rate = _rate(text_of(form, "rate", ""))
    await dash.sources.get(source)
    await dash.backfills.start(source, predicate=predicate, force=form.get("everything") == "yes", rate=rate)
    dash.monitor.hurry()
    return back_to("/sources", "backfill")


@router.post("/sources/cancel")
async def cancel(dash: Dash, form: Ordered) -> Response:
    """Stop a backfill."""
    source = text_of(form, "source")
    await dash.sources.get(source)
    called_off = await dash.backfills.cancel(source)
    dash.monitor.hurry()
    return back_to("/sources", "cancelled", n=called_off)


@router.post("/sources/throttle")
async def throttle(dash: Dash, form: Ordered) -> Response:
    """Hold bulk work to a rate, or lift the limit."""
    rate = _rate(text_of(form, "rate", ""))
    await dash.sources.throttle(text_of(form, "source"), rate)
    dash.monitor.hurry()
    return back_to("/sources", "throttled" if rate else "unthrottled")


def _rate(text: str) -> float | None:
    """Items a second; None where nothing was written."""
    if not text.strip():
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate <= LARGEST_RATE:
        raise RequestError("a rate is a number of items a second above 0")
    return rate
