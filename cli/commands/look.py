"""`evervec failures` and `item`: what is wrong, and why."""

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.commands.options import AnySource, Json, Source
from cli.output import counted, duration, note, print_json, shortened, stdout, table
from cli.processes import run_async
from cli.session import command_settings, open_sources
from db.sources import Sources
from evervec.errors import EvervecError, ItemNotFoundError
from evervec.log import describe_error
from evervec.settings import Settings
from service.explain import ItemReport, ItemState, explain

if TYPE_CHECKING:
    from service.workflow import WorkflowStatus

KEY_LENGTH = 60
TEMPORAL_SECONDS = 5.0
"""How long `item` waits for Temporal, which it can do without."""


def failures(source: AnySource = None, as_json: Json = False) -> None:
    """List the items that were given up, and why."""
    run_async(_failures(source, as_json))


async def _failures(source: str | None, as_json: bool) -> None:
    async with open_sources(command_settings()) as sources:
        found = await sources.failures(source)
    if as_json:
        print_json({"failures": [one._asdict() for one in found]})
    elif found:
        rows = [
            [one.source, shortened(one.key, KEY_LENGTH), one.attempts, _ago(one.failed_at), one.error] for one in found
        ]
        stdout().print(table(["source", "key", "attempts", "failed", "error"], rows, right=["attempts"]))
    else:
        note("no failed items")


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}"


def _ago(moment: datetime) -> str:
    return f"{duration(max((datetime.now(UTC) - moment).total_seconds(), 0))} ago"


def item(source: Source, key: Annotated[str, typer.Argument(metavar="KEY")], as_json: Json = False) -> None:
    """Explain one item: fresh or why not, its workflow, its last error."""
    run_async(_item(source, key, as_json))


async def _item(source: str, key: str, as_json: bool) -> None:
    settings = command_settings()
    async with open_sources(settings) as sources:
        report = await explain(sources, source, key)
        workflow = await _workflow(settings, sources, report)
    if as_json:
        print_json({**asdict(report), "workflow": workflow and _document(workflow)})
    else:
        _show_item(report, workflow)
    if report.state is ItemState.MISSING:
        raise ItemNotFoundError(f"source {source!r} has no item with the key {key}")


async def _workflow(settings: Settings, sources: Sources, report: ItemReport) -> "WorkflowStatus | None":
    """The item's workflow, or the sweep that an item waits for; None when Temporal knows of none, or does not say."""
    # Temporal's client takes long to import, and only this command needs it.
    from temporalio.service import RPCError  # noqa: PLC0415

    from evervec.temporal import connect, fits_workflow_id, item_workflow_id, sweep_workflow_id  # noqa: PLC0415
    from service.workflow import workflow_status  # noqa: PLC0415

    instance = await sources.instance()
    of_its_own = fits_workflow_id(instance, report.source, report.key)
    try:
        async with asyncio.timeout(TEMPORAL_SECONDS):
            client = await connect(settings)
            found = None
            if of_its_own:
                found = await workflow_status(client, item_workflow_id(instance, report.source, report.key))
            if report.outbox and not (found and found.status == "running" and found.state == "pending"):
                sweep = await workflow_status(client, sweep_workflow_id(instance, report.source))
                found = sweep if sweep and sweep.status == "running" else found
            return found
    except EvervecError as error:
        note(f"note: the workflow is not known: {error}")
    except (RPCError, TimeoutError) as error:
        note(f"note: the workflow is not known: {describe_error(error)} from Temporal at {settings.temporal_address}")
    return None


def _show_item(report: ItemReport, workflow: "WorkflowStatus | None") -> None:
    rows: list[tuple[str, Any]] = [
        ("item", f"{report.source} {report.key}"),
        ("state", report.state),
        ("reason", report.reason),
        ("embedded at", report.embedded_at and _moment(report.embedded_at)),
        ("content hash", report.content_hash),
        ("embedding hash", report.embedding_hash),
    ]
    if report.outbox:
        queued_at = _moment(datetime.fromisoformat(report.outbox["queued_at"]))
        rows.append(("in the outbox", f"{report.outbox['state']}, since {queued_at}"))
    if workflow:
        rows.append(("workflow", workflow.id))
        rows.append(("", ", ".join(shortened(fact) for fact in _facts(workflow))))
    shown = table(["", ""], rows)
    shown.show_header = False
    stdout().print(shown)


def _document(workflow: "WorkflowStatus") -> dict[str, Any]:
    document = workflow._asdict()
    sweep = document.pop("sweep")
    return document | ({"sweep": sweep.model_dump(mode="json")} if sweep else {})


def _facts(workflow: "WorkflowStatus") -> list[str]:
    facts = [workflow.status]
    if workflow.state:
        facts.append(f"item {workflow.state}")
    facts.append("no worker answers for it" if workflow.rounds is None else counted(workflow.rounds, "round"))
    if workflow.sweep:
        facts.append(f"{counted(workflow.sweep.items, 'item')} looked at, {workflow.sweep.items_per_second:,.0f}/s")
    if workflow.last_error:
        facts.append(f"last error: {workflow.last_error}")
    return facts
