import asyncio
import json

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from evervec.errors import ServiceUnreachableError
from listener.debounce import Key
from listener.notify import Ear, read_payload

CANARY = "canary-3f9a"


class Hearer:
    def __init__(self) -> None:
        self.news: list[tuple[Key, str | None]] = []

    def changed(self, key: Key, content_hash: str) -> bool:
        self.news.append((key, content_hash))
        return content_hash != "known"

    def gone(self, key: Key) -> bool:
        self.news.append((key, None))
        return False


def test_a_payload_names_items_and_their_hashes() -> None:
    payload = '{"source": "items", "items": [["42", "abc"], ["43", null]]}'
    assert read_payload(payload) == [(Key("items", "42"), "abc"), (Key("items", "43"), None)]


def test_a_payload_without_items_is_a_plain_bell() -> None:
    assert read_payload('{"source": "items", "items": []}') == []


def test_a_payload_of_a_newer_version_is_read_as_far_as_it_is_known() -> None:
    assert read_payload('{"source": "items", "items": [["1", "h"]], "more": {"than": "this"}}') == [
        (Key("items", "1"), "h")
    ]


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "null",
        "42",
        "not JSON",
        "[]",
        "{}",
        '{"source": "items"}',
        '{"items": []}',
        '{"source": 1, "items": []}',
        '{"source": "items", "items": {}}',
        '{"source": "items", "items": [["1"]]}',
        '{"source": "items", "items": [["1", "h", "x"]]}',
        '{"source": "items", "items": [[1, "h"]]}',
        '{"source": "items", "items": [["1", 2]]}',
        '{"source": "items", "items": [["a\\u0000b", "h"]]}',
        '{"source": "it\\u0000ems", "items": []}',
        '{"source": "items", "items": [["\\ud800", "h"]]}',
        "[" * 7999,
        '{"a":' * 1500,
        "9" * 7999,
        "\udc80",
    ],
)
def test_what_is_not_ours_is_not_read(payload: str) -> None:
    assert read_payload(payload) is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.text() | json_values.map(json.dumps) | json_values.map(lambda v: json.dumps({"source": "items", "items": v})))
def test_no_garbage_does_harm(payload: str) -> None:
    items = read_payload(payload)
    assert items is None or all("\0" not in text for key, _ in items for text in key)


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])),
    st.lists(
        st.tuples(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), st.none() | st.just("h"))
    ),
)
def test_every_payload_of_ours_is_read(source: str, items: list[tuple[str, str | None]]) -> None:
    assert read_payload(json.dumps({"source": source, "items": items})) == [(Key(source, key), h) for key, h in items]


def test_garbage_is_a_ring_and_is_told_once_without_quoting_it() -> None:
    hearer, bell = Hearer(), asyncio.Event()
    ear = Ear(hearer, bell)
    with structlog.testing.capture_logs() as logs:
        ear.hear(CANARY)
        assert bell.is_set()
        ear.hear(CANARY)
    ear.hear('{"source": "items", "items": [["1", "h"], ["2", null]]}')
    assert (ear.heard, ear.garbage) == (3, 2)
    assert hearer.news == [(Key("items", "1"), "h"), (Key("items", "2"), None)]
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert CANARY not in str(logs)


def test_what_was_of_no_use_is_counted_unless_it_is_not_ours() -> None:
    useless: list[None] = []
    ear = Ear(Hearer(), asyncio.Event(), lambda: useless.append(None))
    for items, count in (
        ('[["1", "new"]]', 0),
        ('[["1", "known"], ["2", "new"]]', 0),
        ('[["1", "known"]]', 1),
        ('[["1", null]]', 2),
        ("[]", 3),
        ("garbage", 3),
    ):
        ear.hear(f'{{"source": "items", "items": {items}}}')
        assert len(useless) == count, items


class Stream:
    """Gives what it was given, then nothing, until its server is gone."""

    def __init__(self, *batches: list[str]) -> None:
        self.batches = list(batches)
        self.pings = 0

    async def payloads(self, _seconds: float) -> list[str]:
        return self.batches.pop(0) if self.batches else []

    async def ping(self, _seconds: float) -> None:
        self.pings += 1
        if self.pings == 3:
            raise ServiceUnreachableError


async def test_a_silent_connection_is_asked_whether_it_lives() -> None:
    hearer = Hearer()
    stream = Stream(['{"source": "items", "items": [["1", "h"]]}'], [], [""])
    with pytest.raises(ServiceUnreachableError):
        await Ear(hearer, asyncio.Event()).run(stream)
    assert hearer.news == [(Key("items", "1"), "h")]
    assert stream.pings == 3
