"""PostgreSQL in a container, where a Docker daemon answers.

EVERVEC_TEST_POSTGRES chooses: `embedded` never uses Docker, `testcontainers` always does, else Docker is used when its
daemon answers and has the image or can pull it.
"""

import contextlib
import functools
import os
import subprocess
import warnings
from collections.abc import Iterator

POSTGRES_IMAGE = "pgvector/pgvector:pg18"


@functools.cache
def docker_refusal() -> str | None:
    """Why PostgreSQL does not run in a container; None when it does."""
    choice = os.environ.get("EVERVEC_TEST_POSTGRES", "auto")
    if choice == "testcontainers":
        return None
    if choice == "embedded":
        return "EVERVEC_TEST_POSTGRES says so"
    if not _docker("info"):
        return "no Docker daemon answers"
    if not _docker("image", "inspect", POSTGRES_IMAGE) and not _docker("pull", "--quiet", POSTGRES_IMAGE):
        return f"Docker cannot get {POSTGRES_IMAGE}"
    return None


def _docker(*arguments: str) -> bool:
    """Whether a command of Docker's succeeds."""
    try:
        return subprocess.run(["docker", *arguments], check=False, capture_output=True, timeout=300).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextlib.contextmanager
def container_postgres() -> Iterator[str]:
    """A PostgreSQL container: the connection string of its database `postgres`, as a superuser."""
    # The reaper is a second image, which a machine without a registry does not have.
    os.environ["TESTCONTAINERS_RYUK_DISABLED"] = "true"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from testcontainers.postgres import PostgresContainer  # noqa: PLC0415

    container = PostgresContainer(POSTGRES_IMAGE, username="postgres", dbname="postgres", driver=None)
    container.with_command("postgres -c fsync=off -c max_connections=200").with_env("LANG", "C.UTF-8")
    try:
        with container as running:
            yield running.get_connection_url()
    finally:
        container.get_docker_client().client.close()
