"""``python -m benchmarks``: ``blockio bench`` with this project's own suites beside the shipped ones."""

from __future__ import annotations

import sys

from benchmarks import SUITES
from blockio.cli.bench import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], "benchmarks", SUITES))
