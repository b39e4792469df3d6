"""Each source: its table, columns, triggers and vectors, and what waits."""

import asyncio
from collections.abc import AsyncIterator, Iterator

from db.diagnosis import Diagnosis, SourceFacts
from service.doctor.check import Check, advice, fault, fine

OLD_SECONDS = 600.0
"""The safety net has swept by then whatever was overlooked."""
MOVING_SECONDS = 3.0
"""How long to look whether old items become fewer."""
INDEX_ROWS = 50_000
"""With fewer vectors a search without an index is quick as well."""
INDEX_DIMENSIONS = 2000
"""The most that pgvector's indexes take, of the type vector."""


async def check_sources(database: Diagnosis, facts: list[SourceFacts]) -> AsyncIterator[Check]:
    """All sources, one after the other."""
    if not facts:
        yield advice("sources", "nothing is watched yet", "`evervec watch TABLE --text a,b` adds a source")
        return
    moving = await _moving(database, facts)
    for found in facts:
        if not found.relation:
            yield fault(
                "table",
                "the table was dropped",
                f"`evervec unwatch {found.source}`, or make the table again and watch it",
                source=found.source,
            )
            continue
        for check in _structure(found):
            yield check
        yield _vectors(found)
        yield _failed(found)
        yield _waiting(found, moving=found.source in moving)


def _structure(found: SourceFacts) -> Iterator[Check]:
    source, relation = found.source, found.relation
    if not found.sound:
        yield fault(
            "owner",
            f"{relation} was given to {found.owner}, who could act as evervec's owner; it is left alone",
            "give it back, or call `evervec watch` again, which says what to do",
            source=source,
        )
    if found.missing_columns:
        yield fault(
            "columns",
            f"{relation} has no column {', '.join(found.missing_columns)} any more: whoever writes gets an error",
            "call `evervec watch` again with the columns that there are",
            source=source,
        )
    elif not found.has_key:
        yield fault(
            "columns",
            f"the key of {relation} is not both UNIQUE and NOT NULL any more",
            "make its primary key or unique constraint again",
            source=source,
        )
    else:
        yield fine("columns", f"all that {relation} needs", source=source)
    yield _triggers(found)
    if found.hidden:
        yield fault(
            "row security",
            f"it hides rows of {relation} from evervec, which takes them for deleted",
            f"ALTER TABLE {relation} NO FORCE ROW LEVEL SECURITY, or have evervec owned by a role with BYPASSRLS",
            source=source,
        )


def _triggers(found: SourceFacts) -> Check:
    if found.missing_triggers:
        return fault(
            "triggers",
            f"{found.relation} lacks {', '.join(found.missing_triggers)}: not every change is recorded",
            f"call `evervec watch` again, then `evervec verify {found.source} --repair`",
            source=found.source,
        )
    if found.disabled_triggers:
        return fault(
            "triggers",
            f"disabled on {found.relation}: {', '.join(found.disabled_triggers)}; what changes is not recorded",
            f"ALTER TABLE {found.relation} ENABLE TRIGGER USER, then `evervec verify {found.source} --repair`",
            source=found.source,
        )
    if found.subscribed:
        return advice(
            "triggers",
            f"{found.relation} is written by logical replication, which fires no triggers: "
            "what comes that way is found by a walk, within some minutes",
            f"`evervec verify {found.source} --repair` finds it at once",
            source=found.source,
        )
    return fine("triggers", "all are there and enabled", source=found.source)


def _vectors(found: SourceFacts) -> Check:
    column = f"{found.vectors}.{found.embedding}"
    if not found.missing_columns and found.column_dimension != found.dimension:
        return fault(
            "vectors",
            f"{column} takes {found.column_dimension or 'any number of'} dimensions, the source has {found.dimension}",
            "call `evervec watch` again, which makes the column anew",
            source=found.source,
        )
    if not found.indexed and (found.live or 0) >= INDEX_ROWS and found.dimension <= INDEX_DIMENSIONS:
        return advice(
            "vectors",
            f"about {found.live:,} rows and no index on {column}: a search reads all of them",
            f"CREATE INDEX CONCURRENTLY ON {found.vectors} USING hnsw ({found.embedding} vector_cosine_ops)",
            source=found.source,
        )
    return fine("vectors", f"{found.dimension} dimensions, of {found.model}", source=found.source)


def _failed(found: SourceFacts) -> Check:
    if found.failed:
        return fault(
            "failed items",
            f"{found.failed:,} were given up",
            f"`evervec failures {found.source}` says why, `evervec retry {found.source}` tries again",
            source=found.source,
        )
    return fine("failed items", "none", source=found.source)


def _waiting(found: SourceFacts, *, moving: bool) -> Check:
    if not found.pending:
        return fine("waiting items", "none", source=found.source)
    waiting = f"{found.pending:,}, the oldest for {found.oldest_seconds:,.0f} s"
    if found.paused:
        return advice(
            "waiting items", f"{waiting}: the source is paused", f"`evervec resume {found.source}`", source=found.source
        )
    if found.oldest_seconds <= OLD_SECONDS:
        return fine("waiting items", waiting, source=found.source)
    if moving:
        return fine("waiting items", f"{waiting}; they become fewer", source=found.source)
    if found.rate:
        return advice(
            "waiting items",
            f"{waiting}; at most {found.rate:g} a second are embedded",
            f"`select evervec.throttle('{found.source}')` lifts the limit",
            source=found.source,
        )
    return fault(
        "waiting items",
        f"{waiting}, and they do not become fewer",
        f"see the other checks and the worker's log; `evervec item {found.source} KEY` explains one of them",
        source=found.source,
    )


async def _moving(database: Diagnosis, facts: list[SourceFacts]) -> set[str]:
    """The sources whose items have waited for long, but become fewer."""
    old = {found.source: found.pending for found in facts if found.oldest_seconds > OLD_SECONDS and not found.paused}
    if not old:
        return set()
    until = (await database.installation()).last_version
    await asyncio.sleep(MOVING_SECONDS)
    return {later.source for later in await database.sources(until) if later.pending < old.get(later.source, 0)}
