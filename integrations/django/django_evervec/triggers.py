"""triggers.sql, the database contract: packed into what is installed; in the repository, that of the repository."""

import re
from pathlib import Path

PACKED = Path(__file__).with_name("triggers.sql")
IN_REPOSITORY = Path(__file__).parents[3] / "db" / "triggers.sql"


def path() -> Path:
    """Where the file is."""
    return PACKED if PACKED.exists() else IN_REPOSITORY


def sql() -> str:
    """The file, to be run as a whole."""
    return path().read_text(encoding="utf-8")


def version() -> int:
    """The schema's version that the file makes."""
    found = re.search(r"INSERT INTO evervec\.instance \(schema_version\) VALUES \((\d+)\)", sql())
    if not found:
        raise ValueError(f"{path()} names no version")
    return int(found[1])


def sql_for_a_transaction() -> str:
    """The same for a transaction that is open already and has settings of its own, as a migration's.

    Without BEGIN and COMMIT, and with the settings that it changes as they were.
    """
    before, begin, rest = sql().partition("\nBEGIN;\n")
    body, commit, after = rest.rpartition("\nCOMMIT;\n")
    if not (begin and commit) or after.strip():
        raise ValueError(f"{path()} is not one transaction")
    return "\n".join([before, _SAVE, body, _RESTORE])


_SETTINGS = ("search_path", "client_min_messages", "role")
_SAVE = "".join(f"SELECT set_config('evervec.former_{name}', current_setting('{name}'), true);\n" for name in _SETTINGS)
_RESTORE = "".join(
    f"SELECT set_config('{name}', current_setting('evervec.former_{name}'), true);\n" for name in _SETTINGS
)
