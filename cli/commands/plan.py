"""`evervec watch --dry-run`: what watching a table would take."""

from typing import Any

from rich.filesize import decimal

from cli.output import counted, duration, note, print_json, stdout, table
from db.plan import WatchPlan
from db.sources import Sources, WatchOptions
from embedding.encoder import Encoder
from evervec.errors import EvervecError
from evervec.settings import Settings
from service.plan import Estimate, estimate, plan_watch, try_model


async def show_plan(sources: Sources, options: WatchOptions, settings: Settings, *, as_json: bool) -> None:
    """Tell it; the model is loaded and tried on some of the table's texts."""
    plan = await plan_watch(sources, options)
    needed = estimate(plan, await _rate(plan, settings))
    if as_json:
        print_json(_document(plan, needed))
    else:
        shown = table(["", ""], [*_facts(plan, needed)])
        shown.show_header = False
        stdout().print(shown)
        note("nothing was changed: without --dry-run it is done")


async def _rate(plan: WatchPlan, settings: Settings) -> float | None:
    try:
        async with Encoder(settings) as encoder:
            return await try_model(plan, encoder)
    except EvervecError as error:
        note(f"note: the time is not known: {error}")
    return None


def _facts(plan: WatchPlan, needed: Estimate) -> list[tuple[str, str]]:
    about = "" if plan.exact else "about "
    facts = [
        ("source", f"{plan.source}, which {'is there already' if plan.alters else 'is new'}"),
        ("table", plan.relation),
        ("model", f"{plan.model}, {plan.dimension:,} dimensions"),
        ("rows", f"{about}{plan.rows:,}, {plan.eligible:,} of them eligible"),
    ]
    if plan.added_table:
        facts.append(("makes", f"the table {plan.added_table}"))
    elif plan.added_columns:
        facts.append(("adds", f"the columns {', '.join(plan.added_columns)}"))
    if plan.replaced_columns:
        facts.append(("makes anew", f"the columns {', '.join(plan.replaced_columns)}"))
    if plan.dropped_indexes:
        facts.append(("drops", f"the indexes {', '.join(plan.dropped_indexes)}"))
    if plan.fitting or plan.stale or plan.cleared:
        kept = [f"{plan.fitting:,} stay"] if plan.fitting else []
        kept += [f"{plan.stale:,} become stale until they are replaced"] if plan.stale else []
        kept += [f"{plan.cleared:,} are cleared"] if plan.cleared else []
        facts.append(("vectors", f"{about}{', '.join(kept)}"))
    facts.append(("to embed", f"{about}{counted(plan.to_embed, 'item')}"))
    if needed.seconds is not None:
        rate = f" ({needed.items_per_second:,.0f}/s)" if needed.items_per_second else ""
        facts.append(("time", f"about {duration(needed.seconds)} with one worker on a machine like this one{rate}"))
    facts.append(("disk", f"about {decimal(needed.vector_bytes)} for vectors"))
    if needed.rewritten_bytes:
        facts.append(("", f"and {decimal(needed.rewritten_bytes)} for new versions of the rows, until vacuum"))
    return facts


def _document(plan: WatchPlan, needed: Estimate) -> dict[str, Any]:
    document = plan._asdict() | needed._asdict()
    del document["texts"], document["bytes"]
    return {**document, "to_embed": plan.to_embed}
