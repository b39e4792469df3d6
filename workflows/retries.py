"""How activities are tried again."""

from datetime import timedelta

from temporalio.common import RetryPolicy

NO_SUCH_SOURCE = "SourceNotFoundError"

# Attempts have no end here: those that a bad item is to blame for are counted in the database.
RETRY_POLICY = RetryPolicy(
    initial_interval=timedelta(seconds=1),
    backoff_coefficient=2,
    maximum_interval=timedelta(seconds=30),
    non_retryable_error_types=[NO_SUCH_SOURCE, "ConfigurationError", "DimensionError", "ItemNotFoundError"],
)
HEARTBEAT_TIMEOUT = timedelta(seconds=10)
