"""Every kind of fault once, in quick succession."""

from pathlib import Path

import pytest
from rich.console import Console

from tests.chaos.faults import KINDS
from tests.chaos.plan import SHORT
from tests.chaos.report import tell
from tests.chaos.run import Orders, run
from tests.chaos.site import QUICK_TABLES

SEED = 1
RATE = 40.0

pytestmark = pytest.mark.chaos


@pytest.mark.timeout(600)  # so that a run which does not settle says so
async def test_whatever_dies_each_vector_is_that_of_the_last_text(stack_dir: Path) -> None:
    orders = Orders(SEED, len(KINDS), RATE, SHORT, QUICK_TABLES)
    console = Console(width=110)
    report = await run(orders, stack_dir / "chaos", console.print)
    tell(report, console)
    assert report.wrong == []
    # Else it would not show that a vector that was overtaken by an edit is not written, nor its change forgotten.
    assert report.findings.outcomes["superseded"] > 0
