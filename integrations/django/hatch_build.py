"""Puts evervec's SQL into the package: the repository has it once, in db/."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class TriggersHook(BuildHookInterface):
    """Adds triggers.sql to what is built from the repository; a source distribution has it inside already."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the file and where it goes; an editable installation finds it in the repository."""
        triggers = Path(self.root).parents[1] / "db" / "triggers.sql"
        if version != "editable" and triggers.exists():
            build_data["force_include"][str(triggers)] = "django_evervec/triggers.sql"
