"""How a service's process ends when it is told to."""

import signal
import subprocess
import sys

import pytest

STUBBORN = """
import asyncio
from cli.processes import run_until_stopped

async def stubborn() -> None:
    print("ready", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("asked", flush=True)

run_until_stopped(stubborn(), within=0.5)
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_service_that_cannot_stop_ends_all_the_same(how: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(how)
        out, err = process.communicate(timeout=60)
    assert (out.splitlines()[0], process.returncode) == (b"asked", 0)
    assert b"ended without an orderly stop" in out + err


@pytest.mark.parametrize(
    ("action", "code"), [("lambda: 3", 3), ("lambda: 1 / 0", 1), ("lambda: sys.stdout.close() or 0", 0)]
)
def test_the_exit_code_is_the_actions(action: str, code: int) -> None:
    program = f"import sys; from cli.processes import exit_without_teardown; exit_without_teardown({action})"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == code
