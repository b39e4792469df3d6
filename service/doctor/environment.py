"""The environment of this process: misspelt variables, a folder that cannot be written."""

import difflib
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from evervec.settings import Settings
from evervec.variables import variables
from service.doctor.check import Check, fault, fine

PREFIX = "EVERVEC_"
# Not settings, but names that evervec's own files use, or that Kubernetes makes of services' names.
_OTHERS = re.compile(
    r"EVERVEC_(DASHBOARD_URL|POSTGRES_PASSWORD|TEST_\w+|(\w+_)?SERVICE_(HOST|PORT\w*)|(\w+_)?PORT(_\d+_\w+)?)"
)


def check_environment(environment: Mapping[str, str]) -> Iterator[Check]:
    """Variables with evervec's prefix that nothing reads."""
    known = [variable.name for variable in variables()]
    unknown = [
        name
        for name in sorted(environment)
        if name.startswith(PREFIX) and name not in known and not _OTHERS.fullmatch(name)
    ]
    if not unknown:
        yield fine("environment", "every EVERVEC_ variable is a setting")
    for name in unknown:
        # Without the prefix, which would make all names alike.
        meant = difflib.get_close_matches(
            name.removeprefix(PREFIX), [each.removeprefix(PREFIX) for each in known], n=1, cutoff=0.7
        )
        yield fault(
            "environment",
            f"{name} is no setting: nothing reads it",
            f"did you mean {PREFIX}{meant[0]}?" if meant else "remove it; `evervec --help` lists the settings",
        )


def check_model_cache(settings: Settings) -> Check:
    """Whether models can be kept where the settings say."""
    folder = settings.model_cache
    if folder is None:
        return fine("model cache", "EVERVEC_MODEL_CACHE is not set: the libraries keep models in their own folders")
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            return fine("model cache", f"{folder} can be written")
    except OSError as error:
        return fault(
            "model cache",
            f"{folder} cannot be written: {error.strerror}",
            "give this process's user the folder, or set EVERVEC_MODEL_CACHE to another one",
        )


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there, in which it would be made."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
