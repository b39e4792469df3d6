"""Traces from a notification to the write-back, where the standard variables of OpenTelemetry ask for them.

`OTEL_EXPORTER_OTLP_ENDPOINT`, `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT` or `OTEL_TRACES_EXPORTER` switches them on. A span
holds sources, keys, counts and outcomes; of an error its class.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from evervec.errors import ConfigurationError
from evervec.log import describe_error, get_logger

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer

    from evervec.otel import Interceptor

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_log = get_logger(__name__)
_tracers: list["Tracer"] = []
"""The one that traces now, if any."""


def exporter_wanted(environment: Mapping[str, str]) -> str | None:
    """Which exporter the environment asks for: otlp or console, if any. ConfigurationError for one that is neither."""
    wanted = environment.get("OTEL_TRACES_EXPORTER", "").strip() or None
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or wanted == "none":
        return None
    if wanted is None:
        return "otlp" if any(environment.get(name) for name in ENDPOINTS) else None
    if wanted not in {"otlp", "console"}:
        raise ConfigurationError(f"OTEL_TRACES_EXPORTER is {wanted!r}: evervec knows otlp, console and none")
    return wanted


@contextmanager
def traced(service: str) -> Iterator[None]:
    """Trace while the block runs, if the environment asks for it; what is left is sent at the end."""
    wanted = exporter_wanted(os.environ)
    if wanted is None:
        yield
        return
    try:
        provider = _provider(service, wanted)
    except ModuleNotFoundError as error:
        _log.warning("OpenTelemetry's variables ask for traces: pip install 'evervec[otel]'", missing=str(error.name))
        yield
        return
    try:
        with tracing(provider):
            yield
    finally:
        provider.shutdown()


@contextmanager
def tracing(provider: "TracerProvider") -> Iterator[None]:
    """Trace with this provider while the block runs."""
    _tracers.append(provider.get_tracer("evervec"))
    try:
        yield
    finally:
        _tracers.pop()


def interceptors() -> "list[Interceptor]":
    """What a client of Temporal needs so that traces go through it."""
    if not _tracers:
        return []
    from evervec.otel import Interceptor  # noqa: PLC0415 - an extra

    return [Interceptor(_tracers[-1])]


@contextmanager
def span(name: str, *, waited: float = 0.0, **about: str | int | None) -> Iterator[dict[str, str | int]]:
    """A span that began `waited` seconds ago and ends with the block; what the block puts into the dict is told too."""
    told: dict[str, str | int] = {}
    if not _tracers:
        yield told
        return
    from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - an extra

    with _tracers[-1].start_as_current_span(
        name,
        start_time=time.time_ns() - round(waited * 1e9),
        attributes={f"evervec.{key}": value for key, value in about.items() if value is not None},
        record_exception=False,  # its text may quote a row
        set_status_on_exception=False,
    ) as current:
        try:
            yield told
        except Exception as error:
            current.set_status(Status(StatusCode.ERROR, describe_error(error)))
            raise
        finally:
            current.set_attributes({f"evervec.{key}": value for key, value in told.items()})


def _provider(service: str, wanted: str) -> "TracerProvider":
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415 - an extra
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    provider = TracerProvider(resource=Resource.create({} if named else {"service.name": service}))
    provider.add_span_processor(BatchSpanProcessor(_exporter(wanted)))
    return provider


def _exporter(wanted: str) -> "SpanExporter":
    if wanted == "console":
        import sys  # noqa: PLC0415

        from opentelemetry.sdk.trace.export import ConsoleSpanExporter  # noqa: PLC0415

        return ConsoleSpanExporter(out=sys.stderr)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415

    return OTLPSpanExporter()
