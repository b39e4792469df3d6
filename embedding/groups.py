"""How the texts of a step are split into forward passes."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from embedding.base import Vectors

GROUP_TOKENS = 512
"""Tokens of a pass, about. More are no faster on a CPU's caches, and a pass over texts of one length pads nothing."""
SPLIT_TOKENS = 64
"""What is less is not worth a thread of its own."""


def plan_groups(lengths: Sequence[int], streams: int) -> list[list[int]]:
    """Numbers of the texts of each pass, by their lengths in tokens: similar ones together, passes of about equal cost.

    The number of passes is a multiple of the streams that compute side by side, so that none waits long for another.
    """
    total = sum(lengths)
    rounds = max(1, round(total / (GROUP_TOKENS * streams)))
    share = total / (rounds * max(1, min(streams, total // SPLIT_TOKENS)))
    groups: list[list[int]] = []
    padded = 0.0
    for number in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not groups or padded + lengths[groups[-1][0]] / 2 > share:
            groups.append([])
            padded = 0.0
        groups[-1].append(number)
        padded += lengths[groups[-1][0]]
    return groups


def compute_groups(
    lengths: Sequence[int], streams: int, threads: Executor, encode: Callable[[list[int]], Vectors]
) -> Vectors:
    """The vectors of all texts in their order: each pass by its numbers, several side by side."""
    groups = plan_groups(lengths, streams)
    found = np.concatenate([encode(groups[0])] if len(groups) == 1 else list(threads.map(encode, groups)))
    vectors = np.empty_like(found)
    vectors[np.concatenate(groups)] = found
    return vectors
