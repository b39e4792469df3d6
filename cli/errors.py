"""From an error to one clear line on stderr and an exit code."""

import os
import traceback
from collections.abc import Callable

import typer
from rich.console import Console

from evervec.errors import ConfigurationError, EvervecError
from evervec.log import describe_error

INTERRUPTED = 130


def exit_code_of(action: Callable[[], object]) -> int:
    """Run a command: 0 or the code that it asks for; an error is told in one line and becomes its exit code."""
    try:
        result = action()
    except EvervecError as error:
        return _tell(str(error), error.exit_code)
    except typer.TyperException as error:
        return _tell(f"{error.format_message()} (--help tells more)", error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return _tell("interrupted", INTERRUPTED)
    except SystemExit as exited:  # how Typer ends when a shell asks it for completions
        return exited.code if isinstance(exited.code, int) else int(exited.code is not None)
    except Exception as error:  # noqa: BLE001 - whatever it is, the user gets one line and an exit code
        return _tell_unexpected(error)
    return result if isinstance(result, int) else 0


def _tell_unexpected(error: Exception) -> int:
    if isinstance(error, UnicodeEncodeError) and error.reason == "surrogates not allowed":
        # Python's way to keep bytes that are no text; neither PostgreSQL nor a model takes them.
        return _tell("an argument or a variable of the environment is no UTF-8", ConfigurationError.exit_code)
    # Not the message: that of a database error quotes the row.
    hint = "EVERVEC_LOG_LEVEL=DEBUG shows where it comes from"
    if os.environ.get("EVERVEC_LOG_LEVEL") == "DEBUG":
        traceback.print_exception(error)
        hint = "see above"
    return _tell(f"unexpected {describe_error(error)}, which is a bug of evervec ({hint})", 1)


def _tell(message: str, code: int) -> int:
    line = " ".join(message.split())
    Console(stderr=True).print(f"evervec: {line}", markup=False, highlight=False, soft_wrap=True)
    return code
