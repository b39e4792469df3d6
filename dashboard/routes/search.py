"""Type words, see the nearest items."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from dashboard.web import Dash, Looking, Posted, page, text_of
from evervec.errors import ConfigurationError, SourceNotFoundError
from service.search import search as search_items

router = APIRouter(include_in_schema=False)

HITS = 20


@router.get("/search")
async def form(request: Request, dash: Dash, _visitor: Looking, source: str = "") -> Response:
    """The form."""
    return page(
        request, "search.html", names=await dash.sources.names(), source=source, query="", hits=None, problem=None
    )


@router.post("/search")
async def search(request: Request, dash: Dash, form: Posted) -> Response:
    """The nearest items. A POST, so that the words stand in no URL, and so in no log and no history."""
    source, query = text_of(form, "source"), text_of(form, "query")
    hits, problem = None, None
    try:
        async with dash.turn_to_compute():
            hits = await search_items(dash.sources, dash.encoder, source, query, HITS)
    except SourceNotFoundError:
        raise
    except ConfigurationError as error:  # blank, or no such model: the form says so
        problem = str(error)
    names = await dash.sources.names()
    return page(request, "search.html", names=names, source=source, query=query, hits=hits, problem=problem)
