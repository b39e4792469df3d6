import psycopg
import pytest

from db.connection import translate


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "server closed the connection unexpectedly\n\tThis probably means the server\n\tterminated abnormally\n",
            "server closed the connection unexpectedly",
        ),
        (
            'connection to server at "127.0.0.1", port 1 failed: Connection refused\n\tIs the server running?',
            'connection to server at "127.0.0.1", port 1 failed: Connection refused',
        ),
        ("", "OperationalError"),
    ],
)
def test_what_libpq_says_is_told_without_its_guesses(said: str, told: str) -> None:
    assert str(translate(psycopg.OperationalError(said))) == f"PostgreSQL does not answer: {told}"
