"""Hostile inputs, many of them: names, predicates, keys, payloads, arguments."""

import json
from typing import TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")

# Whatever is quoted wrongly somewhere calls this function, which leaves a trace.
STRIKE = "public.strike('x')"
# A sequence goes on even where what called it is rolled back.
CANARY = """
    CREATE SEQUENCE IF NOT EXISTS public.strikes;
    CREATE TABLE IF NOT EXISTS public.canary (n int);
    INSERT INTO public.canary SELECT 1 WHERE NOT EXISTS (SELECT FROM public.canary);
    CREATE OR REPLACE FUNCTION public.strike(how text) RETURNS text LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM nextval('public.strikes');
      RETURN how;
    END $$
"""
UNTOUCHED = "SELECT n, is_called FROM public.canary, public.strikes"
ATTEMPTS = [
    f"'; SELECT {STRIKE}; --",
    f'"; SELECT {STRIKE}; --',
    f"') ; SELECT {STRIKE}; --",
    f"$$; SELECT {STRIKE}; $$",
    f"' || {STRIKE} || '",
    f'" , {STRIKE} AS "',
    f"\\'; SELECT {STRIKE}; --",
    f"{{{STRIKE}}}",
    f'items"; SELECT {STRIKE}; CREATE TABLE "x',
    f"items; SELECT {STRIKE}",
    f"pg_temp.items'; PERFORM {STRIKE}; --",
]
ODD = [
    *(
        "%I",
        "%s",
        "%1$s",
        "%L",
        "%%",
        "$1",
        "$$",
        "{}",
        "{name}",
        ":x",
        "\\",
        "'",
        '"',
        '""',
        "''",
        "`",
        "--",
        "/*",
        "*/",
    ),
    *(
        "NULL",
        "null",
        "select",
        "public",
        "pg_catalog",
        "evervec",
        "t",
        "i",
        "e",
        "NEW",
        "OLD",
        "h",
        "stored",
        "is_active",
    ),
    *("id", "item_key", "content", "eligible", "source", "ctid", "tableoid", "*", "a.b", "a/b", "..", "a,b", "ü", "ß"),
    *("İ", "\u202e", "\u200b", "\ufeff", "😀", " ", "\t", "\n", "\r\n", "\x1b[2J", "\x7f", "x" * 300, "[bold]", "-1"),
]
TEXTS = (
    st.sampled_from(ATTEMPTS)
    | st.sampled_from(ODD)
    | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
)
# As names of tables and columns, which PostgreSQL would cut after 63 bytes.
NAMES = TEXTS.filter(lambda name: 0 < len(name.encode()) <= 46)

# Pieces of SQL that are glued together; none calls `strike` as a part of an expression.
PIECES = [
    *(
        "true",
        "false",
        "1 = 1",
        "name IS NOT NULL",
        "id > 0",
        "AND",
        "OR",
        "NOT",
        "(",
        ")",
        "((",
        "))",
        ",",
        "'",
        '"',
        "--",
    ),
    *(
        "/*",
        "*/",
        "$$",
        "$1",
        "%s",
        "\\",
        "\n",
        "SELECT",
        "FROM",
        "WHERE",
        "LIMIT 1",
        "ORDER BY (now())",
        "IS TRUE",
        "AS x",
    ),
    *(
        "UNION ALL SELECT 1",
        ") UNION SELECT FROM public.canary WHERE (true",
        "true) LIMIT 0",
        "SELECT true) ORDER BY (1 = 1",
    ),
    *(
        f"; SELECT {STRIKE}",
        f"true); SELECT {STRIKE}; --",
        f"true)); SELECT {STRIKE}; --",
        "; DROP TABLE public.canary",
    ),
    *(
        "; DELETE FROM evervec.source",
        "INTO x",
        "FOR UPDATE",
        "RETURNING *",
        "::text",
        "OFFSET (0",
        "[1]",
        "E'\\''",
        "U&'\\0041'",
    ),
]
PREDICATES = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map(" ".join) | TEXTS

KEYS = st.lists(TEXTS, max_size=4)

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


def payloads(sources: list[str], keys: list[str]) -> SearchStrategy[str]:
    """What somebody else may notify: no JSON, JSON of another shape, and forgeries of ours."""
    items = st.tuples(st.sampled_from(keys) | TEXTS, st.none() | st.just("0" * 64) | TEXTS).map(list)
    forged = st.fixed_dictionaries({"source": st.sampled_from(sources) | TEXTS, "items": st.lists(items, max_size=5)})
    shapes = st.fixed_dictionaries({"source": _JSON, "items": _JSON})
    other = st.sampled_from(["", "{", "[" * 4000, '{"source":' * 700, "9" * 7000, '"\\ud800"', "nul\\u0000", "true"])
    made = forged.map(json.dumps) | shapes.map(json.dumps) | _JSON.map(json.dumps) | TEXTS | other
    return made.filter(lambda text: len(text.encode()) < 8000)


def hostile(examples: int) -> settings:
    """Settings for a test of hostile inputs on a real database."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def generated(strategy: SearchStrategy[T], number: int) -> list[T]:
    """So many examples of a strategy, for tests that take them all at once."""
    found: list[T] = []

    @hostile(number)
    @given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found
