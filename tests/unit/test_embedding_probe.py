"""The probe measures a way to compute, not how busy the machine is."""

import time
from collections.abc import Sequence

import numpy as np

from embedding.base import Vectors
from embedding.probe import PROBE, clock_of, measure

WAITED, SECONDS = 0.2, 0.1
"""Of a group, and after which no other begins: what another thread of this process computes meanwhile is less."""


def encode_waiting(texts: Sequence[str]) -> Vectors:
    """As when other processes have the cores: time passes, and nothing is computed."""
    time.sleep(WAITED)
    return np.ones((len(texts), 1), dtype=np.float32)


def test_a_busy_machine_makes_no_way_look_slow_and_the_probe_no_shorter() -> None:
    found = measure(encode_waiting, clock_of("cpu"), seconds=SECONDS)
    assert found.groups == len(PROBE)
    assert len(found.vectors) == sum(map(len, PROBE))
    by_the_wall = sum(map(len, PROBE)) / (WAITED * len(PROBE))
    assert found.texts_per_second > 2 * by_the_wall


def test_on_a_gpu_the_time_that_passes_counts() -> None:
    found = measure(encode_waiting, clock_of("cuda"), seconds=SECONDS)
    assert found.groups == 1
    assert found.texts_per_second <= len(PROBE[0]) / WAITED


def test_no_group_begins_after_so_many_seconds_of_computing() -> None:
    def encode_computing(texts: Sequence[str]) -> Vectors:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return np.ones((len(texts), 1), dtype=np.float32)

    assert measure(encode_computing, clock_of("cpu"), seconds=0.02).groups == 1
