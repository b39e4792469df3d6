"""The named blocks of queries.sql."""

import re
from importlib.resources import files


def test_no_name_is_given_twice() -> None:
    """The second block would take the place of the first."""
    text = files("db").joinpath("queries.sql").read_text(encoding="utf-8")
    names = re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)
    assert sorted(names) == sorted(set(names))
