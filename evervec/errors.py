"""Every error that evervec raises on purpose, in one tree.

    EvervecError
    ├── ConfigurationError        exit 2: a setting, an argument or an environment that cannot work
    │   ├── SourceNotFoundError   exit 2: no such source
    │   ├── ItemNotFoundError     exit 2: no such key
    │   ├── ModelUnavailableError exit 2: the model is neither installed, cached nor reachable
    │   └── DimensionError        exit 2: the model's dimension is not the source's
    ├── DatabaseError             exit 2: the database refused, and says why
    ├── ServiceUnreachableError   exit 3: PostgreSQL or Temporal does not answer
    └── BadItemError              one item that cannot be embedded; only that item suffers

The docstring of a class is its default message. A message says what to do next.
"""


class EvervecError(Exception):
    """evervec cannot go on."""

    exit_code = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigurationError(EvervecError):
    """The configuration cannot work."""

    exit_code = 2


class SourceNotFoundError(ConfigurationError):
    """There is no such source: `evervec status` lists them, `evervec watch` adds one."""

    def __init__(self, source: str | None = None) -> None:
        super().__init__(
            f"no source named {source!r}: `evervec status` lists them, `evervec watch` adds one" if source else None
        )


class ItemNotFoundError(ConfigurationError):
    """There is no item with this key."""


class ModelUnavailableError(ConfigurationError):
    """The model cannot be loaded: install or download it, or name another with EVERVEC_MODEL."""


class DimensionError(ConfigurationError):
    """The model's vectors do not fit the source's column: call `evervec watch` again with --dimension."""


class DatabaseError(EvervecError):
    """The database refused."""

    exit_code = 2

    def __init__(self, message: str | None = None, *, sqlstate: str | None = None) -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class ServiceUnreachableError(EvervecError):
    """A service does not answer."""

    exit_code = 3


class BadItemError(EvervecError):
    """This item cannot be embedded."""
