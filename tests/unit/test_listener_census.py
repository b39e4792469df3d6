from dataclasses import dataclass, field

from db.outbox import CensusPage
from evervec.errors import DatabaseError
from listener.census import IDLE_SECONDS, OUTBOX_REST, Census


@dataclass
class Database:
    """Whose counts take as long as it says."""

    now: float = 100.0
    pages: list[CensusPage] = field(default_factory=list)
    page_seconds: float = 0.1
    outbox_seconds: float = 0.5
    fails: bool = False
    counted_at: list[float] = field(default_factory=list)

    async def census_page(self, limit: int) -> CensusPage | None:
        assert limit > 0
        if self.fails:
            raise DatabaseError("busy", sqlstate="55P03")
        self.now += self.page_seconds
        return self.pages.pop(0) if self.pages else None

    async def count(self) -> bool:
        self.counted_at.append(self.now)
        self.now += self.outbox_seconds
        return True


async def test_half_of_a_walk_is_rest_and_an_idle_census_looks_now_and_then() -> None:
    database = Database(pages=[CensusPage("items", 1000, 0, done=False), CensusPage("items", 10, 2, done=True)])
    census = Census(lambda: database.now)
    rests = [round(await census.step(database), 3) for _ in range(3)]
    assert rests == [0.1, 0.1, IDLE_SECONDS]


async def test_the_outbox_is_counted_a_small_part_of_the_time() -> None:
    database = Database()
    census = Census(lambda: database.now)
    while database.now < 1100:
        database.now += await census.step(database)
    busy = len(database.counted_at) * database.outbox_seconds
    assert 1000 / (OUTBOX_REST + 6) < busy < 1000 / OUTBOX_REST


async def test_a_count_that_fails_is_tried_again_later_and_later() -> None:
    database = Database(fails=True)
    census = Census(lambda: database.now)
    rests = [await census.step(database) for _ in range(6)]
    assert 0 < rests[0] <= 0.5
    assert 5 <= rests[5] <= 10
    database.fails = False
    assert await census.step(database) == IDLE_SECONDS
