import re
from importlib.resources import files

import psycopg
import pytest
from psycopg.rows import DictRow, dict_row

SQL = files("cli.demo").joinpath("items.sql").read_bytes()

GERMAN = re.compile(r"\b(der|die|das|den|eine?r?|und|ist|nicht|mit|für|auf|ich|wir|wer|nur|noch|am|im|zum|bis)\b", re.I)
ENGLISH = re.compile(r"\b(the|a|and|is|it|has|not|with|for|to|of|on|please|i|we|you|your|my|only|that|sorry)\b", re.I)


@pytest.fixture
async def items(empty_database: str) -> list[DictRow]:
    async with await psycopg.AsyncConnection.connect(empty_database, row_factory=dict_row) as connection:
        await connection.execute(SQL)
        return await (await connection.execute("SELECT * FROM items ORDER BY id")).fetchall()


def blank(text: str | None) -> bool:
    return not (text or "").strip()


def is_german(text: str) -> bool:
    german, english = len(GERMAN.findall(text)), len(ENGLISH.findall(text))
    assert german != english, text
    return german > english


async def test_items_are_varied(items: list[DictRow]) -> None:
    assert len(items) == 200
    assert len({item["name"].casefold() for item in items}) == 200
    assert len({item["category"] for item in items}) >= 7
    assert {item["type"] for item in items} >= {"lend", "give", "swap", "offer-help"}
    assert {item["status"] for item in items} >= {"available", "reserved", "lent"}
    assert len({item["created_at"] for item in items}) > 100


async def test_some_items_are_not_to_be_embedded(items: list[DictRow]) -> None:
    without_description = [item["description"] for item in items if blank(item["description"])]
    assert sum(not item["active"] for item in items) == 12
    assert len(without_description) == 8
    assert None in without_description
    assert "" in without_description


async def test_first_half_is_german_and_second_half_english(items: list[DictRow]) -> None:
    for item in items:
        if not blank(item["description"]):
            assert is_german(f"{item['name']} {item['description']}") == (item["id"] <= 100), item["name"]
    halves = [sorted(item["category"] for item in half) for half in (items[:100], items[100:])]
    assert halves[0] == halves[1]


async def test_descriptions_read_like_a_neighbour_wrote_them(items: list[DictRow]) -> None:
    texts = [item["description"] for item in items if not blank(item["description"])]
    lengths = [len(text) for text in texts]
    assert len(set(texts)) == len(texts)
    assert sum(120 <= length <= 350 for length in lengths) > len(lengths) * 0.7
    assert 500 < max(lengths) < 700


async def test_second_run_changes_nothing(empty_database: str) -> None:
    async with await psycopg.AsyncConnection.connect(empty_database, autocommit=True) as connection:
        await connection.execute(SQL)
        with pytest.raises(psycopg.errors.DuplicateTable):
            await connection.execute(SQL)
        await connection.rollback()
        assert await (await connection.execute("SELECT count(*) FROM items")).fetchone() == (200,)
