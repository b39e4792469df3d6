"""What was given up, by reason; and another try."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from dashboard.errors import RequestError
from dashboard.web import Dash, Looking, Ordered, back_to, checked, page, text_of
from db.pages import FailedItem
from service.refire import retry, retry_error

router = APIRouter(include_in_schema=False)

GROUPS = 200
PAGE = 100


@router.get("/failures")
async def failures(
    request: Request,
    dash: Dash,
    _visitor: Looking,
    source: str | None = None,
    error: str | None = None,
    after: str = "",
) -> Response:
    """The groups, and the items of one of them."""
    groups = await dash.pages.failure_groups(limit=GROUPS)
    items: list[FailedItem] = []
    if source is not None:
        found = await dash.pages.failed(
            checked(source, "source"), error and checked(error, "error"), after=checked(after, "after"), limit=PAGE + 1
        )
        items = found[:PAGE]
    further = items[-1].key if source is not None and len(found) > PAGE else None
    return page(
        request,
        "failures.html",
        groups=groups,
        more=len(groups) == GROUPS,
        source=source,
        error=error,
        items=items,
        further=further,
    )


@router.post("/failures/retry")
async def retry_failed(dash: Dash, form: Ordered) -> Response:
    """Try some items again (`key`, several times), those of an error (`what` is `error`), or all of all sources."""
    what = text_of(form, "what")
    if what == "all":
        retried = sum([await retry(dash.sources, name) for name in await dash.sources.names()])
    elif what == "error":
        error = form.get("error")
        retried = await retry_error(
            dash.sources, dash.pages, text_of(form, "source"), None if error is None else checked(error, "error")
        )
    elif what == "keys":
        keys = [checked(key, "key") for key in form.getlist("key")]
        if not keys:
            raise RequestError("no item was chosen: tick some, or retry all of them")
        retried = await retry(dash.sources, text_of(form, "source"), keys)
    else:
        raise RequestError(f"there is nothing called {what!r} to retry")
    dash.monitor.hurry()
    return back_to("/failures", "retried", n=retried)
