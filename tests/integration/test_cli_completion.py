"""What the shell completes: asked as bash asks, by the script that the command itself gives it."""

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from tests.integration.pipeline import Site
from tests.integration.program import clean_environment

BASH = shutil.which("bash")
PROGRAM = Path(sys.executable).with_name("evervec")
ATTEMPTS = 5
ASK = """
eval "$("$0" --show-completion bash)"
COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
[ "${1: -1}" = " " ] && COMP_WORDS+=("") && COMP_CWORD=$((COMP_CWORD + 1))
_evervec_completion "$0"
printf '%s\\n' "${COMPREPLY[@]}"
"""

pytestmark = pytest.mark.skipif(BASH is None, reason="no bash")


async def completed(line: str, database: str) -> list[str]:
    """What bash offers for the end of the line; nothing else may be written."""
    process = await asyncio.create_subprocess_exec(
        *(str(BASH), "--norc", "-c", ASK, str(PROGRAM), line),
        env=clean_environment(EVERVEC_DATABASE_URL=database, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, err = await process.communicate()
    assert err == b""
    return out.decode().split()


async def test_commands_options_and_sources(database: str, temporal_address: str) -> None:
    async with Site.open(database, temporal_address) as site:
        for name in ("items", "things", "thoughts"):
            await site.run(f"CREATE TABLE {name} (id int PRIMARY KEY, name text)")
            await site.run(f"SELECT evervec.watch('{name}', '{{name}}', model => 'stub:8')")
        assert await completed("evervec fai", database) == ["failures"]
        assert await completed("evervec backfill items --wh", database) == ["--where"]
        for line, names in {
            "evervec status ": ["items", "things", "thoughts"],
            "evervec item th": ["things", "thoughts"],
            "evervec pause thi": ["things"],
        }.items():
            # Where the machine is busy the database may not have told them in time; then nothing is completed.
            offered = [await completed(line, database)]
            while not offered[-1] and len(offered) < ATTEMPTS:
                offered.append(await completed(line, database))
            assert offered[-1] == names


async def test_nothing_without_a_database() -> None:
    for address in ("postgresql://127.0.0.1:1/db", "no address", ""):
        assert await completed("evervec status ", address) == []
