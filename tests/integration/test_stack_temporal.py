"""The local Temporal server, when it does not start at once."""

from pathlib import Path

import pytest
from temporalio.client import Client

from cli.stack import temporal
from cli.stack.temporal import PORT_ATTEMPTS, TemporalServer
from evervec.errors import ServiceUnreachableError

PANIC = "panic: failed assigning ephemeral port: connect: cannot assign requested address"
STARTS = """#!/bin/sh
echo >> {starts}
[ $(wc -l < {starts}) -gt {failures} ] && exec {binary} "$@"
echo "{said}"
yes "	some/package.Function(...)" | head -n 120
exit 2
"""


def starts(folder: Path, monkeypatch: pytest.MonkeyPatch, *, failures: int, said: str) -> Path:
    """The server ends so many times before it starts. Returns a file with a line for each start."""
    program, count = folder / "temporal", folder / "starts"
    program.write_text(STARTS.format(starts=count, failures=failures, binary=temporal._binary(), said=said))
    program.chmod(0o755)
    monkeypatch.setattr(temporal, "_binary", lambda: str(program))
    return count


async def test_it_is_started_again_when_it_finds_no_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = starts(tmp_path, monkeypatch, failures=2, said=PANIC)
    server = TemporalServer(tmp_path / "temporal.db")
    await server.start()
    try:
        assert await Client.connect(server.address)
    finally:
        await server.stop()
    assert len(count.read_text().splitlines()) == 3


@pytest.mark.parametrize(("said", "tries"), [(PANIC, PORT_ATTEMPTS), ("panic: no such disk", 1)])
async def test_what_it_says_when_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, tries: int
) -> None:
    count = starts(tmp_path, monkeypatch, failures=PORT_ATTEMPTS, said=said)
    (tmp_path / "temporal.log").write_text(f"{PANIC}, some days ago\n")
    with pytest.raises(ServiceUnreachableError, match=f"Temporal does not start: {said} .see"):
        await TemporalServer(tmp_path / "temporal.db").start()
    assert len(count.read_text().splitlines()) == tries
