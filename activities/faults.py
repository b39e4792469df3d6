"""Whose fault an error is: an item's, which is counted, or nobody's, which is waited out."""

from evervec.errors import BadItemError, EvervecError
from evervec.log import describe_error

ITEM_AT_FAULT = ("22", "23", "P0")
"""Classes of SQLSTATE that blame the row: data exception, integrity violation, an exception of a user's trigger."""


def encoder_blames_item(error: Exception) -> bool:
    """Whether an error of the encoder's is the text's."""
    return isinstance(error, BadItemError) or not isinstance(error, EvervecError)


def database_blames_item(error: Exception) -> bool:
    """Whether an error of a write-back is the row's."""
    return str(getattr(error, "sqlstate", None) or "").startswith(ITEM_AT_FAULT)


def reason_of(error: Exception) -> str:
    """What is kept with the item: the text of an error that evervec wrote itself, the class of any other."""
    return str(error) if isinstance(error, EvervecError) else describe_error(error)
