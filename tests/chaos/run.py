"""One run: writers write, faults strike, everything settles, and it is seen what came of it."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.faults import KINDS, Fault
from tests.chaos.ledger import Ledger
from tests.chaos.plan import Strike, Times, make_plan
from tests.chaos.site import TABLES, Site, Watched
from tests.chaos.stall import what_is_under_way
from tests.chaos.verdict import Findings, examine
from tests.chaos.writers import Tally, writing

WARM_UP_SECONDS = 3.0
SETTLE_SECONDS = 300.0
PATIENCE_SECONDS = 45.0
"""Beyond that it is told what everything waits for."""
LOOK_SECONDS = 5.0
LEAST_RATE = 20.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Orders:
    """What a run is to be."""

    seed: int
    faults: int
    rate: float
    """Transactions a second that writers try to make."""
    times: Times
    tables: tuple[Watched, ...] = TABLES
    kinds: Sequence[str] = tuple(KINDS)
    """The faults that may strike."""


@dataclass
class Struck:
    """A fault that was made and healed."""

    strike: Strike
    place: str
    seconds: float
    committed: int
    """Transactions that were committed meanwhile."""


@dataclass
class Report:
    """What came of a run."""

    orders: Orders
    struck: list[Struck] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0
    """How long writers wrote."""
    settled: float | None = None
    """How long everything took to settle; None: it did not."""
    findings: Findings = field(default_factory=Findings)
    trouble: list[str] = field(default_factory=list)
    """What went wrong besides: processes that ended by themselves, errors nobody foresaw."""

    @property
    def rate(self) -> float:
        """Transactions with changes that were committed a second, of those in which PostgreSQL was there."""
        away = sum(one.seconds for one in self.struck if KINDS[one.strike.kind].stops_writers)
        return self.tally.committed / (self.seconds - away) if self.seconds > away else 0.0

    @property
    def wrong(self) -> list[str]:
        """All that keeps the run from being a good one."""
        wrong = [f"a writer failed: {error}" for error in self.tally.errors] + self.findings.wrong + self.trouble
        if self.rate < LEAST_RATE:
            wrong.append(f"only {self.rate:.1f} writes/s")
        if self.settled is None:
            wrong.append(f"not settled within {SETTLE_SECONDS:.0f} s")
        return wrong


async def run(orders: Orders, folder: Path, say: Say) -> Report:
    """Do it. Logs and data are in `folder`."""
    report = Report(orders)
    kinds = {kind: KINDS[kind].length for kind in orders.kinds}
    plan = make_plan(kinds, orders.seed, orders.faults, orders.times)
    say(f"seed {orders.seed}: the plan, each fault so long after the one before it")
    for strike in plan:
        say(str(strike))
    async with Site.open(orders.tables, folder) as site:
        for post in (site.listeners[0], site.workers[0]):
            post.open()
            await post.ready()
        started = time.monotonic()
        async with writing(site, orders.rate, orders.seed) as (ledger, report.tally):
            await asyncio.sleep(WARM_UP_SECONDS)
            await _strike_all(site, plan, report, say)
            report.seconds = time.monotonic() - started
        await _settle(site, ledger, report, say)
    return report


async def _strike_all(site: Site, plan: list[Strike], report: Report, say: Say) -> None:
    async with asyncio.TaskGroup() as faults:
        for strike in plan:
            await asyncio.sleep(strike.after)
            faults.create_task(_strike(KINDS[strike.kind](site, strike.dice), strike, report, say))


async def _strike(fault: Fault, strike: Strike, report: Report, say: Say) -> None:
    async with fault.busy:
        started, before = time.monotonic(), report.tally.committed
        say(f"{strike.number:3}  {strike.kind} {fault.place}".rstrip())
        await fault.inject()
        try:
            await asyncio.sleep(strike.lasts)
        finally:
            await fault.heal()
        seconds = time.monotonic() - started
        report.struck.append(Struck(strike, fault.place, seconds, report.tally.committed - before))
        say(f"{strike.number:3}  healed after {seconds:.0f} s")


async def _settle(site: Site, ledger: Ledger, report: Report, say: Say) -> None:
    say("everything is healed; waiting until nothing is pending")
    started = time.monotonic()
    while waiting := await site.pending():
        elapsed = time.monotonic() - started
        say(f"{waiting} wait; {await site.oldest()}")
        if elapsed > SETTLE_SECONDS:
            break
        if elapsed > PATIENCE_SECONDS:
            for line in await what_is_under_way(site):
                say(line)
        await asyncio.sleep(LOOK_SECONDS)
    else:
        report.settled = time.monotonic() - started
    say("embedding everything anew")
    report.findings = await examine(site, ledger)
    for post in site.posts:
        report.trouble += [f"{ending.post} {ending.how}" for ending in post.endings]
        if post.log.exists() and (count := post.tracebacks()):
            report.trouble.append(f"{count} tracebacks in {post.log}")
