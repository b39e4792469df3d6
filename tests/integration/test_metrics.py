"""What listener and worker serve to Prometheus, after real work, is what the docs, the dashboard and the rules name."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import pytest_asyncio
import yaml
from prometheus_client.metrics_core import Metric

from evervec.errors import ConfigurationError
from evervec.latency import LATENCY_BUCKETS
from evervec.metrics import WORK
from evervec.metrics_page import served
from tests.integration.contract import fresh_database
from tests.integration.pipeline import Site, new_table, until
from tests.integration.scrape_lab import free_address, processes, scrape, series, value

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs" / "metrics.md"
BULK = 40


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def said(
    postgres: str, template_database: str, temporal_address: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[dict[str, Metric], dict[str, Metric]]]:
    """What the processes say after edits, bulk work, skipped and failed items."""
    with fresh_database(postgres, template_database) as database:
        async with (
            Site.open(database, temporal_address, max_attempts=2, sweep_threshold=8, debounce_ms=100) as site,
            processes(site, tmp_path_factory.mktemp("logs")) as at,
        ):
            table = await new_table(site, "column", name="items")
            await table.do("INSERT INTO {t} VALUES (1, 'drill'), (2, 'saw')")
            await table.settled()
            await table.do("UPDATE {t} SET name = 'edited' WHERE id = 1")
            await table.do("UPDATE {t} SET name = 'edited again' WHERE id = 1")
            await table.settled()
            # An edit and its undo: nothing to embed.
            await table.do("UPDATE {t} SET name = 'x' WHERE id = 2; UPDATE {t} SET name = 'saw' WHERE id = 2")
            await table.do("INSERT INTO {t} VALUES (3, 'evervec-poison')")
            await table.settled()
            await table.do("INSERT INTO {t} SELECT n, 'bulk ' || n FROM generate_series(100, %s) AS n", 99 + BULK)
            await table.settled()
            await site.run("SELECT pg_notify('evervec', 'not ours')")

            async def all_told() -> bool:
                listener, worker = await at.asked()
                return (
                    value(listener, "evervec_outbox_items", source="items", state="failed") == 1
                    and value(listener, "evervec_outbox_items", source="items", state="pending") == 0
                    and value(listener, "evervec_notifications_total", kind="foreign") == 1
                    and value(worker, "evervec_items_total", outcome="embedded") >= 3 + BULK
                    and value(worker, "evervec_items_total", outcome="unchanged") >= 1
                )

            await until(all_told)
            yield await at.asked()


async def test_the_listener_tells_what_it_did(said: tuple[dict[str, Metric], dict[str, Metric]]) -> None:
    listener, _ = said
    assert value(listener, "evervec_listener_role", role="leading") == 1
    assert value(listener, "evervec_listener_role") == 1
    assert value(listener, "evervec_outbox_items", source="items", state="pending") == 0
    assert value(listener, "evervec_oldest_pending_seconds", source="items") == 0
    assert value(listener, "evervec_notifications_total", kind="item") >= 2
    assert value(listener, "evervec_signals_total", lane="live") >= 3
    assert value(listener, "evervec_signals_total", lane="sweep") >= 1
    assert value(listener, "evervec_signal_failures_total") == 0
    assert value(listener, "evervec_temporal_away") == 0
    assert 0 <= value(listener, "evervec_notification_queue_usage_ratio") < 0.5


async def test_the_worker_tells_what_it_did(said: tuple[dict[str, Metric], dict[str, Metric]]) -> None:
    _, worker = said
    assert value(worker, "evervec_worker_ready") == 1
    lanes = {
        lane: value(worker, "evervec_items_total", source="items", lane=lane, outcome="embedded")
        for lane in ("live", "sweep")
    }
    assert min(lanes.values()) >= 1
    assert sum(lanes.values()) >= 3 + BULK
    assert value(worker, "evervec_items_total", source="items", outcome="failed") == 1
    assert value(worker, "evervec_failed_attempts_total", source="items") == 2
    assert value(worker, "evervec_commit_to_vector_seconds_count", source="items") == sum(lanes.values())
    assert value(worker, "evervec_encode_texts_total", model="stub:8") >= 3 + BULK
    assert value(worker, "evervec_encode_seconds_count", model="stub:8") >= 3
    assert value(worker, "evervec_write_back_seconds_count", lane="sweep") >= 1
    assert value(worker, "evervec_write_back_errors_total") == 0
    assert value(worker, "evervec_model_load_seconds", model="stub:8") > 0
    assert value(worker, "process_resident_memory_bytes") > 10_000_000
    bounds = {
        sample.labels["le"] for sample in worker["evervec_commit_to_vector_seconds"].samples if "le" in sample.labels
    }
    assert bounds == {str(float(bound)) for bound in LATENCY_BUCKETS} | {"+Inf"}


def documented() -> set[str]:
    """The metrics in the tables of the docs."""
    rows = re.findall(r"^\| (`[a-z_]+`(?:, `[a-z_]+`)*) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}


async def test_what_is_served_and_what_is_documented_are_the_same(
    said: tuple[dict[str, Metric], dict[str, Metric]],
) -> None:
    served_names = {name for families in said for name in families}
    ours = {name for name in served_names if not name.startswith("temporal_")}
    assert {name for name in documented() if not name.startswith("temporal_")} == ours
    assert {name for name in documented() if name.startswith("temporal_")} <= served_names
    for families in said:
        assert {"evervec_build_info", "process_resident_memory_bytes"} <= families.keys()
        assert any(name.startswith("temporal_") for name in families)


async def test_names_follow_the_conventions_and_labels_hold_no_key(
    said: tuple[dict[str, Metric], dict[str, Metric]],
) -> None:
    allowed = {
        *("source", "state", "role", "kind", "lane", "outcome", "activity", "model", "version"),
        "le",
    }
    for families in said:
        for name, family in families.items():
            if not name.startswith("evervec_"):
                continue
            assert family.documentation, name
            assert not (family.type == "gauge" and name.endswith("_total")), name
            assert {label for sample in family.samples for label in sample.labels} <= allowed, name
            assert "poison" not in str(family.samples), name


def rules() -> list[dict[str, Any]]:
    """The alert rules."""
    text = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    return [rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]]


def queries() -> dict[str, list[str]]:
    """The PromQL of the dashboard's panels and of the alerts, by where it stands."""
    found: dict[str, list[str]] = {f"alert {rule['alert']}": [rule["expr"]] for rule in rules()}
    for path in sorted((ROOT / "deploy" / "grafana").glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            found[f"{path.name}: {panel['title']}"] = [target["expr"] for target in panel["targets"]]
        variables = [each["query"]["query"] for each in dashboard["templating"]["list"] if each["type"] == "query"]
        found[f"{path.name}: variables"] = variables
    return found


async def test_panels_and_alerts_ask_for_what_there_is(said: tuple[dict[str, Metric], dict[str, Metric]]) -> None:
    there = series(said[0]) | series(said[1])
    assert len(queries()) > 15
    for place, expressions in queries().items():
        for expression in expressions:
            names = set(re.findall(r"\b(?:evervec|temporal|process)_[a-z_]+\b", expression))
            assert names, (place, expression)
            assert names <= there, (place, names - there)


async def test_each_alert_links_to_what_to_do() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    headings = {heading.lower() for heading in re.findall(r"^### (\w+)$", text, re.MULTILINE)}
    for rule in rules():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert rule["alert"].lower() in headings
        assert {"summary", "description"} <= rule["annotations"].keys()
        assert rule["labels"]["severity"] in {"critical", "warning"}


NO_LEADER_NO_WORKER = """
  - interval: 1m
    input_series:
      - {series: 'evervec_listener_role{role="standby"}', values: '1x30'}
      - {series: 'evervec_listener_role{role="leading"}', values: '0x30'}
    alert_rule_test:
      - eval_time: 5m
        alertname: EvervecNoLeader
        exp_alerts: [{exp_labels: {severity: critical}}]
      - {eval_time: 5m, alertname: EvervecNoWorker, exp_alerts: [{exp_labels: {severity: critical}}]}
"""
STUCK = """
  - interval: 1m
    input_series:
      - {series: 'evervec_outbox_items{source="a", state="pending"}', values: '5x60'}
      - {series: 'evervec_outbox_items{source="b", state="pending"}', values: '5x60'}
      - {series: 'evervec_outbox_items{source="c", state="pending"}', values: '5x60'}
      - {series: 'evervec_source_paused{source="c"}', values: '1x60'}
      - {series: 'evervec_items_total{source="b", lane="live", outcome="embedded"}', values: '0+1x60'}
      - {series: 'evervec_items_total{source="a", lane="live", outcome="locked"}', values: '0+1x60'}
    alert_rule_test:
      - eval_time: 30m
        alertname: EvervecNothingEmbedded
        exp_alerts: [{exp_labels: {severity: critical, source: a}}]
"""


@pytest.mark.skipif(which("promtool") is None, reason="promtool, of Debian's package prometheus, is not installed")
@pytest.mark.parametrize("situation", [NO_LEADER_NO_WORKER, STUCK], ids=["nobody", "stuck"])
async def test_promtool_accepts_the_rules_and_they_fire_when_they_should(tmp_path: Path, situation: str) -> None:
    alerts = ROOT / "deploy" / "prometheus" / "alerts.yml"
    assert await promtool("check", "rules", alerts) == ""
    bare = yaml.safe_load(alerts.read_text(encoding="utf-8"))
    for rule in bare["groups"][0]["rules"]:
        del rule["annotations"]
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(bare))
    (tmp_path / "test.yml").write_text(f"rule_files: [alerts.yml]\ntests:{situation}")
    assert await promtool("test", "rules", tmp_path / "test.yml") == ""


async def promtool(*arguments: str | Path) -> str:
    """What it complains of."""
    process = await asyncio.create_subprocess_exec(
        "promtool", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return said.decode() if process.returncode else ""


async def test_an_address_that_is_taken_is_one_clear_error() -> None:
    address = free_address()
    with served(address, WORK):
        assert "evervec_worker_ready" in await scrape(address)
        with pytest.raises(ConfigurationError, match="EVERVEC_METRICS_ADDRESS"), served(address, WORK):
            pass
    with served(address, WORK):
        pass
