"""What is measured, what is asked for, and by how much a figure falls short."""

from dataclasses import dataclass
from enum import StrEnum


class Bound(StrEnum):
    """Which side of what is asked for is good."""

    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True)
class Figure:
    """One number of build/bench.json."""

    key: str
    measurement: str
    """Which measurement makes it."""
    how: str
    asked: float | None = None
    """On 2 cores; None where nothing is asked for."""
    bound: Bound = Bound.AT_LEAST

    def score(self, value: float) -> float | None:
        """How the value compares with what is asked for: 1 and above is good; None where nothing is asked for."""
        if self.asked is None:
            return None
        if self.bound is Bound.AT_LEAST:
            return value / self.asked
        return self.asked / value if value else 1.0 + self.asked

    def is_met(self, value: float) -> bool | None:
        """Whether it is what is asked for; None where nothing is."""
        if self.asked is None:
            return None
        return value >= self.asked if self.bound is Bound.AT_LEAST else value <= self.asked

    def verdict(self, value: float) -> str:
        """In words, whether it is what is asked for."""
        met, score = self.is_met(value), self.score(value)
        if met is None or score is None:
            return ""
        if met:
            return "ok"
        if not self.asked:
            return "short"
        percent = round((1 - score) * 100)
        return f"{percent} % short" if percent else "short by less than 1 %"

    @property
    def asked_text(self) -> str:
        """What is asked for."""
        return "" if self.asked is None else f"{self.bound} {self.asked:g}"


def _writers() -> list[Figure]:
    """evervec's figures, which something is asked of, and those of two other kinds of triggers."""
    kinds = {"": "evervec's triggers", "_pgai": "a trigger as pgai makes it", "_notify": "NOTIFY in every transaction"}
    asked = {"": (0.70, 0.97, 3.0)}
    figures = []
    for suffix, name in kinds.items():
        content, other, bulk = asked.get(suffix, (None, None, None))
        figures += [
            Figure(
                f"write_ratio_content{suffix}",
                "writers",
                f"pgbench, 8 clients, one-row updates of the content: {name} ÷ no trigger",
                content,
            ),
            Figure(
                f"write_ratio_other{suffix}",
                "writers",
                f"pgbench, 8 clients, one-row updates of another column: {name} ÷ no trigger",
                other,
            ),
            Figure(
                f"write_bulk_slowdown{suffix}",
                "writers",
                f"one UPDATE of the content of 20,000 rows: time with {name} ÷ without",
                bulk,
                Bound.AT_MOST,
            ),
        ]
    return figures


def _peers() -> list[Figure]:
    torch = "torch, same threads"
    compared = (
        ("cocoindex", torch, "CocoIndex", 1.5),
        ("pgai", torch, "pgai", 1.5),
        ("pgai_tuned", torch, "pgai with 256 rows a batch", None),
        ("pixeltable", torch, "Pixeltable", 1.5),
        ("cocoindex_default", "defaults on both sides", "CocoIndex", 3.0),
        ("pgai_default", "defaults on both sides", "pgai", 3.0),
        ("pixeltable_default", "defaults on both sides", "Pixeltable", 3.0),
    )
    return [
        Figure(
            f"ratio_to_{name}",
            "peers",
            f"1,500 real texts from start to last vector, all-MiniLM-L6-v2, {terms}: time of {peer} ÷ evervec's",
            asked,
        )
        for name, terms, peer, asked in compared
    ]


_AUTO = "mixed texts, the encoder with EVERVEC_BACKEND=auto ÷ torch float32"

