"""A database for each module that tests the contract, and a schema of its own for each test, in both destinations."""

from collections.abc import Iterator

import pytest

from tests.integration.contract import Lab, fresh_database, lab_in


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
