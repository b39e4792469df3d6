"""What can go wrong, each with one line that says what to do.

EvervecError
├── NotInstalledError
├── NotWatchedError
├── ReadOnlyFieldError (also a django.core.exceptions.FieldError)
├── EmbedderUnavailableError
├── QueryError
└── TemporalError
    └── WorkflowNotFoundError
"""

from django.core.exceptions import FieldError


class EvervecError(Exception):
    """Base of all errors of this package."""


class NotInstalledError(EvervecError):
    """The database has no schema evervec, or an older one."""


class NotWatchedError(EvervecError):
    """No source belongs to the model's table, or more than one does."""


class ReadOnlyFieldError(EvervecError, FieldError):
    """A statement would write a column that evervec alone writes."""


class EmbedderUnavailableError(EvervecError):
    """Nothing here can embed a query."""


class QueryError(EvervecError, ValueError):
    """The text cannot be searched for."""


class TemporalError(EvervecError):
    """Temporal does not answer, or refuses."""


class WorkflowNotFoundError(TemporalError):
    """There is no such workflow."""
