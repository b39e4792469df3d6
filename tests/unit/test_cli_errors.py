import pytest
import typer

from cli.errors import exit_code_of
from cli.reference import environment_help
from evervec.errors import ConfigurationError, DatabaseError, EvervecError, ServiceUnreachableError
from evervec.settings import Settings
from evervec.variables import variables


def failing(error: BaseException) -> object:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigurationError("that cannot work"), 2, "evervec: that cannot work"),
        (DatabaseError("refused"), 2, "evervec: refused"),
        (ServiceUnreachableError("two\nlines"), 3, "evervec: two lines"),
        (EvervecError(), 1, "evervec: evervec cannot go on."),
        (typer.BadParameter("no number"), 2, "evervec: Invalid value: no number (--help tells more)"),
        (KeyboardInterrupt(), 130, "evervec: interrupted"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(lambda: failing(error)) == code
    captured = capsys.readouterr()
    assert captured.err == f"{line}\n"
    assert captured.out == ""


def test_an_unexpected_error_keeps_its_text_to_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVERVEC_LOG_LEVEL", raising=False)
    assert exit_code_of(lambda: failing(KeyError("canary"))) == 1
    told = capsys.readouterr().err
    assert "KeyError" in told
    assert "canary" not in told
    assert "EVERVEC_LOG_LEVEL=DEBUG" in told


def test_debug_shows_where_an_unexpected_error_comes_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVERVEC_LOG_LEVEL", "DEBUG")
    assert exit_code_of(lambda: failing(KeyError("canary"))) == 1
    assert "in failing" in capsys.readouterr().err


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (2, 2)])
def test_a_command_chooses_its_code(result: object, code: int) -> None:
    assert exit_code_of(lambda: result) == code


def test_the_help_names_every_setting() -> None:
    named = {variable.name for variable in variables()}
    assert named == {f"EVERVEC_{name.upper()}" for name in Settings.model_fields}
    text = environment_help()
    assert all(name in text for name in (*named, "SENTENCE_TRANSFORMER_MODEL", "EMBEDDING_DIMENSION"))
