"""What the routes share: who asks, what a form says, how a page is made."""

from collections.abc import Mapping
from importlib.resources import files
from typing import Annotated, Any, cast
from urllib.parse import quote

import jinja2
from fastapi import Depends, Request
from starlette.datastructures import FormData
from starlette.responses import HTMLResponse, RedirectResponse, Response

from dashboard.context import Context
from dashboard.errors import ForbiddenError, RequestError, StrangerError
from dashboard.guard import Role, Visitor, is_of_this_site
from dashboard.words import FILTERS, done_words, fits_url, link, without_halves
from evervec.errors import ItemNotFoundError

MAX_FIELDS = 5000

_environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(str(files("dashboard").joinpath("templates"))),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    auto_reload=False,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(FILTERS)
_environment.globals.update(link=link, fits_url=fits_url)


def context_of(request: Request) -> Context:
    """The dashboard's parts."""
    return cast("Context", request.app.state.context)


def visitor_of(request: Request) -> Visitor:
    """Who asks; a stranger is sent to the login page."""
    visitor = context_of(request).guard.visitor(request)
    if visitor is None:
        raise StrangerError("sign in with the dashboard's token")
    return visitor


async def posted(request: Request) -> FormData:
    """The form of a POST by one of our own pages."""
    visitor = visitor_of(request)
    form = await request.form(max_fields=MAX_FIELDS)
    if not is_of_this_site(request) or form.get("csrf") != visitor.csrf:
        raise ForbiddenError("this form is out of date, or another site sent it: go back, reload the page, try again")
    return form


async def ordered(request: Request) -> FormData:
    """The same of somebody who may change things."""
    form = await posted(request)
    if visitor_of(request).role is not Role.OPERATOR:
        raise ForbiddenError("you are signed in as a viewer, who may look and change nothing")
    return form


def program_of(request: Request) -> Role:
    """What a program may do that brings a token along."""
    if not is_of_this_site(request):
        raise ForbiddenError("another site's page may not ask this")
    role = context_of(request).guard.program(request)
    if role is None:
        raise StrangerError("send the dashboard's token: Authorization: Bearer …")
    return role


Dash = Annotated[Context, Depends(context_of)]
Looking = Annotated[Visitor, Depends(visitor_of)]
Posted = Annotated[FormData, Depends(posted)]
Ordered = Annotated[FormData, Depends(ordered)]


def text_of(form: Mapping[str, Any], name: str, default: str | None = None) -> str:
    """A field of a form or a query; RequestError when it is missing, or holds what no database takes."""
    return checked(form.get(name, default), name)


def checked(value: object, name: str) -> str:
    """A text that PostgreSQL can be asked for."""
    if not isinstance(value, str):
        raise RequestError(f"the field {name} is missing")
    if "\0" in value:
        raise ItemNotFoundError(f"{name} holds a NUL, which no text in PostgreSQL does")
    return value


def fragment(name: str, **values: Any) -> str:
    """A part of a page. Bytes that are no text (a database in SQL_ASCII) are shown as question marks."""
    return without_halves(_environment.get_template(name).render(values))


def page(request: Request, name: str, *, status: int = 200, **values: Any) -> Response:
    """A whole page."""
    shell = {
        "visitor": context_of(request).guard.visitor(request),
        "path": request.url.path,
        "done": done_words(request.query_params),
    }
    return HTMLResponse(fragment(name, **shell | values), status_code=status)


def back_to(path: str, done: str, **parameters: object) -> Response:
    """After a POST: to the page that shows what it did, and says so."""
    return RedirectResponse(link(path, **parameters, done=done), status_code=303)


def temporal_link(context: Context, workflow_id: str) -> str | None:
    """A workflow's page in Temporal's own UI, where one is set."""
    ui = context.settings.temporal_ui_url
    if not ui:
        return None
    namespace = quote(context.settings.temporal_namespace, safe="")
    return f"{ui.rstrip('/')}/namespaces/{namespace}/workflows/{quote(workflow_id, safe='')}"
