"""``make demo`` must go through: it is the first thing people see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


def test_the_demo_goes_through() -> None:
    done = subprocess.run([sys.executable, DEMO], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for line in ("every byte read was the right one", "compare: identical", "check:   no errors", "Done in "):
        assert line in done.stdout
