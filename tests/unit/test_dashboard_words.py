"""Numbers, times and keys as people read them."""

import pytest

from dashboard.words import DONE, done_words, duration, fits_url, link, percent, shown_key


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.25, "250 ms"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (3600, "1 h"),
        (7_380, "2 h 3 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_a_duration_has_two_units_at_most(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("share", "words"), [(0, "0%"), (1, "100%"), (0.5, "50.0%"), (0.99999, "99.9%"), (0.0000001, "0.1%")]
)
def test_not_all_is_never_said_to_be_all(share: float, words: str) -> None:
    assert percent(share) == words


@pytest.mark.parametrize(
    ("key", "shown"),
    [("", "(empty)"), ("42", "42"), ("a\tb", "a\\x09b"), ("\u202eevil", "\\x202eevil"), ("ä<b>", "ä<b>")],
)
def test_a_key_can_be_seen(key: str, shown: str) -> None:
    assert shown_key(key) == shown


def test_a_long_key_is_shown_in_part_and_kept_out_of_links() -> None:
    assert shown_key("k" * 100_000) == "k" * 80 + "… (100,000 characters)"
    assert fits_url("k" * 1000)
    assert not fits_url("k" * 1001)
    assert not fits_url("ä" * 200)


def test_a_link_is_quoted() -> None:
    assert link("/item", source="a&b", key="<x> #?") == "/item?source=a%26b&key=%3Cx%3E+%23%3F"
    assert link("/items", source=None) == "/items"


def test_a_link_puts_no_words_into_our_mouth() -> None:
    assert done_words({"done": "your account was hacked"}) is None
    assert done_words({}) is None
    assert done_words({"done": "retried", "n": "<b>"}) == "Items that are tried again: some."
    assert done_words({"done": "retried", "n": "1200"}) == "Items that are tried again: 1,200."
    assert all(done_words({"done": code}) for code in DONE)
