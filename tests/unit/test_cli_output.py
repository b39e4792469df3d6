import json
from datetime import UTC, datetime

import pytest
import typer

from cli.output import counted, duration, print_json, printable, shortened, split_list


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("  ", []),
        ("name", ["name"]),
        ("name,description", ["name", "description"]),
        (" name , description ", ["name", "description"]),
        ('"größe"', ["größe"]),
        ('"a,b",c', ["a,b", "c"]),
        ('"Weird ""Table", other', ['Weird "Table', "other"]),
        ('" kept "', [" kept "]),
        ("a,", ["a"]),
    ],
)
def test_lists(text: str, parts: list[str]) -> None:
    assert split_list(text) == parts


@pytest.mark.parametrize("text", ["a,,b", ",a", '"open', '"a"b', '""'])
def test_lists_that_are_none(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        split_list(text)


def test_what_would_move_a_terminals_cursor_is_not_printed() -> None:
    assert printable("a\x1b[2Jb\nc\td") == "a [2Jb c d"
    assert (printable(None), printable(1234567), printable(True)) == ("-", "1,234,567", "True")


def test_long_texts_are_shortened() -> None:
    assert shortened("abc", 3) == "abc"
    assert shortened("abcd", 3) == "ab…"


def test_counts_are_words() -> None:
    assert [counted(number, "item") for number in (0, 1, 2000)] == ["0 items", "1 item", "2,000 items"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (60, "1 min"),
        (95, "2 min"),
        (3599, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86_400 * 3 + 3600 * 4, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_json_is_one_line_with_times_in_iso_format(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"at": datetime(2026, 1, 2, tzinfo=UTC), "text": "zwei\nZeilen, größer"})
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "größer" in printed
    assert json.loads(printed) == {"at": "2026-01-02T00:00:00+00:00", "text": "zwei\nZeilen, größer"}
    with pytest.raises(TypeError, match="object is nothing that JSON has"):
        print_json(object())
