"""In and out."""

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from dashboard.errors import ForbiddenError
from dashboard.guard import COOKIE, SESSION_SECONDS, is_of_this_site
from dashboard.web import Dash, Posted, page
from evervec.log import get_logger

router = APIRouter(include_in_schema=False)

WRONG_TOKEN_SECONDS = 1.0
"""How long a wrong token takes, so that nobody tries many."""

log = get_logger(__name__)


@router.get("/healthz")
async def alive() -> Response:
    """Whether the process answers; for whoever supervises it."""
    return PlainTextResponse("ok\n")


@router.get("/favicon.ico")
async def icon() -> Response:
    """What a browser asks for where a page names no icon."""
    return RedirectResponse("/static/icon.svg")


@router.get("/login")
async def form(request: Request, dash: Dash) -> Response:
    """The login page."""
    if dash.guard.visitor(request):
        return RedirectResponse("/", status_code=303)
    return page(request, "login.html", problem=None)


@router.post("/login")
async def login(request: Request, dash: Dash) -> Response:
    """The token for a cookie."""
    if not is_of_this_site(request):
        raise ForbiddenError("another site sent this form")
    token = (await request.form()).get("token")
    role = dash.guard.role_of(token.strip()) if isinstance(token, str) else None
    if role is None:
        async with dash.guard.wrong_token:
            await asyncio.sleep(WRONG_TOKEN_SECONDS)
        log.warning("a wrong token was given", client=request.client.host if request.client else None)
        return page(request, "login.html", status=401, problem="That is not the token.")
    response = RedirectResponse("/", status_code=303)
    response.set_cookie(
        COOKIE,
        dash.guard.session(role),
        max_age=SESSION_SECONDS,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return response


@router.post("/logout")
async def logout(_form: Posted) -> Response:
    """The cookie goes."""
    response = RedirectResponse("/login", status_code=303)
    response.delete_cookie(COOKIE)
    return response
