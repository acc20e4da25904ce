"""Disks as strings, and faults by number."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from blockio.backend import BlockBackend
from blockio.errors import BlockError, OptionError
from blockio.testing.faults import FaultPlan, FaultyChild, for_every_fault
from blockio.testing.memory import MemoryChild
from blockio.testing.pictures import content, draw, picture
from blockio.types import OpenFlags
from tests.support.qemu import assert_clean, qemu_img


async def test_on_a_driver_that_knows_only_data() -> None:
    child = MemoryChild(bytes(4 * 512))
    await draw(child, "A0-B", unit=512)
    assert await picture(child, unit=512) == "A..B"
    assert bytes(child.data) == content("A0-B", unit=512)
    child.data[10] = 0
    assert await picture(child, unit=512) == "?..B"
    with pytest.raises(ValueError, match="means nothing"):
        await draw(child, "A!", unit=512)


@pytest.mark.peer("qemu-img")
async def test_on_an_overlay(tmp_path: Path) -> None:
    base, top = tmp_path / "base.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", base, "320k")
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    below = {"driver": "qcow2", "file": {"driver": "file", "filename": str(base)}}
    async with await BlockBackend.new_open(options=below) as disk:
        await draw(disk, "aa0--")
        assert await picture(disk) == "aa0--"
    above = {"driver": "qcow2", "file": {"driver": "file", "filename": str(top)}, "backing": below}
    async with await BlockBackend.new_open(options=above, flags=OpenFlags(unmap=True)) as disk:
        await draw(disk, "-0B-C")
        memory = bytearray(5 << 16)
        await disk.co_preadv(0, memory)
        assert memory == content("-0B-C", below="aa0--")
    assert_clean(top)


async def test_a_fault_for_every_operation() -> None:
    """The Nth operation fails once; a scenario of three operations has three faults, and then none."""
    plan = FaultPlan(error=errno.ENOSPC)
    child = FaultyChild(MemoryChild(bytes(4096)), plan)
    failed: list[tuple[int, int | None]] = []

    async def scenario() -> None:
        try:
            await child.co_pwrite_zeroes(0, 512)
            await child.co_flush()
            await child.co_truncate(8192)
        except BlockError as error:
            failed.append((plan.seen, error.errno))

    assert await for_every_fault(plan, scenario) == 3
    assert failed == [(1, errno.ENOSPC), (2, errno.ENOSPC), (3, errno.ENOSPC)]
    with pytest.raises(AssertionError, match="more than 2"):
        await for_every_fault(plan, scenario, at_most=2)


async def test_plans_that_choose_and_plans_that_last() -> None:
    plan = FaultPlan(1, operations=frozenset({"flush"}), sticky=True)
    child = FaultyChild(MemoryChild(bytes(4096)), plan)
    await child.co_pwrite_zeroes(0, 512)
    for _ in range(2):
        with pytest.raises(BlockError):
            await child.co_flush()
    assert plan.fired == 2
    with pytest.raises(ValueError, match="melt"):
        FaultPlan(operations=frozenset({"melt"}))
    with pytest.raises(OptionError, match="in force"):
        FaultPlan.named("nobody")
    assert not child.try_preadv(0, [bytearray(1)], 1)
    assert (child.name, child.length, child.read_only) == ("file", 4096, False)
