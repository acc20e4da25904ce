"""Every operation below qcow2 fails once, and from then on; every await is cancelled once.

Whatever the guest was doing: afterwards nothing is held, each sector holds what it may, the same driver serves the
whole workload, and the image is at worst leaky, for us and, in a sample, for QEMU.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from blockio.testing.cancel import explore_cancellations
from blockio.testing.faults import explore_faults
from blockio.testing.rig import Disks
from blockio.testing.wrapping import Wrap
from blockio.types import PreallocMode
from tests.qcow2.amend_work import VERSIONS, WIDTHS, Amends
from tests.qcow2.crash import Scenario, show_qemu
from tests.qcow2.engine import Disk, Qcow2Rig
from tests.qcow2.scenarios import SMALL, InStep, Packed, Requests, Resizes, apart, crashed, fresh, only_open, overlay
from tests.support.explore import exploring


class KeepingRig(Qcow2Rig):
    """Keeps some of the images that were opened read-only, as they are looked at in the end."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.count = 0
        self.kept: list[bytes] = []

    @asynccontextmanager
    async def open(self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False) -> AsyncIterator[Disk]:
        async with super().open(disks, wrap=wrap, read_only=read_only) as disk:
            yield disk
        if not read_only:
            return
        self.count += 1
        if self.count % 20 == 0:
            self.kept.append(bytes(disks["file"]))


class KeepingInStep(KeepingRig, InStep):
    """Of a raw data file, which is compared with the disk each time."""


FARTHER = (5,)
"""300 clusters of 512 bytes are just more than a refcount block counts; each more is more places to fail at."""

TROUBLES = (((errno.EIO, False), (errno.ENOSPC, True)), ((errno.ENOSPC, False), (errno.EIO, True)))
"""Each scenario meets both errors, one of them once and the other from then on; its neighbour the other way round."""


def scenario(name: str, *args: Any, **kwargs: Any) -> Scenario:
    return Scenario(name, 0, *args, **kwargs)


SCENARIOS = {
    one.name: one
    for one in (
        scenario("plain", fresh(100, 512), Requests(512, 12), KeepingRig(**SMALL)),
        scenario("64-bit refcounts", fresh(100, 512, refcount_bits=64), Requests(512, 12), KeepingRig(**SMALL)),
        scenario("lazy", fresh(100, 512, lazy_refcounts=True), Requests(512, 12), KeepingRig(), repairs=True),
        scenario("version 2", fresh(60, 1024, compat="0.10"), Requests(1024, 12), KeepingRig()),
        scenario("overlay", overlay(60, 1024), Requests(1024, 12), KeepingRig()),
        scenario("subclusters", fresh(6, 16384, extended_l2=True), Requests(512, 12), KeepingRig(**SMALL)),
        scenario(
            "resize of subclusters",
            fresh(6, 16384, extended_l2=True),
            Resizes(512, PreallocMode.METADATA, 1, growth=(2,)),
            KeepingRig(),
        ),
        scenario("resize", fresh(60, 512, refcount_bits=64), Resizes(512, PreallocMode.OFF, 2), KeepingRig()),
        scenario("data file", apart(60, 512), Requests(512, 12), KeepingRig(**SMALL)),
        scenario("data file, resize", apart(60, 512), Resizes(512, PreallocMode.FULL, 1, growth=FARTHER), KeepingRig()),
        scenario("raw data file", apart(60, 512, data_file_raw=True), Requests(512, 12), KeepingInStep()),
        scenario(
            "raw data file, resize",
            apart(30, 512, data_file_raw=True),
            Resizes(512, PreallocMode.OFF, 1, growth=FARTHER),
            KeepingInStep(),
        ),
        scenario("compressed", fresh(60, 2048), Packed(2048, 8), KeepingRig(packing=True)),
        scenario("preallocate", fresh(60, 512), Resizes(512, PreallocMode.METADATA, 1, growth=FARTHER), KeepingRig()),
        scenario("amend, versions", overlay(24, 1024), Amends(1024, VERSIONS, rounds=2, snapshots=1), KeepingRig()),
        scenario("amend, widths", fresh(24, 1024), Amends(1024, WIDTHS[::3], rounds=2), KeepingRig()),
        scenario("repair", crashed(60, 512, lazy_refcounts=True), only_open, KeepingRig(), repairs=True),
    )
}


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_fault(name: str) -> None:
    """Not an async test: a loop in debug mode would take twice as long. ``make explore`` has all kinds of trouble."""
    one = SCENARIOS[name]
    number = list(SCENARIOS).index(name)
    troubles = itertools.chain(*TROUBLES) if exploring() else TROUBLES[number % 2]

    async def main() -> None:
        disks = await one.image(random.Random(1))
        faults = 0
        for error, sticky in troubles:
            report = await explore_faults(
                one.rig,
                disks,
                one.workload(1),
                errors=[error],
                sticky=[sticky],
                repairs=one.repairs,
                discard_zeroes=True,
            )
            assert report.ok, f"\n{report}"
            faults += report.faults
        assert faults > 30

    asyncio.run(main())
    assert isinstance(one.rig, KeepingRig)
    if not one.repairs:  # else they are shown before they were repaired
        show_qemu(one.rig.kept)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_cancellation(name: str) -> None:
    one = SCENARIOS[name]

    async def main() -> int:
        disks = await one.image(random.Random(2))
        return await explore_cancellations(one.rig, disks, one.workload(2), repairs=one.repairs, discard_zeroes=True)

    assert asyncio.run(main()) > 15 or one.work is only_open
