"""What the C library does with memory that is given back."""

import ctypes
from contextlib import suppress

M_ARENA_MAX = -8
"""glibc's number of the option."""
ARENAS = 2


def limit_arenas() -> None:
    """Have all threads share a few heaps. To be called before there are threads; without glibc nothing happens.

    By default glibc gives each new thread a heap of its own, up to eight a core, and what a thread has once used in its
    heap is lost to the others: memory grows for as long as work wanders from thread to thread.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
