"""The dashboard's application before a real database, asked as a browser and as programs ask."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from typing import Any

import httpx2
from pydantic import SecretStr

from dashboard.app import make_app
from dashboard.context import Context, open_context
from evervec.settings import Settings

TOKEN, VIEWER_TOKEN = "an operator's token", "a viewer's token"
NOWHERE = "127.0.0.1:1"
"""No Temporal."""


@dataclass
class Browser:
    """Somebody who looks: keeps cookies, follows redirects, sends forms with what their page held."""

    http: httpx2.AsyncClient
    context: Context
    last: httpx2.Response = field(init=False)
    _csrf: str = ""

    async def get(self, path: str, **query: str) -> str:
        """The text of a page."""
        self.last = await self.http.get(path, params=query or None, follow_redirects=True)
        return self.last.text

    async def post(
        self, path: str, csrf: str | None = None, headers: dict[str, str] | None = None, **fields: Any
    ) -> str:
        """Send a form, with the CSRF token of the page that was looked at last unless another is given."""
        token = csrf if csrf is not None else self.csrf()
        self.last = await self.http.post(path, data={"csrf": token, **fields}, headers=headers, follow_redirects=True)
        return self.last.text

    def csrf(self) -> str:
        """What the forms hold of the last page that has some."""
        found = re.search(r'name="csrf" value="([^"]+)"', self.last.text)
        self._csrf = found[1] if found else self._csrf
        return self._csrf

    async def sign_in(self, token: str) -> None:
        """By the login page."""
        await self.get("/")
        await self.post("/login", token=token)


def words(html: str) -> str:
    """What a page says, without its tags."""
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())


@asynccontextmanager
async def open_dashboard(
    database: str, *, tokens: bool = False, base: str = "http://127.0.0.1:8080", **changes: Any
) -> AsyncIterator[Browser]:
    """A browser before the dashboard of a database, with tokens or without."""
    asked = {"dashboard_token": SecretStr(TOKEN), "dashboard_viewer_token": SecretStr(VIEWER_TOKEN)} if tokens else {}
    settings = Settings(database_url=SecretStr(database), **{"temporal_address": NOWHERE, **asked, **changes})
    async with open_context(settings) as context:
        transport = httpx2.ASGITransport(make_app(context), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url=base) as http:
            yield Browser(http, context)
