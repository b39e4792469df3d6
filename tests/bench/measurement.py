"""What every measurement gets and gives, and how two things are compared."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TypeAlias

import numpy as np

from cli.stack.child import Say
from tests.bench.pipeline import Servers
from tests.bench.plan import Plan

Side: TypeAlias = Callable[[], Awaitable[float]]


@dataclass(frozen=True)
class Bench:
    """What a measurement works with."""

    servers: Servers
    plan: Plan
    say: Say


@dataclass
class Outcome:
    """What a measurement found."""

    figures: dict[str, float] = field(default_factory=dict)
    repetitions: dict[str, list[float]] = field(default_factory=dict)
    """What the figures are made of, for whoever wants to look closer."""


Measurement: TypeAlias = Callable[[Bench], Awaitable[Outcome]]


async def interleaved(bench: Bench, **sides: Side) -> dict[str, list[float]]:
    """Each side once, again and again: what disturbs the machine for a while disturbs all of them."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(bench.plan.repetitions):
        for name, side in sides.items():
            found[name].append(await side())
        said = ", ".join(f"{name} {values[-1]:,.2f}" for name, values in found.items())
        bench.say(f"  {repetition + 1} of {bench.plan.repetitions}: {said}")
    return found


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """The one's median ÷ the other's."""
    return median(over) / median(under)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent are below."""
    return float(np.percentile(values, percent))
