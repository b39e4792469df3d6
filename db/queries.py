"""The named blocks of `queries.sql`, read once."""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def _blocks() -> dict[str, LiteralString]:
    text = files("db").joinpath("queries.sql").read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    # The file is ours, like a literal in the code.
    return {name: cast("LiteralString", sql.strip()) for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def query(name: str) -> LiteralString:
    """The SQL of one named block; KeyError when there is none."""
    return _blocks()[name]
