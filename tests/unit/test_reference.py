"""The settings, the command line's help and the docs say the same."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.main import app
from evervec.variables import Variable, variables

DOCS = Path(__file__).parents[2] / "docs"


def documented() -> dict[str, str]:
    """The rows of the table in configuration.md, by the first variable they name."""
    rows = re.findall(r"^\| `(\w+)`.*$", text := (DOCS / "configuration.md").read_text(encoding="utf-8"), re.MULTILINE)
    return {name: next(line for line in text.splitlines() if line.startswith(f"| `{name}`")) for name in rows}


def test_docs_know_the_same_settings() -> None:
    assert list(documented()) == [variable.name for variable in variables()]


@pytest.mark.parametrize("variable", variables(), ids=lambda variable: variable.name)
def test_a_setting_is_described_alike(variable: Variable) -> None:
    row = documented()[variable.name]
    assert variable.description in row
    assert all(f"`{alias}`" in row for alias in variable.aliases)
    assert variable.default is None or f"`{variable.default}`" in row


def test_help_names_every_setting() -> None:
    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert [variable.name for variable in variables() if variable.name not in shown] == []


@pytest.mark.parametrize("command", app.registered_commands, ids=lambda command: command.callback.__name__)
def test_every_command_is_in_the_reference(command: object) -> None:
    name = command.callback.__name__  # type: ignore[attr-defined]
    assert f"`{name}" in (DOCS / "cli.md").read_text(encoding="utf-8")


PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_are_there(page: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for line in re.findall(r"`evervec ([^`]*)`", page.read_text(encoding="utf-8")):
        name, *words = line.split()
        if name.startswith(("-", "COMMAND", "…")):
            continue
        known = {option for parameter in commands[name].params for option in parameter.opts} | {"--help"}
        assert {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_in_the_docs_are_there(page: Path) -> None:
    for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target
