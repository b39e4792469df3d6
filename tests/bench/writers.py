"""What writers pay: pgbench on the watched table, beside the same table without triggers and with other ones."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import count
from pathlib import Path

from tests.bench.corpus import corpus
from tests.bench.measurement import Bench, Outcome, Side, interleaved, ratio
from tests.bench.models import STUB
from tests.bench.pipeline import Pipeline

CLIENTS = 8
TABLES = {"items": "", "pgai": "_pgai", "notify": "_notify"}
"""Those with triggers, and how their figures' names end."""
SCRIPTS = {
    # 160 characters, new ones each time.
    "content": "UPDATE {table} SET body = repeat(md5(random()::text), 5) WHERE id = :id;",
    "other": "UPDATE {table} SET price = price + 1 WHERE id = :id;",
}
_RATE = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)


async def writers(bench: Bench) -> Outcome:
    """One-row updates of the content and of another column, and one big UPDATE; the source is paused."""
    plan = bench.plan
    async with bench.servers.pipeline(STUB) as pipeline:
        await pipeline.create()
        await pipeline.insert(corpus(plan.writer_rows))
        await pipeline.start_listener()
        worker = await pipeline.start_worker()
        await pipeline.settled()
        await worker.end()
        await pipeline.site.run("SELECT evervec.pause('items')")
        await pipeline.site.run(Path(__file__).with_name("writers.sql").read_text(encoding="utf-8"))
        await pipeline.site.run("ANALYZE")
        outcome = Outcome()
        for kind, script in SCRIPTS.items():
            bench.say(f"  updates of {'the content' if kind == 'content' else 'another column'}, transactions/s:")
            rates = await interleaved(bench, **_sides(partial(_pgbench, bench, pipeline, script)))
            for table, suffix in TABLES.items():
                outcome.figures[f"write_ratio_{kind}{suffix}"] = ratio(rates[table], rates["plain"])
            outcome.repetitions |= {f"write_{kind}_{table}_per_s": values for table, values in rates.items()}
        bench.say("  one UPDATE, seconds:")
        number = count()
        seconds = await interleaved(bench, **_sides(lambda table: _bulk(bench, pipeline, table, next(number))))
        for table, suffix in TABLES.items():
            outcome.figures[f"write_bulk_slowdown{suffix}"] = ratio(seconds[table], seconds["plain"])
        outcome.repetitions |= {f"write_bulk_{table}_seconds": values for table, values in seconds.items()}
    return outcome


def _sides(measure: Callable[[str], Awaitable[float]]) -> dict[str, Side]:
    return {table: partial(measure, table) for table in ("plain", *TABLES)}


async def _pgbench(bench: Bench, pipeline: Pipeline, script: str, table: str) -> float:
    """Transactions a second of one round."""
    await pipeline.site.run("VACUUM")
    file = bench.servers.folder / "pgbench.sql"
    file.write_text(f"\\set id random(1, {bench.plan.writer_rows})\n{script.format(table=table)}\n", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        str(bench.servers.postgres.program("pgbench")),
        *("--no-vacuum", "--protocol=prepared", f"--client={CLIENTS}", "--jobs=2"),
        *(f"--time={bench.plan.round_seconds}", f"--file={file}", pipeline.site.conninfo),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    said, complaints = await process.communicate()
    rate = _RATE.search(said.decode())
    assert process.returncode == 0, complaints.decode()
    assert rate, said.decode()
    return float(rate[1])


async def _bulk(bench: Bench, pipeline: Pipeline, table: str, number: int) -> float:
    """Seconds that one UPDATE of many rows takes."""
    await pipeline.site.run("VACUUM")
    started = time.perf_counter()
    await pipeline.site.run(
        f"UPDATE {table} SET body = left(body, 150) || %s WHERE id <= %s", f" {number}", bench.plan.bulk_rows
    )
    return time.perf_counter() - started
