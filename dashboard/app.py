"""The application: routes, errors, and the headers that every answer bears."""

from collections.abc import MutableMapping
from importlib.metadata import version
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard import api
from dashboard.context import Context
from dashboard.errors import BusyError, MediaTypeError, RequestError, StrangerError, TooLargeError, status_of
from dashboard.routes import failures, items, login, overview, search, sources
from dashboard.web import context_of, page, program_of
from evervec.errors import EvervecError
from evervec.log import describe_error, get_logger

MAX_BODY_BYTES = 4 * 1024 * 1024
RETRY_AFTER_SECONDS = "2"
HEADERS = {
    # No other host, no inline script or style: what a row holds can't become either.
    "content-security-policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

log = get_logger(__name__)


def make_app(context: Context) -> ASGIApp:
    """The application of an open context."""
    app = FastAPI(
        title="evervec",
        version=version("evervec"),
        # FastAPI's own pages of the description load scripts from another host.
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        max_body_size=MAX_BODY_BYTES,
        telemetry={"auto_configure": False},
    )
    app.state.context = context
    for part in (overview, items, failures, search, sources, login, api):
        app.include_router(part.router)
    app.add_api_route("/openapi.json", _openapi, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=str(files("dashboard").joinpath("static"))))
    app.add_exception_handler(EvervecError, _evervec_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)
    # Around all of it: FastAPI refuses what is too large before it comes to middleware that it was given.
    return SafeHeaders(TrustedHostMiddleware(ApiGate(app), context.guard.hosts, www_redirect=False))


async def _openapi(request: Request) -> Response:
    """The description of what programs may ask."""
    if context_of(request).guard.visitor(request) is None:
        program_of(request)
    app: FastAPI = request.app
    return JSONResponse(get_openapi(title=app.title, version=app.version, routes=api.router.routes))


async def _evervec_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, EvervecError)  # noqa: S101 - what it is registered for
    if isinstance(error, StrangerError) and not _is_of_a_program(request):
        return RedirectResponse("/login", status_code=303)
    status = status_of(error)
    if isinstance(error, BusyError):
        return await _answer(request, status, str(error), {"retry-after": RETRY_AFTER_SECONDS})
    if isinstance(error, StrangerError):
        return await _answer(request, status, str(error), {"www-authenticate": "Bearer"})
    return await _answer(request, status, str(error))


async def _invalid(request: Request, error: Exception) -> Response:
    """Where a request is no such thing: what is wrong, without what was sent."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - what it is registered for
    told = "; ".join(f"{'.'.join(map(str, problem['loc'][1:]))}: {problem['msg']}" for problem in error.errors()[:5])
    return await _answer(request, 400, told)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - what it is registered for
    told = "there is no such page" if error.status_code == 404 else str(error.detail).lower()  # noqa: PLR2004
    return await _answer(request, error.status_code, told)


async def _bug(request: Request, error: Exception) -> Response:
    """Its class and no more: a message may quote a row."""
    log.error("a request failed", path=request.url.path, error=describe_error(error))
    return await _answer(request, 500, f"unexpected {describe_error(error)}, which is a bug of evervec: see the log")


async def _answer(
    request: Request, status: int, told: str, headers: MutableMapping[str, str] | None = None
) -> Response:
    response: Response
    if _is_of_a_program(request):
        response = JSONResponse({"error": " ".join(told.split())}, status_code=status)
    else:
        response = page(request, "error.html", status=status, code=status, told=told)
    response.headers.update(headers or {})
    return response


def _is_of_a_program(request: Request) -> bool:
    return request.url.path.startswith("/api/") or request.url.path == "/openapi.json"


class SafeHeaders:
    """Adds the headers to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with the headers added on the way back."""

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                if not scope["path"].startswith("/static/"):
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, sent if scope["type"] == "http" else send)


class ApiGate:
    """Refuses, in JSON, what programs may not send: what is none, and what says that it is too large.

    A form of another site, which a browser sends without asking, is no JSON.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is JSON."""
        answer = self._app
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"].startswith("/api/"):
            headers = Headers(scope=scope)
            length = headers.get("content-length", "0")
            if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
                answer = _refusal(MediaTypeError())
            elif not length.isdigit() or int(length) > MAX_BODY_BYTES:
                answer = _refusal(TooLargeError())
        await answer(scope, receive, send)


def _refusal(error: RequestError) -> ASGIApp:
    return JSONResponse({"error": str(error)}, status_code=error.status)
