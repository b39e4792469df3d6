"""What Temporal is told of an error: nothing that could be a row's."""

import pytest
from temporalio.api.failure.v1 import Failure
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, FailureError

from evervec.errors import BadItemError, DatabaseError, DimensionError, ModelUnavailableError
from evervec.temporal import data_converter, failure_of

CANARY = "CANARY-88d1"


def told(error: BaseException) -> Failure:
    failure = Failure()
    data_converter.failure_converter.to_failure(error, data_converter.payload_converter, failure)
    return failure


def raised(error: Exception) -> Exception:
    """The error with a traceback, a cause and a context."""
    error.__context__ = KeyError(CANARY)
    try:
        raise error from ValueError(CANARY)
    except type(error) as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "message", "kind"),
    [
        (ValueError(CANARY), "ValueError", "ValueError"),
        (DatabaseError(CANARY, sqlstate="23505"), "DatabaseError [23505]", "DatabaseError"),
        (BadItemError(CANARY), "BadItemError", "BadItemError"),
        (ApplicationError(CANARY, CANARY, {"row": CANARY}), "ApplicationError", ""),
        (ApplicationError(CANARY, type="Odd"), "Odd", "Odd"),
        (DimensionError("768 is not 512"), "768 is not 512", "DimensionError"),
        (failure_of(DatabaseError(CANARY, sqlstate="40001")), "DatabaseError [40001]", "DatabaseError"),
        (failure_of(ModelUnavailableError("install it")), "install it", "ModelUnavailableError"),
    ],
)
def test_only_the_class_and_the_sqlstate_are_told(error: Exception, message: str, kind: str) -> None:
    failure = told(raised(error))
    assert (failure.message, failure.application_failure_info.type) == (message, kind)
    assert CANARY not in str(failure)
    assert not failure.stack_trace
    assert not failure.HasField("cause")


def test_a_cancellation_stays_one() -> None:
    failure = told(CancelledError(CANARY, CANARY))
    assert failure.WhichOneof("failure_info") == "canceled_failure_info"
    assert CANARY not in str(failure)


def test_a_failure_out_of_a_history_keeps_what_it_says() -> None:
    from_history = Failure(message="Activity task failed")
    from_history.activity_failure_info.activity_id = "1"
    from_history.cause.message = "DatabaseError [23505]"
    from_history.cause.application_failure_info.type = "DatabaseError"
    error = data_converter.failure_converter.from_failure(from_history, data_converter.payload_converter)
    assert isinstance(error, ActivityError)
    assert isinstance(error, FailureError)
    assert told(error) == from_history
