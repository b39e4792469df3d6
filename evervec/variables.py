"""The environment variables that evervec reads, taken from the settings themselves."""

from typing import NamedTuple

from pydantic import AliasChoices
from pydantic_core import PydanticUndefined

from evervec.settings import Settings


class Variable(NamedTuple):
    """An environment variable: its name, other names it goes by, its default and its meaning."""

    name: str
    aliases: tuple[str, ...]
    default: str | None
    description: str


def variables() -> list[Variable]:
    """Every variable that evervec reads, in the order of the settings."""
    found = []
    for field_name, field in Settings.model_fields.items():
        alias = field.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
        name, *aliases = names or [f"EVERVEC_{field_name.upper()}"]
        default = None if field.default in {None, PydanticUndefined} else str(field.default)
        found.append(Variable(name, tuple(aliases), default, field.description or ""))
    return found
