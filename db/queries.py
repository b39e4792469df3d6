"""SQL that lives in `.sql` files as named blocks: `-- name: …`, then a statement."""

import re
from functools import cache
from importlib.resources import files
from typing import LiteralString, cast

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@cache
def named_blocks(package: str, file: str) -> dict[str, LiteralString]:
    """The blocks of a file of a package, in their order."""
    text = files(package).joinpath(file).read_text(encoding="utf-8")
    _, *parts = _NAME.split(text)
    # The files are ours, like a literal in the code.
    return {name: cast("LiteralString", sql.strip()) for name, sql in zip(parts[::2], parts[1::2], strict=True)}


def query(name: str) -> LiteralString:
    """One block of `queries.sql`; KeyError when there is none."""
    return named_blocks("db", "queries.sql")[name]
