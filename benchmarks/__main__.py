"""``python -m benchmarks``: ``blockio bench`` with this project's own suites beside the shipped ones.

Unless suites are named, all of them run, then what each layer costs is measured, and last comes a line a promise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from benchmarks import SUITES
from benchmarks.promises import promises_text
from blockio.bench.report import read_report
from blockio.cli.bench import main


def measure(words: list[str]) -> int:
    """Run the tool with *words*. Returns its exit status."""
    if any(word.startswith("--suite") for word in words) or set(words) & {"--help", "-h", "--list"}:
        return main(words, "benchmarks", SUITES)
    with tempfile.TemporaryDirectory(prefix="blockio-bench.") as folder:
        result = Path(folder) / "result.json"
        if "--json" in words[:-1]:
            result = Path(words[words.index("--json") + 1])
        status = main(["--suite", "all", "--layers", *words, "--json", str(result)], "benchmarks", SUITES)
        if result.exists():
            print("\n" + promises_text(read_report(result.read_bytes(), str(result))))
    return status


if __name__ == "__main__":
    sys.exit(measure(sys.argv[1:]))
