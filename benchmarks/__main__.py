"""``python -m benchmarks [--quick] [SUITE …]``: run the suites named, or all, and print the table of ratios."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.layers import layers
from benchmarks.metadata import metadata
from benchmarks.programs import have, versions
from benchmarks.suite import Scale, compressed, convert, reads, start_up
from benchmarks.table import render
from benchmarks.workload import Workload, rows, run_rounds

SUITES: Final[dict[str, Callable[[Path, Scale], Iterator[Workload]]]] = {
    "reads": reads,
    "layers": layers,
    "convert": convert,
    "compressed": compressed,
    "metadata": metadata,
    "start-up": start_up,
}


def main() -> int:
    """Run the suites asked for. 130 after an interruption, whose partial results are printed and marked so."""
    parser = argparse.ArgumentParser(prog="benchmarks", description="blockio side by side with what else there is")
    parser.add_argument("--quick", action="store_true", help="smaller files and fewer rounds: noisier answers")
    parser.add_argument("suite", nargs="*", help=f"of {', '.join(SUITES)}; all of them by default")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.suite if name not in SUITES]
    if unknown:
        parser.error(f"no suite is called {', '.join(unknown)}")
    scale = Scale.quick() if arguments.quick else Scale()
    print(" · ".join(versions()))
    if not have("qemu-img"):
        print("qemu-img is not installed: its workloads are left out")
    done: list[Workload] = []
    interrupted = False
    folder = os.environ.get("TMPDIR", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="blockio-bench.", dir=folder) as where:
        try:
            for name in arguments.suite or SUITES:
                rounds = {
                    "convert": scale.convert_rounds,
                    "compressed": 3,
                    "metadata": 3,
                    "start-up": scale.start_rounds,
                }.get(name, scale.rounds)
                for workload in SUITES[name](Path(where), scale):
                    done.append(workload)
                    run_rounds(workload, rounds, tell)
        except KeyboardInterrupt:
            interrupted = True
    tell("")
    print(render([row for workload in done for row in rows(workload)]))
    for workload in done:
        for note in workload.notes:
            print(f"{workload.title}: {note}")
    if interrupted:
        print("INTERRUPTED: rounds are missing, the figures are partial")
    return 130 if interrupted else 0


def tell(text: str) -> None:
    """Say on a terminal what is going on; the next word overwrites it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
