"""A command ends when it is done, whatever Temporal's client is still about."""

import subprocess
import sys

ENDS_WITH_CALLS_UNDER_WAY = """
import asyncio, atexit, sys
from temporalio.client import Client
from cli.processes import exit_without_teardown

async def main():
    client = await Client.connect(sys.argv[1])
    calls = [asyncio.create_task(client.count_workflows()) for _ in range(20)]
    await asyncio.sleep(0.002)

def action():
    atexit.register(print, "left in order")
    asyncio.run(main())
    return 7

exit_without_teardown(action)
"""


def test_calls_under_way_neither_abort_nor_hang_a_process_that_exits(temporal_address: str) -> None:
    for _ in range(5):
        ended = subprocess.run(
            [sys.executable, "-c", ENDS_WITH_CALLS_UNDER_WAY, temporal_address],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert (ended.returncode, ended.stdout) == (7, "left in order\n"), ended.stderr
