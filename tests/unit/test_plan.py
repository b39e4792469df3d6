"""What docs/plan.md names is there: files, folders, tests."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`((?:django:)?[\w.]+/[\w./-]*)(?:::(\w+))?`", PAGE)))


@pytest.mark.parametrize(("path", "test"), NAMED, ids=lambda named: named or "file")
def test_it_is_there(path: str, test: str) -> None:
    file = ROOT / path.replace("django:", "integrations/django/")
    assert file.exists()
    if test:
        assert f"def {test}(" in file.read_text(encoding="utf-8")


def test_every_row_names_code_or_a_reason_and_a_test() -> None:
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith(("| **", "| …"))]
    assert len(rows) > 50
    assert all(row[-1].strip() for row in rows)
