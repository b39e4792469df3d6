"""The settings: Django's, else the environment variable of the same name, else a default.

The names are those of evervec's own configuration, so that the file `env` of `evervec up` is enough.
"""

import os

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

DEFAULT_DIMENSION = 768

ALIASES = {"EVERVEC_MODEL": "SENTENCE_TRANSFORMER_MODEL", "EVERVEC_DIMENSION": "EMBEDDING_DIMENSION"}

DEFAULTS = {
    "EVERVEC_TEMPORAL_ADDRESS": "127.0.0.1:7233",
    "EVERVEC_TEMPORAL_NAMESPACE": "default",
    "EVERVEC_TASK_QUEUE": "evervec",
    "EVERVEC_SWEEP_THRESHOLD": "64",
    "EVERVEC_ITEM_IDLE_SECONDS": "3600",
    "EVERVEC_DASHBOARD_TIMEOUT": "30",
}


def text(name: str) -> str | None:
    """A setting as text; None when it is set nowhere, or empty."""
    for known in (name, ALIASES.get(name, name)):
        value = getattr(settings, known, None) or os.environ.get(known)
        if value:
            return str(value)
    return DEFAULTS.get(name)


def number(name: str) -> float | None:
    """A setting as a number."""
    value = text(name)
    try:
        return None if value is None else float(value)
    except ValueError:
        raise ImproperlyConfigured(f"{name} is not a number: {value!r}") from None


def dimension() -> int:
    """How long vectors are where a model does not say it."""
    return int(number("EVERVEC_DIMENSION") or DEFAULT_DIMENSION)
