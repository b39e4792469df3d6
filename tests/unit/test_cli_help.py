"""The help: an example of each command that could be typed as it stands, and nothing wider than 80 columns."""

import json
import shlex
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
import typer

from cli.commands.doctor import doctor
from cli.examples import EXAMPLES
from cli.main import app

COLUMNS = 80
COMMANDS = [str(command.callback.__name__) for command in app.registered_commands if command.callback]


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    """What each command says of itself on 80 columns, and all of them together under an empty name."""
    program = (
        "import io, json, sys; from contextlib import redirect_stdout; from cli.main import app\n"
        "told = {}\n"
        "for name in ['', *sys.argv[1:]]:\n"
        "    with redirect_stdout(io.StringIO()) as out:\n"
        "        app([*([name] if name else []), '--help'], prog_name='evervec', standalone_mode=False)\n"
        "    told[name] = out.getvalue()\n"
        "print(json.dumps(told))"
    )
    environment = {"COLUMNS": str(COLUMNS), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])}
    output = subprocess.check_output([sys.executable, "-c", program, *COMMANDS], text=True, env=environment)
    told: dict[str, str] = json.loads(output)
    return told


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_help_fits_into_80_columns(helps: dict[str, str], command: str) -> None:
    lines = helps[command].splitlines()
    assert len(lines) > 10
    assert max(map(len, lines)) <= COLUMNS


@pytest.mark.parametrize("command", COMMANDS)
def test_each_example_stands_in_the_help_on_one_line(helps: dict[str, str], command: str) -> None:
    shown = [line.strip() for line in helps[command].splitlines()]
    for line, meaning in EXAMPLES[command]:
        assert f"# {meaning}" in shown
        assert line in shown


def test_there_are_examples_of_all_commands_and_no_others() -> None:
    assert {*EXAMPLES} == {*COMMANDS}
    assert all(EXAMPLES.values())


@pytest.mark.parametrize("line", [line for lines in EXAMPLES.values() for line, _ in lines])
def test_an_example_can_be_typed_as_it_stands(line: str) -> None:
    words = [*takewhile(lambda word: word != "|", shlex.split(line))]
    while "=" in words[0]:
        words = words[1:]
    program, name, *arguments = words
    assert program == "evervec"
    group = typer.main.get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    # Raises what the user would be told.
    command.make_context(name, arguments)


def test_what_reads_takes_json() -> None:
    reading = {"status", "item", "failures", "search", "verify", "backfill", "regenerate", "watch", doctor.__name__}
    group = typer.main.get_command(app)
    taking = {
        name
        for name, command in group.commands.items()  # type: ignore[attr-defined]
        if any("--json" in parameter.opts for parameter in command.params)
    }
    assert taking == reading
