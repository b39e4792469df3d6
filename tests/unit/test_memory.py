"""Threads share a few heaps of the C library's."""

import platform
import subprocess
import sys

import pytest

THREADS = """
import ctypes, sys, threading
from evervec.memory import limit_arenas

if sys.argv[1] == "limited":
    limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
together = threading.Barrier(8)

def use() -> None:
    libc.malloc(1000)
    together.wait()

threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other heaps")
def test_threads_share_two_heaps() -> None:
    assert heaps("limited") == 2
    assert heaps("as it is") > 2


def heaps(how: str) -> int:
    """How many heaps eight threads use that are there at the same time."""
    ended = subprocess.run([sys.executable, "-c", THREADS, how], capture_output=True, text=True, check=True)
    return ended.stderr.count("Arena")
