"""Numbers, times and keys as people read them; filters of the templates."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlencode

MINUTE, HOUR, DAY = 60, 3600, 86400
KEY_IN_URL_BYTES = 1000
"""A longer key travels in the body of a POST: some 8 kB is what every proxy lets pass in a URL."""
KEY_SHOWN = 80


def number(value: float | None, digits: int = 0) -> str:
    """`1,234,567`."""
    return "–" if value is None else f"{value:,.{digits}f}"


def percent(share: float) -> str:
    """Never 100 % before it is all, nor 0 % before it is nothing."""
    if 0 < share < 1:
        share = min(max(share, 0.001), 0.999)
    return f"{share:.1%}" if share not in {0, 1} else f"{share:.0%}"


def duration(seconds: float | None) -> str:
    """The two largest units: `3 min 20 s`."""
    if seconds is None:
        return "–"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms" if seconds > 0 else "0 s"
    if seconds < MINUTE:
        return f"{seconds:.0f} s"
    for size, unit, small, smaller in ((DAY, "d", HOUR, "h"), (HOUR, "h", MINUTE, "min"), (MINUTE, "min", 1, "s")):
        if seconds >= size:
            large, rest = divmod(int(seconds), size)
            return f"{large} {unit} {rest // small} {smaller}" if rest // small else f"{large} {unit}"
    return ""


def ago(moment: datetime | None) -> str:
    """`3 min 20 s ago`."""
    if moment is None:
        return "never"
    seconds = (datetime.now(UTC) - moment).total_seconds()
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def stamp(moment: datetime | None) -> str:
    """A moment to the second, in UTC."""
    return "–" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def shortened(text: str | None, length: int = 160) -> str:
    """The beginning of a long text."""
    text = text or ""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shown_key(key: str) -> str:
    """A key that can be seen, whatever it holds: no control characters, not empty, not endless."""
    if not key:
        return "(empty)"
    plain = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in key[: KEY_SHOWN + 1])
    more = f"… ({len(key):,} characters)" if len(key) > KEY_SHOWN else ""
    return plain[:KEY_SHOWN] + more if more else plain


def without_halves(text: str) -> str:
    """A text without what UTF-8 cannot hold: halves of surrogate pairs, which stand for bytes that are no text."""
    return text.encode(errors="replace").decode()


def fits_url(key: str) -> bool:
    """Whether a link may hold the key."""
    return len(quote(key, errors="replace")) <= KEY_IN_URL_BYTES


def link(path: str, **parameters: object) -> str:
    """A path with a query; parameters that are None are left out."""
    given = {name: value for name, value in parameters.items() if value is not None}
    return f"{path}?{urlencode(given, errors='replace')}" if given else path


# What a POST did, told by the page that it leads to. Codes, so that no link can put words into our mouth.
DONE = {
    "paused": "Paused: changes are recorded, and wait.",
    "resumed": "The work goes on.",
    "backfill": "The backfill has begun.",
    "cancelled": "Cancelled: {n} items will not be embedded again. What is stale is embedded all the same.",
    "throttled": "Bulk work is held to that rate.",
    "unthrottled": "Bulk work goes as fast as it can.",
    "embedding": "Back in the outbox: it will be embedded in a moment.",
    "ineligible": "Nothing to do: an item that is not eligible is not embedded.",
    "retried": "Items that are tried again: {n}.",
}


def done_words(query: Mapping[str, str]) -> str | None:
    """What a POST did."""
    words = DONE.get(query.get("done", ""))
    count = query.get("n", "")
    return words and words.format(n=f"{int(count):,}" if re.fullmatch("[0-9]{1,15}", count) else "some")


FILTERS = {
    "number": number,
    "percent": percent,
    "duration": duration,
    "ago": ago,
    "stamp": stamp,
    "shortened": shortened,
    "shown_key": shown_key,
}
