"""One trace leads from the notification to the write-back, and holds nothing of a row but its key."""

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from evervec import tracing
from evervec.errors import ConfigurationError
from evervec.otel import Interceptor
from evervec.temporal import data_converter
from evervec.tracing import exporter_wanted, traced
from tests.integration.pipeline import DESTINATIONS, Site, new_table, until
from tests.integration.program import Program, programs
from workflows import all_workflows

CANARY = f"CANARY-{uuid.uuid4().hex}"


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """The spans of this process, as they end."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    with tracing.tracing(provider):
        yield exporter
    provider.shutdown()


@pytest.fixture
async def site(database: str, temporal_address: str) -> AsyncIterator[Site]:
    async with Site.open(database, temporal_address, max_attempts=1, sweep_threshold=5) as site:
        yield site


def trace_of(spans: Sequence[ReadableSpan], root: ReadableSpan) -> list[ReadableSpan]:
    assert root.context is not None
    return [span for span in spans if span.context and span.context.trace_id == root.context.trace_id]


def roots(spans: Sequence[ReadableSpan], name: str, **about: str) -> list[ReadableSpan]:
    """The spans without a parent of this name."""
    wanted = {f"evervec.{key}": value for key, value in about.items()}
    return [
        span
        for span in spans
        if span.name == name and span.parent is None and wanted.items() <= dict(span.attributes or {}).items()
    ]


def told(spans: Sequence[ReadableSpan]) -> str:
    return "".join(span.to_json() for span in spans)


ITEMS_TRACE = {
    "item changed": None,
    "SignalWithStartWorkflow:ItemEmbeddingWorkflow": "item changed",
    "RunActivity:generate_item_embedding": "SignalWithStartWorkflow:ItemEmbeddingWorkflow",
    "read": "RunActivity:generate_item_embedding",
    "encode": "RunActivity:generate_item_embedding",
    "write back": "RunActivity:generate_item_embedding",
}
"""Each span and its parent."""


def shape(trace: Sequence[ReadableSpan]) -> dict[str, str | None]:
    names = {span.context.span_id: span.name for span in trace if span.context}
    return {span.name: names[span.parent.span_id] if span.parent else None for span in trace}


@pytest.mark.parametrize("destination", DESTINATIONS)
async def test_each_edit_has_one_trace_from_listener_to_write_back(
    site: Site, spans: InMemorySpanExporter, destination: str
) -> None:
    table = await new_table(site, destination)
    async with site.running():
        await table.do("INSERT INTO {t} VALUES (7, %s)", CANARY)
        await table.fresh()
        # The second edit meets a workflow that runs, and has a trace of its own.
        await table.do("UPDATE {t} SET name = %s WHERE id = 7", f"{CANARY} edited")
        await table.fresh()
        await until(lambda: len([span for span in spans.get_finished_spans() if span.name == "write back"]) >= 2)
    finished = spans.get_finished_spans()
    edits = roots(finished, "item changed", source=table.source, key="7")
    traces = [trace for trace in (trace_of(finished, edit) for edit in edits) if len(trace) == len(ITEMS_TRACE)]
    assert len(traces) == 2
    for trace in traces:
        assert shape(trace) == ITEMS_TRACE
        [change] = [span for span in trace if span.name == "item changed"]
        [written] = [span for span in trace if span.name == "write back"]
        began, signalled, ended = change.start_time or 0, change.end_time or 0, written.end_time or 0
        assert (signalled - began) / 1e9 >= 0.02  # the debounce time
        assert ended > signalled > began > 0
        assert dict(written.attributes or {})["evervec.embedded"] == 1
    assert CANARY not in told(finished)


async def test_bulk_work_and_errors_are_traced_without_a_word_of_a_row(site: Site, spans: InMemorySpanExporter) -> None:
    table = await new_table(site, "column")
    # What the database says of a refused row quotes it.
    await table.do("ALTER TABLE {t} ADD CHECK (id <> 3 OR embedding IS NULL)")
    async with site.running():
        await table.do("INSERT INTO {t} SELECT n, %s || n FROM generate_series(1, 20) AS n", f"{CANARY} ")
        await table.settled()
        await table.do("UPDATE {t} SET name = %s WHERE id = 3", f"{CANARY} again")
        await table.settled()
    finished = spans.get_finished_spans()
    sweeps = [shape(trace_of(finished, root)) for root in roots(finished, "items wait", source=table.source)]
    assert any({"RunActivity:batch_generate_embeddings", "encode", "write back"} <= sweep.keys() for sweep in sweeps)
    failed = [span for span in finished if span.name == "write back" and not span.status.is_ok]
    assert failed
    assert {span.status.description for span in failed} == {"DatabaseError [23514]"}
    assert CANARY not in told(finished)


async def test_headers_are_small_and_change_no_history(site: Site, spans: InMemorySpanExporter) -> None:  # noqa: ARG001
    table = await new_table(site, "column")
    async with site.running():
        await table.do("INSERT INTO {t} VALUES (1, 'drill')")
        await table.fresh()
        instance = await site.value("SELECT evervec.instance_id()")
        handle = site.client.get_workflow_handle(f"item-embedding/{instance}/{table.source}/1")
        events = [*(await handle.fetch_history()).events]
    # With or without traces, a worker takes up what another one has begun.
    traces_not: list[Interceptor] = []
    for used in (traces_not, tracing.interceptors()):
        replayer = Replayer(workflows=all_workflows(), data_converter=data_converter, interceptors=used)
        await replayer.replay_workflow(WorkflowHistory(handle.id, events))
    headers = [
        event.workflow_execution_signaled_event_attributes.header.ByteSize()
        + event.activity_task_scheduled_event_attributes.header.ByteSize()
        for event in events
    ]
    assert 0 < max(headers) < 250


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://collector:4318/v1/traces"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}, None),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_TRACES_EXPORTER": "otlp"}, None),
        ({"OTEL_SERVICE_NAME": "mine"}, None),
    ],
)
def test_the_standard_variables_decide(environment: dict[str, str], wanted: str | None) -> None:
    assert exporter_wanted(environment) == wanted


def test_an_exporter_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_EXPORTER"):
        exporter_wanted({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_without_the_extra_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with capture_logs() as logs, traced("evervec-test"):
        assert tracing.interceptors() == []
    assert "evervec[otel]" in logs[0]["event"]


async def test_the_processes_trace_when_the_environment_says_so(site: Site, tmp_path: Path) -> None:
    logs = [tmp_path / f"{name}.log" for name in ("listener", "worker")]
    variables = {"OTEL_TRACES_EXPORTER": "console"}
    listener = Program("listener", site.settings, logs[0], **variables)
    worker = Program("worker", site.settings, logs[1], **variables)
    table = await new_table(site, "column")
    async with programs(listener, worker):
        await listener.logged("listener leads")
        await worker.logged("worker ready")
        await table.do("INSERT INTO {t} VALUES (1, 'drill')")
        await table.fresh()
        assert [await program.end() for program in (listener, worker)] == [0, 0]
    said = [log.read_text() for log in logs]
    assert '"name": "item changed"' in said[0]
    assert '"name": "write back"' in said[1]
    assert '"service.name": "evervec-worker"' in said[1]
