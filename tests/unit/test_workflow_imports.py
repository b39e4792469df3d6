"""The workflows stay light: their sandbox loads them again for each run."""

import subprocess
import sys

HEAVY = ["activities", "db", "embedding", "numpy", "psycopg", "structlog", "torch"]


def test_workflows_import_nothing_heavy() -> None:
    code = f"import sys, workflows; print(*(name for name in {HEAVY} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
