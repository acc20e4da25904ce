"""A device model above a backend: attached, told, detached."""

from __future__ import annotations

import asyncio
import errno

import pytest

from blockio.backend import BlockBackend, BlockDevOps, IoStatus, MachineState, RunState
from blockio.errors import BlockError, PermissionConflict
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm


class Disk(BlockDevOps):
    """A device that notes what it is told."""

    def __init__(self, blk: BlockBackend, **names: str) -> None:
        self.blk = blk
        self.told: list[str] = []
        vars(self).update(names)

    def resize(self) -> None:
        self.told.append(f"resized {self.blk.getlength()}")

    def drained_begin(self) -> None:
        self.told.append("quiet")

    def drained_end(self) -> None:
        self.told.append("go on")


async def test_attached_it_holds_the_backend(disk: MemoryDisk) -> None:
    dev = object()
    blk = await BlockBackend.new_open(options=disk.options())
    assert blk.get_attached_dev() is None
    blk.attach_dev(dev)
    assert blk.get_attached_dev() is dev
    assert blk.get_refcnt() == 2
    with pytest.raises(BlockError) as caught:
        blk.attach_dev(object())
    assert caught.value.errno == errno.EBUSY
    assert blk.get_refcnt() == 2
    await blk.close()
    await blk.co_pwritev(0, b"x")
    await blk.detach_dev(dev)
    assert blk.closed


async def test_detached_it_leaves_nothing_behind(blk: BlockBackend) -> None:
    dev = Disk(blk, id="virtio0")
    blk.attach_dev(dev)
    blk.set_dev_ops(dev)
    blk.set_guest_block_size(4096)
    blk.set_perm(Perm.CONSISTENT_READ | Perm.WRITE, Perm.CONSISTENT_READ)
    for other in (object(), None):
        with pytest.raises(RuntimeError, match="is not attached"):
            await blk.detach_dev(other)
    await blk.detach_dev(dev)
    assert blk.device.ops is None
    assert blk.device.guest_block_size == 512
    assert blk.get_perm() == (Perm.NONE, Perm.ALL)
    assert blk.root is not None
    assert (blk.root.perm, blk.root.shared) == (Perm.NONE, Perm.ALL)
    assert blk.get_refcnt() == 1
    async with blk.drained():
        pass
    assert dev.told == []
    with pytest.raises(RuntimeError, match="is not attached"):
        await blk.detach_dev(dev)
    blk.attach_dev(dev)
    await blk.detach_dev(dev)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({"id": "virtio0", "qom_path": "/machine/peripheral/virtio0"}, "virtio0"),
        ({"id": "", "qom_path": "/machine/unattached/device[3]"}, "/machine/unattached/device[3]"),
        ({"qom_path": "/machine/unattached/device[3]"}, "/machine/unattached/device[3]"),
        ({}, ""),
    ],
)
async def test_what_it_is_called(names: dict[str, str], found: str) -> None:
    async with BlockBackend() as blk:
        assert blk.get_attached_dev_id() == ""
        assert blk.parent_desc() == "a block device"
        dev = Disk(blk, **names)
        blk.attach_dev(dev)
        assert blk.get_attached_dev_id() == blk.device.id == found
        assert blk.parent_desc() == found or "a block device"
        blk.monitor_add_blk("disk0")
        assert blk.parent_desc() == "disk0"
        await blk.detach_dev(dev)
        assert blk.get_attached_dev_id() == ""


async def test_found_by_its_device(blk: BlockBackend) -> None:
    class SameAsAll:
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 1

    dev = SameAsAll()
    assert BlockBackend.by_dev(dev) is None
    async with BlockBackend() as other:
        other.attach_dev(SameAsAll())
        blk.attach_dev(dev)
        assert BlockBackend.by_dev(dev) is blk
        await blk.detach_dev(dev)
        assert BlockBackend.by_dev(dev) is None
        await other.detach_dev(other.get_attached_dev())
    with pytest.raises(TypeError):
        BlockBackend.by_dev(None)
    with pytest.raises(TypeError):
        blk.attach_dev(None)


