"""Runs the example on evervec's embedded stack: `make django-example`.

Starts `evervec up`, migrates, loads 200 things and serves the pages; Ctrl-C stops it all, the data stays.
"""

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ITEMS = HERE.parents[2] / "cli" / "demo" / "items.sql"
START_SECONDS = 300.0


def main() -> int:
    """Run until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evervec", type=Path, required=True, help="the program `evervec`")
    parser.add_argument("--data-dir", type=Path, required=True, help="where the data stays")
    parser.add_argument("--address", default="127.0.0.1:8000", help="where the pages are served")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A process group of its own: Ctrl-C is for this one, which stops the pages first.
    stack = subprocess.Popen(  # noqa: S603
        [options.evervec.absolute(), "up", "--data-dir", options.data_dir], start_new_session=True
    )
    try:
        serve(wait_for(stack, options.data_dir / "env"), options.address)
    except KeyboardInterrupt:
        pass
    finally:
        stack.send_signal(signal.SIGINT)
        stack.wait()
    return 0


def wait_for(stack: "subprocess.Popen[bytes]", addresses: Path) -> dict[str, str]:
    """The environment of the stack, when it is up."""
    deadline = time.monotonic() + START_SECONDS
    while not addresses.exists():
        if stack.poll() is not None or time.monotonic() > deadline:
            sys.exit("the stack does not come up: see above")
        time.sleep(0.2)
    return dict(item.split("=", 1) for item in shlex.split(addresses.read_text(encoding="utf-8")))


def serve(environment: dict[str, str], address: str) -> None:
    """Migrate, load, serve."""
    variables = os.environ | environment
    for arguments in (["migrate", "--verbosity=0"], ["load_items", str(ITEMS)], ["ensure_admin"]):
        manage(arguments, variables)
    sys.stdout.write(f"\nThe example: http://{address}/ (admin: user admin, password admin)\n\n")
    sys.stdout.flush()
    manage(["runserver", "--noreload", address], variables)


def manage(arguments: list[str], variables: dict[str, str]) -> None:
    """Run `manage.py`."""
    subprocess.run([sys.executable, HERE / "manage.py", *arguments], env=variables, check=True)  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
