"""Who may come in: tokens, the cookie that stands for one, and what a POST must bring along."""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from itsdangerous import BadSignature, URLSafeTimedSerializer
from starlette.requests import Request

from evervec.errors import ConfigurationError
from evervec.settings import Settings, split_address

COOKIE = "evervec_session"
SESSION_SECONDS = 7 * 24 * 3600


class Role(StrEnum):
    """What somebody may do."""

    VIEWER = "viewer"
    """Look."""
    OPERATOR = "operator"
    """Look, and set to work."""


class Address(NamedTuple):
    """Where the dashboard listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """For a browser on this machine."""
        return f"http://{self}"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may come in."""

    role: Role
    csrf: str
    """What each of their POSTs must bring along: other sites can't read it."""
    signed_in: bool
    """By a token; False where none is asked for."""

    @property
    def may_change(self) -> bool:
        """Whether the buttons are for them."""
        return self.role is Role.OPERATOR


def parse_address(text: str) -> Address:
    """A `host:port`, or `[::1]:port`; ConfigurationError when it is none."""
    try:
        return Address(*split_address(text))
    except ValueError:
        raise ConfigurationError(f"EVERVEC_DASHBOARD_ADDRESS is not a host:port: {text!r}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """Knows the tokens, or that there are none."""

    def __init__(self, settings: Settings) -> None:
        """ConfigurationError when the address and the tokens do not go together."""
        self.address = parse_address(settings.dashboard_address)
        operator, viewer = settings.dashboard_token, settings.dashboard_viewer_token
        if operator is None and not is_loopback(self.address.host):
            raise ConfigurationError(
                f"the dashboard would be open to everybody who reaches {settings.dashboard_address}: "
                "set EVERVEC_DASHBOARD_TOKEN, or leave EVERVEC_DASHBOARD_ADDRESS on 127.0.0.1"
            )
        if viewer is not None and operator is None:
            raise ConfigurationError(
                "EVERVEC_DASHBOARD_VIEWER_TOKEN alone keeps nobody out: set EVERVEC_DASHBOARD_TOKEN"
            )
        if viewer is not None and operator == viewer:
            raise ConfigurationError("EVERVEC_DASHBOARD_TOKEN and EVERVEC_DASHBOARD_VIEWER_TOKEN must differ")
        self._tokens: dict[Role, bytes] = {
            role: token.get_secret_value().encode()
            for role, token in ((Role.OPERATOR, operator), (Role.VIEWER, viewer))
            if token is not None
        }
        self._key = secrets.token_bytes(32) if self.is_open else _key_of(b"\0".join(self._tokens.values()))
        self.wrong_token = asyncio.Lock()
        """Taken by whoever gave a wrong token, for a while: they come one after the other."""
        self._sessions = URLSafeTimedSerializer(self._key, salt="session")

    @property
    def is_open(self) -> bool:
        """Whether everybody may come in who reaches it."""
        return not self._tokens

    @property
    def hosts(self) -> list[str]:
        """The names under which it may be asked for; another one that leads here (DNS rebinding) is a stranger's.

        With a token any: the cookie goes with the name.
        """
        return ["localhost", "127.0.0.1", "::1", "[::1]", self.address.host] if self.is_open else ["*"]

    def role_of(self, token: str) -> Role | None:
        """Whose token it is."""
        given = token.encode(errors="replace")
        found = [role for role, known in self._tokens.items() if hmac.compare_digest(given, known)]
        return found[0] if found else None

    def session(self, role: Role) -> str:
        """A new cookie's value."""
        return self._sessions.dumps([role.value, secrets.token_hex(16)])

    def visitor(self, request: Request) -> Visitor | None:
        """Who asks, by the cookie; None for a stranger."""
        if self.is_open:
            return Visitor(Role.OPERATOR, self._csrf(""), signed_in=False)
        try:
            role, number = self._sessions.loads(request.cookies.get(COOKIE, ""), max_age=SESSION_SECONDS)
            return Visitor(Role(role), self._csrf(number), signed_in=True)
        except (BadSignature, ValueError, TypeError):
            return None

    def program(self, request: Request) -> Role | None:
        """What a program may do, by the token that it brings along; None for a stranger."""
        if self.is_open:
            return Role.OPERATOR
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        return self.role_of(token.strip()) if scheme.lower() == "bearer" else None

    def _csrf(self, session: str) -> str:
        return hmac.new(self._key, b"csrf" + session.encode(), hashlib.sha256).hexdigest()


def _key_of(tokens: bytes) -> bytes:
    """What signs the cookies. Another token ends all sessions; several dashboards with the same one share them.

    Slow to compute, so that nobody who has a cookie finds out a token by trying.
    """
    return hashlib.scrypt(tokens, salt=b"evervec dashboard", n=2**14, r=8, p=1)


def is_of_this_site(request: Request) -> bool:
    """Whether a request was made by one of our own pages, or by no page at all, as far as the browser tells."""
    if request.headers.get("sec-fetch-site", "same-origin") not in {"same-origin", "none"}:
        return False
    origin = request.headers.get("origin")
    return origin is None or origin.partition("://")[2] == request.headers.get("host")