FIGURES: tuple[Figure, ...] = (
    Figure(
        "backfill_ratio_minilm",
        "backfill_minilm",
        "items/s from re-fire to empty outbox ÷ one bare encode of the same texts, all-MiniLM-L6-v2 on torch",
        0.95,
    ),
    Figure(
        "backfill_ratio_bundled",
        "backfill_bundled",
        "the same with bundled:use-multilingual-v3",
        0.85,
    ),
    Figure(
        "stub_ratio_to_bare_write",
        "stub",
        "stub:768, 100,000 rows: items/s from re-fire to empty outbox ÷ a bare batched write-back",
        0.35,
    ),
    Figure("stub_items_per_s", "stub", "items/s of the same"),
    Figure(
        "events_per_item_sweep",
        "stub",
        "events in all workflow histories of the same ÷ rows",
        0.1,
        Bound.AT_MOST,
    ),
    Figure("auto_speedup_minilm", "auto_minilm", f"all-MiniLM-L6-v2, {_AUTO}: texts/s", 2.2),
    Figure("auto_min_cosine_minilm", "auto_minilm", f"all-MiniLM-L6-v2, {_AUTO}: least cosine", 0.999),
    Figure("auto_speedup_minilm_35_words", "auto_minilm", "all-MiniLM-L6-v2, texts of about 35 words: texts/s"),
    Figure("auto_speedup_mpnet", "auto_mpnet", f"all-mpnet-base-v2, {_AUTO}: texts/s", 2.2),
    Figure("auto_min_cosine_mpnet", "auto_mpnet", f"all-mpnet-base-v2, {_AUTO}: least cosine", 0.999),
    Figure("auto_speedup_mpnet_35_words", "auto_mpnet", "all-mpnet-base-v2, texts of about 35 words: texts/s"),
    Figure(
        "latency_ratio_to_bare",
        "latency",
        "commit to vector less the 20 ms of debounce ÷ (a bare workflow's signal to activity + bare encode of one text "
        "+ bare one-row write-back), medians, bundled model",
        1.5,
        Bound.AT_MOST,
    ),
    Figure("latency_idle_p50_ms", "latency", "commit to vector visible, isolated edits, median"),
    Figure("latency_idle_p95_ms", "latency", "the same, 95th percentile"),
    Figure("latency_idle_p95_to_p50", "latency", "95th percentile ÷ median", 2.5, Bound.AT_MOST),
    Figure("latency_busy_p95_ms", "latency", "the same with a backfill of 20,000 rows running"),
    Figure("latency_busy_to_idle", "latency", "95th percentiles, with a backfill ÷ without", 4.0, Bound.AT_MOST),
    Figure("events_per_item_live", "latency", "events in an item's workflow history for each of these edits"),
    *_writers(),
    Figure(
        "embeddings_for_noop_edits",
        "noop",
        "texts encoded and rows rewritten for 1,000 edits of other columns and 1,000 edits that are reverted at once",
        0,
        Bound.AT_MOST,
    ),
    Figure(
        "lock_user_slowest_ms",
        "lock",
        "a transaction holds its row for 30 s: its own slowest statement",
        100,
        Bound.AT_MOST,
    ),
    Figure(
        "lock_others_p95_idle",
        "lock",
        "edits of other rows meanwhile: p95 ÷ p95 without the lock, nothing else going on",
        2.0,
        Bound.AT_MOST,
    ),
    Figure(
        "lock_others_p95_busy",
        "lock",
        "the same while everything is embedded anew all the time, with the lock and without",
        2.0,
        Bound.AT_MOST,
    ),
    Figure("lock_embedded_after_s", "lock", "from its commit until its row has its vector", 10, Bound.AT_MOST),
    Figure("cost_ratio_1m_to_10k", "scale", "stub:768, time an item at 1,000,000 rows ÷ at 10,000", 1.2, Bound.AT_MOST),
    Figure("listener_peak_mb", "scale", "peak memory of the listener at 1,000,000 rows", 250, Bound.AT_MOST),
    Figure("worker_peak_mb", "scale", "peak memory of the worker (no model) at 1,000,000 rows", 250, Bound.AT_MOST),
    Figure("status_ms_million", "scale", "evervec.status of the source of 1,000,000 rows", 300, Bound.AT_MOST),
    *_peers(),
)


def keys_of(measurement: str) -> tuple[str, ...]:
    """The figures that a measurement makes."""
    return tuple(figure.key for figure in FIGURES if figure.measurement == measurement)
