"""``python -m benchmarks``: ``blockio bench`` with this project's own suites beside the shipped ones.

Unless suites are named, all of them run, and what each layer costs comes last.
"""

from __future__ import annotations

import sys

from benchmarks import SUITES
from blockio.cli.bench import main

if __name__ == "__main__":
    words = sys.argv[1:]
    if not any(word.startswith("--suite") for word in words):
        words = ["--suite", "all", "--layers", *words]
    sys.exit(main(words, "benchmarks", SUITES))
