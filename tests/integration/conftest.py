"""A database for each module that tests the contract, and a schema of its own for each test, in both destinations."""

from collections.abc import Iterator
from contextlib import nullcontext

import pytest

from tests.integration.contract import Lab, fresh_database, lab_in, unguarded


@pytest.fixture(scope="module")
def contract_database(postgres: str, template_database: str) -> Iterator[str]:
    """A database that the tests of a module share: its connection string."""
    with fresh_database(postgres, template_database) as conninfo:
        yield conninfo


@pytest.fixture(params=["column", "table"])
def lab(request: pytest.FixtureRequest, contract_database: str) -> Iterator[Lab]:
    """A schema of its own, and a destination."""
    with lab_in(contract_database, request.param) as lab:
        yield lab


@pytest.fixture(params=["column-guarded", "column-unguarded", "table-guarded", "table-unguarded"])
def lab_either_way(request: pytest.FixtureRequest, contract_database: str) -> Iterator[Lab]:
    """The same, where UPDATEs of other columns meet no trigger, and where each of their rows is looked at."""
    destination, guard = request.param.split("-")
    with (
        unguarded(contract_database) if guard == "unguarded" else nullcontext(),
        lab_in(contract_database, destination) as lab,
    ):
        yield lab
