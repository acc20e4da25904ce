"""Measure two ways of doing one thing, in turn, and say which is faster and whether that is more than noise.

python examples/measure.py [REQUESTS] [ROUNDS]
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from pathlib import Path

from blockio.bench.job import Job
from blockio.bench.load import run_loop
from blockio.bench.measuring import measure_latency, run_once
from blockio.bench.scratch import MIB, Scratch, make_scratch
from blockio.bench.table import render, time_text
from blockio.bench.workload import Contender, Workload, rows, run_rounds


def main(requests: int, rounds: int) -> None:
    """Random writes to a raw disk and to a qcow2 one."""
    job = Job(pattern="random", read_percent=0, count=requests, depth=8)
    with tempfile.TemporaryDirectory(prefix="blockio-measure.") as folder:
        stacks = {}
        for kind in ("raw", "qcow2"):
            where = Path(folder) / kind
            where.mkdir()
            stacks[kind], _ = make_scratch(where, Scratch(format=kind, size=16 * MIB))

        def rate(kind: str) -> float:
            return run_loop(run_once(job, stacks[kind])).rate

        qcow2, raw = (Contender(kind, partial(rate, kind)) for kind in ("qcow2", "raw"))
        workload = Workload(job.title, "requests/s", qcow2, [raw])
        run_rounds(workload, rounds, lambda text: None)
        print(render(rows(workload)))
        for kind, stack in stacks.items():
            found = measure_latency(job, stack)
            print(f"{kind}: half of them within {time_text(found.percentiles['50'])}, 99 % within "
                  f"{time_text(found.percentiles['99'])}")  # fmt: skip


if __name__ == "__main__":
    main(*map(int, sys.argv[1:] or ("5000", "3")))
