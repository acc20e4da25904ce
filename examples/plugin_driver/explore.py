"""Is the driver safe? Every crash, every fault and every cancellation that its disks can meet, tried out in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from blockio_concat import ConcatDriver

from blockio.driver.registry import register
from blockio.testing.cancel import explore_cancellations
from blockio.testing.crash import explore_crashes, record, survives
from blockio.testing.faults import explore_faults
from blockio.testing.guest import Guest
from blockio.testing.rig import StackRig


def stack(disks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Two disks in memory below, the driver above."""
    return {"driver": "concat", "file": disks["one"], "second": disks["two"]}


async def workload(guest: Guest) -> None:
    """What a guest does: the same each time it is asked."""
    await guest.write(3 * 512, b"a" * 1024)  # half of it on each disk
    await guest.flush()
    await guest.write(0, b"b" * 512)
    await guest.zero(3 * 512, 1024)


async def main() -> None:
    register(ConcatDriver)
    rig = StackRig(stack)
    disks = {"one": bytes(2048), "two": bytes(4096)}
    run = await record(rig, disks, workload)
    print(await explore_crashes(run.journal, survives(rig, run.promises), states=1000, seed=1))
    print(await explore_faults(rig, disks, workload))
    print(await explore_cancellations(rig, disks, workload), "cancellations")


if __name__ == "__main__":
    asyncio.run(main())
