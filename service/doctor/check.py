"""What a check found."""

from typing import NamedTuple


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str
    remedy: str | None = None
    """What to do. With ok it is advice: nothing is wrong, but it could be better."""
    source: str | None = None
    """The source that it is about; None: the set-up as a whole."""


def fine(name: str, detail: str, *, source: str | None = None) -> Check:
    """Nothing is wrong."""
    return Check(name, True, detail, None, source)


def advice(name: str, detail: str, remedy: str, *, source: str | None = None) -> Check:
    """Nothing is wrong, but it could be better, or somebody may have forgotten something."""
    return Check(name, True, detail, remedy, source)


def fault(name: str, detail: str, remedy: str, *, source: str | None = None) -> Check:
    """Something is wrong."""
    return Check(name, False, detail, remedy, source)
