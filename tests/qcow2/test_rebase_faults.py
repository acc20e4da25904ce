"""A rebase of which each operation fails once, and each await is cancelled once; see ``test_fault_states``."""

from __future__ import annotations

import asyncio
import random
from typing import Final

from blockio.testing.cancel import explore_cancellations
from blockio.testing.faults import explore_faults
from tests.qcow2.engine import new_image
from tests.qcow2.rebase_work import BACKING, RebaseRig, rebases

SEED: Final = 3
"""The first backing file of that seed is one of another content."""


async def _disks() -> dict[str, bytes]:
    name = next(iter(BACKING))
    image = await new_image(65536, cluster_size=8192, backing_file=name, backing_fmt="raw")
    return {"file": bytes(image.data)}


def test_every_fault() -> None:
    async def main() -> None:
        report = await explore_faults(RebaseRig(), await _disks(), lambda guest: rebases(random.Random(SEED), guest, 1))
        assert report.ok, f"\n{report}"
        assert report.faults > 30

    asyncio.run(main())


def test_every_cancellation() -> None:
    async def main() -> int:
        return await explore_cancellations(
            RebaseRig(), await _disks(), lambda guest: rebases(random.Random(SEED), guest, 1)
        )

    assert asyncio.run(main()) > 15
