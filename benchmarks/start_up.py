"""How long the tools take to start."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from blockio.bench.programs import BLOCKIO, have, measured
from blockio.bench.suites.scale import Scale
from blockio.bench.workload import Contender, Workload

__all__ = ["start_up"]


def start_up(folder: Path, scale: Scale) -> Iterator[Workload]:
    """``blockio img info`` on a small image, from nothing to its last line."""
    disk = folder / "small.qcow2"
    measured([BLOCKIO, "img", "create", "-q", "-f", "qcow2", str(disk), "1G"])

    def runs(argv: list[str]) -> Callable[[], float]:
        return lambda: 1 / measured(argv).seconds

    rivals = [Contender("python -c 'import asyncio'", runs([sys.executable, "-c", "import asyncio"]), target=1 / 3)]
    if have("qemu-img"):
        rivals.append(Contender("qemu-img info", runs(["qemu-img", "info", str(disk)])))
    yield Workload(
        "start-up of blockio img info",
        "runs/s",
        Contender("blockio img info", runs([BLOCKIO, "img", "info", str(disk)])),
        rivals,
        rounds=scale.start_rounds,
    )
    disk.unlink()
