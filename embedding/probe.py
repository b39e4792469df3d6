"""Texts on which two ways to compute a model are compared: their vectors, and their speed."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from embedding.base import Vectors

Encode: TypeAlias = Callable[[Sequence[str]], Vectors]
Clock: TypeAlias = Callable[[], float]
"""Seconds, from whenever."""

MINIMUM_COSINE = 1 - 0.001 / 6
"""On the probe. Every vector shall have a cosine of 0.999, which keeps the order of nearly all search results; but
among thousands of texts there are some that are six times as far off as the worst of these few (all-mpnet-base-v2 in
bfloat16 on OpenVINO: 0.99976 here, 0.9985 among the benchmark's). A backend below this is not used."""
PROBE_SECONDS = 2.0
"""How long the reference may take: a large model is compared on fewer texts."""

_LONG = "The drill comes with a case, three bits and a charger; please bring it back clean and by Sunday evening. "

PROBE: tuple[tuple[str, ...], ...] = (
    (
        _LONG * 40,
        "ok",
        "ΑΒΓ αβγ, ένα ποδήλατο",
        "https://example.org/items/42?view=full#photos",
        "!!! ??? ... --- ***",
        "Kinderfahrrad, 20 Zoll, rot, kleiner Kratzer am Rahmen, sonst gut; Preis 45 € oder Tausch gegen ein Regal",
        "안녕하세요, 우산을 빌릴 수 있을까요?",
        "return [row for row in rows if row.price is not None]  # nothing else",
    ),
    (
        "Schlagbohrmaschine mit Koffer, am Wochenende zu verleihen",
        "Hammer drill in its case, to borrow at the weekend",
        "x",
        "Äpfel aus dem eigenen Garten, ungespritzt, Abholung ab 17:30 Uhr 🍎🍏",
        "東京の古い本屋で働いています。",
        "1234567890 3.14159 2026-11-22 +49 30 123456",
        _LONG * 4,
        "Где находится ближайшая библиотека?",
    ),
    (
        "أبحث عن دراجة أطفال مستعملة",
        "Ein längerer Satz von einer Nachbarschaft, in der niemand eine Leiter besitzen muss, um eine zu haben.",
        "SELECT count(*) FROM items WHERE price < 10.50 AND name ILIKE '%lamp%';",
        "😀 🚲 👩‍🔧",
        "",
        "नमस्ते, क्या यह मेज़ अभी उपलब्ध है?",
        "Donaudampfschifffahrtsgesellschaftskapitänsmütze",
        "The quick repair of a slow kettle: open the base, clean the contacts, close it, and try again twice.",
    ),
    (
        "Zwei Karten für das Konzert am Samstag. " * 30,
        "A lamp. A lamp? A lamp!",
        "Ça coûte 12,50 €, l'été dernier c'était moins cher.",
        "日本語とEnglishとDeutschの混ざった文。",
        "tell me where the ladder is",
        "0",
        "Werkzeug, Leitern, Anhänger und ein Zelt für sechs Personen stehen im Schuppen hinter dem Haus Nummer 7.",
        "tiếng Việt có nhiều dấu",
    ),
)
"""In groups, the most telling one first; the long ones are beyond any model's limit or near it."""


class Measurement(NamedTuple):
    """One way's vectors of the probe, how many texts it did in a second of its clock, and how many groups in all."""

    vectors: Vectors
    texts_per_second: float
    groups: int


def clock_of(device: str) -> Clock:
    """What tells how fast a way is on this device.

    On a CPU the time that this process computes: the choice is kept, and what others happen to compute meanwhile must
    not decide it.
    """
    return time.process_time if device == "cpu" else time.perf_counter


def measure(encode: Encode, clock: Clock, groups: int = len(PROBE), seconds: float = PROBE_SECONDS) -> Measurement:
    """Embed the first groups of the probe; none begins after so many seconds, on a busy machine of the clock."""
    encode(PROBE[0][:1])  # what is slow only the first time
    found: list[Vectors] = []
    started, began = clock(), time.perf_counter()
    for texts in PROBE[:groups]:
        found.append(encode(texts))
        if min(clock() - started, time.perf_counter() - began) > seconds:
            break
    return Measurement(np.concatenate(found), sum(map(len, found)) / (clock() - started), len(found))


def minimum_cosine(left: Vectors, right: Vectors) -> float:
    """Of the rows that both have, the least cosine; both are of length 1. NaN, which passes nothing, is kept."""
    rows = min(len(left), len(right))
    return float(np.einsum("ij,ij->i", left[:rows].astype(np.float64), right[:rows].astype(np.float64)).min())
