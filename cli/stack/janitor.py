"""Removes a file when the process at the other end of its standard input has ended, however it ended.

Run by path: `python -I -S janitor.py FILE`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.stdin.read()
    Path(sys.argv[1]).unlink(missing_ok=True)