async def test_told_of_the_first_section_and_the_last(blk: BlockBackend) -> None:
    dev = Disk(blk)
    blk.set_dev_ops(dev)
    async with blk.drained():
        async with blk.drained():
            assert dev.told == ["quiet"]
        assert dev.told == ["quiet"]
    assert dev.told == ["quiet", "go on"]


async def test_one_that_comes_while_drained_is_told_at_once(blk: BlockBackend) -> None:
    dev = Disk(blk)
    async with blk.drained():
        blk.set_dev_ops(dev)
        assert dev.told == ["quiet"]
    assert dev.told == ["quiet", "go on"]
    blk.set_dev_ops(None)
    async with blk.drained():
        pass
    assert dev.told == ["quiet", "go on"]


async def test_told_before_what_parked_goes_on(blk: BlockBackend, disk: MemoryDisk) -> None:
    seen: list[int] = []

    class Watcher(BlockDevOps):
        def drained_end(self) -> None:
            seen.append(len(disk.log))
            assert not blk.quiesced

    blk.set_dev_ops(Watcher())
    async with blk.drained():
        parked = blk.aio_pwritev(0, b"x")
        await asyncio.sleep(0)
    await parked
    assert seen == [0]
    assert disk.log == [("write", 0, 1)]


async def test_a_device_that_fails_to_go_on_holds_nobody_up(blk: BlockBackend) -> None:
    class Broken(BlockDevOps):
        def drained_end(self) -> None:
            raise LookupError("no queue")

    blk.set_dev_ops(Broken())
    parked = None
    with pytest.raises(LookupError):
        async with blk.drained():
            parked = blk.aio_pwritev(0, b"x")
    blk.set_dev_ops(None)
    assert parked is not None
    await parked


async def test_told_of_a_new_length(blk: BlockBackend) -> None:
    dev = Disk(blk)
    blk.set_dev_ops(dev)
    await blk.co_truncate(8192)
    assert dev.told == ["resized 8192"]


async def test_guest_block_size(blk: BlockBackend) -> None:
    assert blk.device.guest_block_size == 512
    blk.set_guest_block_size(4096)
    assert blk.device.guest_block_size == 4096
    with pytest.raises(ValueError, match="0 bytes"):
        blk.set_guest_block_size(0)


async def test_attaching_resets_the_io_status(blk: BlockBackend) -> None:
    blk.set_on_error("stop", "stop")
    blk.iostatus_enable()
    blk.iostatus_set_err(errno.EIO)
    blk.attach_dev(blk)
    assert blk.iostatus() is IoStatus.OK
    await blk.detach_dev(blk)


async def test_while_the_machine_arrives_permissions_are_only_noted(blk: BlockBackend) -> None:
    """The disk is still being copied by somebody who writes it; the device must not object to that."""
    machine = RunState(MachineState.INMIGRATE)
    blk.set_run_state(machine)
    blk.set_perm(Perm.NONE, Perm.ALL)
    assert blk.bs is not None
    async with await BlockBackend.new_with_bs(blk.bs, Perm.WRITE, Perm.ALL):
        blk.attach_dev(blk)
        blk.set_perm(Perm.CONSISTENT_READ | Perm.WRITE, Perm.CONSISTENT_READ)
        assert blk.root is not None
        assert blk.root.perm == Perm.NONE
        await blk.invalidate_cache()  # ours to write, but the copying goes on
        assert (blk.root.perm, blk.root.shared) == (Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
        await blk.co_pwritev(0, b"x")
    machine.set(MachineState.RUNNING)
    assert blk.root.shared == Perm.CONSISTENT_READ
    with pytest.raises(PermissionConflict):
        await BlockBackend.new_with_bs(blk.bs, Perm.WRITE, Perm.ALL)
    await blk.detach_dev(blk)


async def test_belongs_into_its_own_loop(blk: BlockBackend) -> None:
    def elsewhere() -> None:
        with pytest.raises(RuntimeError, match="own event loop"):
            blk.attach_dev(blk)
        with pytest.raises(RuntimeError, match="own event loop"):
            blk.set_dev_ops(None)

    await asyncio.to_thread(elsewhere)
    assert blk.get_attached_dev() is None
