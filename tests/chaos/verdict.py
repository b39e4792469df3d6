"""What is found when the dust has settled: by `evervec verify`, and by the ledger."""

import asyncio
import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from temporalio import exceptions
from temporalio.client import Client, WorkflowExecution, WorkflowFailureError

from embedding.embedders import load_embedder
from evervec.messages import SAFETY_NET_WORKFLOW, Outcome
from evervec.model import ModelSpec
from evervec.settings import Settings
from tests.chaos.ledger import Key, Ledger, Row
from tests.chaos.post import Post
from tests.chaos.site import Site, Watched
from tests.integration.commands import FOREIGN

EVERYTHING = 1_000_000
"""More than there are rows."""
LEAST_COSINE = 0.999
ENDED_BADLY = "ExecutionStatus IN ('Failed', 'TimedOut', 'Terminated', 'Canceled')"
LOST = "changes were found that no trigger saw"
"""What a walk over the rows logs. Triggers are never off in a run, so something was forgotten after it was seen."""
PROMISES = ("stale", "failed", "orphaned", "mismatched")
"""What `verify` counts, and what is to be 0."""


@dataclass
class Findings:
    """All that is wrong, in words."""

    verified: list[dict[str, Any]] = field(default_factory=list)
    compared: int = 0
    """Rows that were compared with the ledger."""
    outcomes: Counter[str] = field(default_factory=Counter)
    """What write-backs came to, in items."""
    wrong: list[str] = field(default_factory=list)


async def examine(site: Site, ledger: Ledger) -> Findings:
    """Embed everything anew, twice: as `verify` does it, and from what the ledger says the texts are."""
    found = Findings()
    found.verified = await _verify(site)
    for source in found.verified:
        found.wrong += [f"{source['source']}: {source[name]} {name}" for name in PROMISES if source[name]]
        if source["sampled"] != source["eligible"]:
            found.wrong.append(f"{source['source']}: {source['sampled']} of {source['eligible']} embedded anew")
    for table in site.tables:
        await _compare(site, table, ledger, found)
    found.wrong += await _bad_workflows(site)
    found.wrong += [
        f"{line['items']} changes of {line['source']} were lost, and found by the walk of {post.name}"
        for post in site.posts
        for line in post.lines(LOST)
    ]
    for post in site.workers:
        found.outcomes += _outcomes(post)
    return found


async def _verify(site: Site) -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.main", "verify", "--sample", str(EVERYTHING), "--json"),
        env=environment | {"EVERVEC_DATABASE_URL": site.conninfo},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    sources: list[dict[str, Any]] = json.loads(out)["sources"]
    return sources


async def _compare(site: Site, table: Watched, ledger: Ledger, found: Findings) -> None:
    rows = {Key(table.name, row[0]): row for row in await site.run(table.query)}
    expected = {key: row for key, row in ledger.rows.items() if key.table == table.name}
    found.compared += len(expected)
    found.wrong += [f"{key} is not there" for key in expected.keys() - rows.keys()]
    found.wrong += [f"{key} is there" for key in rows.keys() - expected.keys()]
    both = sorted(expected.keys() & rows.keys())
    found.wrong += [
        f"{key} has another text than was committed last" for key in both if _row(rows[key]) != expected[key]
    ]
    vectors = {key: rows[key][4] for key in both if expected[key].eligible}
    found.wrong += [f"{key} has no vector" for key, vector in vectors.items() if vector is None]
    embedded = [key for key, vector in vectors.items() if vector is not None]
    texts = [expected[key].content for key in embedded]
    fresh = await asyncio.to_thread(_embed, table, texts)
    for key, vector in zip(embedded, fresh, strict=True):
        stored = np.asarray(vectors[key])
        if np.dot(stored, vector) < LEAST_COSINE * np.linalg.norm(stored) * np.linalg.norm(vector):
            found.wrong.append(f"{key} has the vector of another text")
    if table.destination == "table":
        [(left,)] = await site.run(
            f"SELECT count(*) FROM {table.name}_embedding WHERE id NOT IN (SELECT id FROM {table.name})"
        )
        found.wrong += [f"{table.name}: {left} vectors of rows that are gone"] if left else []


def _outcomes(post: Post) -> Counter[str]:
    counts = Counter(line["outcome"] for line in post.lines("item done"))
    for line in post.lines("batch done"):
        counts.update({outcome.value: line.get(outcome.value, 0) for outcome in Outcome})
    return counts


def _row(row: tuple[Any, ...]) -> Row:
    return Row(row[1], row[2], row[3])


def _embed(table: Watched, texts: list[str]) -> list[Any]:
    model = ModelSpec(name=table.model, revision="", dimension=table.dimension, prompt="")
    return list(load_embedder(model, Settings()).encode(texts, "")) if texts else []


async def _bad_workflows(site: Site) -> list[str]:
    client = await Client.connect(site.temporal.address)
    ended = [workflow async for workflow in client.list_workflows(ENDED_BADLY)]
    return [
        f"{workflow.id} ended as {workflow.status.name if workflow.status else None}"
        for workflow in ended
        if workflow.workflow_type != SAFETY_NET_WORKFLOW or not await _ran_out_of_time(client, workflow)
    ]


async def _ran_out_of_time(client: Client, workflow: WorkflowExecution) -> bool:
    """Whether a workflow failed because its time was up, or that of its activity.

    The safety net has a limit, the moment when its next run is due: that does it all.
    """
    try:
        await client.get_workflow_handle(workflow.id, run_id=workflow.run_id).result()
    except WorkflowFailureError as failure:
        cause = failure.cause
        return isinstance(
            cause.cause if isinstance(cause, exceptions.ActivityError) else cause, exceptions.TimeoutError
        )
    return False
