"""Inactive and active: whose image it is, and what that lets others do."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from blockio import img
from blockio.aio.context import IOThread
from blockio.backend import BlockBackend, ErrorReported, MachineState, RunState, activate_all, inactivate_all
from blockio.errors import BlockError, NoMedium, PermissionConflict, ReadOnly
from blockio.graph.activation import activate_node, inactivate_node
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk, MemoryDriver
from blockio.types import OpenFlags, Perm
from tests.support.qemu import assert_clean, qemu_img, qemu_io

WRITE = Perm.CONSISTENT_READ | Perm.WRITE
READ = Perm.CONSISTENT_READ


def held(blk: BlockBackend) -> tuple[Perm, Perm]:
    assert blk.root is not None
    return blk.root.perm, blk.root.shared


def asleep(node: BlockNode) -> bool:
    return node.flags.inactive


async def test_given_up_and_taken_back(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.fast = True
    blk.monitor_add_blk("disk0")
    blk.set_perm(WRITE, READ)
    assert blk.bs is not None
    await blk.co_pwritev(0, b"x")
    await blk.inactivate_root()
    await blk.inactivate_root()
    assert blk.bs.flags.inactive
    assert ("flush", 0, 0) in disk.log
    assert held(blk) == (Perm.NONE, Perm.ALL)
    assert blk.get_perm() == (WRITE, READ)
    assert not blk.try_pwritev(0, b"y")
    with pytest.raises(BlockError) as caught:
        await blk.co_pwritev(0, b"y")
    assert caught.value.errno == errno.EPERM
    blk.set_perm(WRITE, READ | Perm.WRITE_UNCHANGED)  # noted
    assert held(blk) == (Perm.NONE, Perm.ALL)
    await blk.invalidate_cache()
    await blk.invalidate_cache()
    assert held(blk) == (WRITE, READ | Perm.WRITE_UNCHANGED)
    assert blk.try_pwritev(0, b"y")


async def test_who_may_be_put_to_sleep(blk: BlockBackend) -> None:
    assert blk.bs is not None
    with pytest.raises(BlockError, match="in use") as caught:  # nameless, without a device, and it writes
        await blk.inactivate_root()
    assert caught.value.errno == errno.EPERM
    assert not blk.bs.flags.inactive
    await blk.co_pwritev(0, b"x")

    async def sleeps() -> bool:
        await blk.inactivate_root()
        await blk.invalidate_cache()
        return True

    blk.attach_dev(blk)
    blk.set_perm(WRITE, Perm.ALL)
    assert await sleeps()
    await blk.detach_dev(blk)
    assert await sleeps()  # it needs nothing any more
    blk.set_perm(WRITE, Perm.ALL)
    with pytest.raises(BlockError):
        await sleeps()
    blk.set_force_allow_inactivate()
    assert await sleeps()


async def test_one_user_who_objects_keeps_all_awake(blk: BlockBackend) -> None:
    blk.monitor_add_blk("disk0")
    assert blk.bs is not None
    async with await BlockBackend.new_with_bs(blk.bs, WRITE, Perm.ALL):
        with pytest.raises(BlockError, match="in use"):
            await blk.inactivate_root()
        assert held(blk)[0] & Perm.WRITE
        await blk.co_pwritev(0, b"x")
    await blk.inactivate_root()
    await blk.invalidate_cache()


async def test_somebody_else_has_it_meanwhile(blk: BlockBackend) -> None:
    blk.monitor_add_blk("disk0")
    blk.set_perm(WRITE, Perm.ALL)
    assert blk.bs is not None
    await blk.inactivate_root()
    async with await BlockBackend.new_with_bs(blk.bs, READ, READ):
        with pytest.raises(PermissionConflict):
            await blk.invalidate_cache()
        assert blk.bs.flags.inactive
        assert held(blk) == (Perm.NONE, Perm.ALL)
    await blk.invalidate_cache()
    await blk.co_pwritev(0, b"x")


async def test_what_is_not_shared_is_refused_last(blk: BlockBackend) -> None:
    blk.monitor_add_blk("disk0")
    blk.set_perm(READ, READ)
    assert blk.bs is not None
    await blk.inactivate_root()
    async with await BlockBackend.new_with_bs(blk.bs, READ | Perm.RESIZE, Perm.ALL):
        with pytest.raises(PermissionConflict):
            await blk.invalidate_cache()
        assert held(blk) == (Perm.NONE, Perm.ALL)
    await blk.invalidate_cache()
    assert held(blk) == (READ, READ)


async def test_writing_back_that_fails_keeps_it_awake(blk: BlockBackend, disk: MemoryDisk) -> None:
    blk.monitor_add_blk("disk0")
    await blk.co_pwritev(0, b"x")
    disk.fail = BlockError("no space", errno.ENOSPC)
    with pytest.raises(BlockError, match="no space"):
        await blk.inactivate_root()
    disk.fail = None
    assert blk.bs is not None
    assert not blk.bs.flags.inactive
    await blk.co_pwritev(0, b"y")
    await blk.inactivate_root()
    await blk.invalidate_cache()


async def test_waking_that_fails_leaves_it_asleep(
    blk: BlockBackend, disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: MemoryDriver) -> None:
        raise BlockError("the header is unreadable")

    blk.monitor_add_blk("disk0")
    await blk.inactivate_root()
    with monkeypatch.context() as patch:
        patch.setattr(MemoryDriver, "invalidate_cache", fails)
        with pytest.raises(BlockError, match="unreadable"):
            await blk.invalidate_cache()
    assert blk.bs is not None
    assert blk.bs.flags.inactive
    assert held(blk) == (Perm.NONE, Perm.ALL)
    await blk.invalidate_cache()
    await blk.co_pwritev(0, b"x")


async def test_cancelled_it_goes_on_to_its_end(blk: BlockBackend, disk: MemoryDisk) -> None:
    blk.monitor_add_blk("disk0")
    await blk.co_pwritev(0, b"x")
    disk.stall()
    sleeping = asyncio.create_task(blk.inactivate_root())
    for _ in range(5):
        await asyncio.sleep(0)
    sleeping.cancel()
    await asyncio.sleep(0)
    disk.go()
    with pytest.raises(asyncio.CancelledError):
        await sleeping
    assert blk.bs is not None
    assert blk.bs.flags.inactive
    assert not blk.quiesced
    await blk.invalidate_cache()
    await blk.co_pwritev(0, b"y")


async def test_a_length_that_changed_behind_our_back(
    blk: BlockBackend, disk: MemoryDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def measured(self: MemoryDriver) -> int:
        self.length = len(self.disk.data)
        return self.length

    monkeypatch.setattr(MemoryDriver, "co_getlength", measured)
    blk.monitor_add_blk("disk0")
    await blk.inactivate_root()
    disk.data.extend(bytes(4096))
    await blk.invalidate_cache()
    assert blk.getlength() == len(disk.data)


async def test_from_the_top_down_and_from_the_bottom_up(disk: MemoryDisk) -> None:
    options = {"driver": "raw", "file": disk.options()}
    async with await BlockBackend.new_open(options=options) as blk:
        blk.monitor_add_blk("disk0")
        top = blk.bs
        assert top is not None
        below = top.children["file"].node
        with pytest.raises(BlockError, match="used by the active node") as caught:
            await inactivate_node(below)
        assert caught.value.errno == errno.EBUSY
        async with await BlockBackend.new_with_bs(below, Perm.WRITE, Perm.ALL):
            with pytest.raises(BlockError, match="in use"):  # found when the top sleeps already
                await blk.inactivate_root()
            assert (top.flags.inactive, below.flags.inactive) == (False, False)
            await blk.co_pwritev(0, b"x")
        await blk.inactivate_root()
        assert (top.flags.inactive, below.flags.inactive) == (True, True)
        await activate_node(below)
        assert (top.flags.inactive, below.flags.inactive) == (True, False)
        await activate_node(top)
        await blk.co_pwritev(0, b"y")


async def test_an_image_that_is_not_ours_yet(disk: MemoryDisk) -> None:
    async with await BlockBackend.new_open(options=disk.options(), flags=OpenFlags(inactive=True)) as blk:
        assert held(blk) == (Perm.NONE, Perm.ALL)
        assert blk.get_perm()[0] == WRITE
        await blk.co_preadv(0, bytearray(1))
        assert blk.bs is not None
        with pytest.raises(ReadOnly, match="Block node is read-only"):
            await BlockBackend.new_with_bs(blk.bs, WRITE, Perm.ALL)
        await blk.invalidate_cache()
        await blk.co_pwritev(0, b"x")


async def test_the_machine_arrives(blk: BlockBackend) -> None:
    machine = RunState(MachineState.INMIGRATE)
    blk.set_run_state(machine)
    blk.monitor_add_blk("disk0")
    blk.set_perm(WRITE, READ)
    await blk.inactivate_root()
    await blk.invalidate_cache()
    await blk.inactivate_root()
    await blk.invalidate_cache()
    assert held(blk) == (WRITE, Perm.ALL)  # the others may go on copying
    machine.set(MachineState.PAUSED)
    assert held(blk) == (WRITE, READ)
    machine.set(MachineState.RUNNING)


async def test_it_arrives_and_somebody_is_in_the_way(blk: BlockBackend) -> None:
    machine = RunState(MachineState.INMIGRATE)
    heard: list[object] = []
    blk.set_run_state(machine)
    blk.listen(heard.append)
    blk.monitor_add_blk("disk0")
    blk.set_perm(WRITE, READ)
    await blk.inactivate_root()
    await blk.invalidate_cache()
    assert blk.bs is not None
    async with await BlockBackend.new_with_bs(blk.bs, WRITE, Perm.ALL):
        await asyncio.to_thread(machine.set, MachineState.RUNNING)  # told from anywhere, done at home
        await asyncio.sleep(0)
        (report,) = heard
        assert isinstance(report, ErrorReported)
        assert report.device == "disk0"
        assert report.message.startswith("Permission conflict on node")
        assert held(blk) == (WRITE, Perm.ALL)


async def test_given_to_another_machine_before_it_arrives(blk: BlockBackend) -> None:
    first, second = RunState(MachineState.INMIGRATE), RunState(MachineState.INMIGRATE)
    blk.set_run_state(first)
    blk.monitor_add_blk("disk0")
    blk.set_perm(WRITE, READ)
    await blk.inactivate_root()
    await blk.invalidate_cache()
    blk.set_run_state(second)
    first.set(MachineState.RUNNING)
    assert held(blk) == (WRITE, Perm.ALL)
    blk.set_run_state(RunState())  # one that runs
    assert held(blk) == (WRITE, READ)
    second.set(MachineState.RUNNING)


async def test_closed_before_it_arrives(disk: MemoryDisk) -> None:
    machine = RunState(MachineState.INMIGRATE)
    async with await BlockBackend.new_open(options=disk.options(), flags=OpenFlags(inactive=True)) as blk:
        blk.set_run_state(machine)
        await blk.invalidate_cache()
    machine.set(MachineState.RUNNING)
    assert blk.closed


async def test_without_a_medium() -> None:
    async with BlockBackend() as blk:
        blk.monitor_add_blk("disk0")
        for ask in (blk.invalidate_cache, blk.inactivate_root):
            with pytest.raises(NoMedium) as caught:
                await ask()
            assert str(caught.value) == "Device 'disk0' has no medium"
    with pytest.raises(RuntimeError, match="is closed"):
        await blk.invalidate_cache()


@pytest.mark.peer("qemu-io")
@pytest.mark.peer("qemu-img")
async def test_handed_to_another_process_and_back(tmp_path: Path) -> None:
    """The disk of a machine that moves to QEMU and returns: both see what the other wrote, and nobody is locked out."""
    image = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    async with await BlockBackend.new_open(str(image), options={"driver": "qcow2"}) as blk:
        blk.monitor_add_blk("disk0")
        await blk.co_pwritev(0, b"A" * 65536)
        refused = qemu_io(image, "read 0 64k", format="qcow2", check=False)
        assert 'Failed to get "write" lock' in refused.stderr
        await blk.inactivate_root()
        qemu_io(image, "read -P 65 0 64k", "write -P 66 64k 64k", format="qcow2")
        await blk.invalidate_cache()
        memory = bytearray(131072)
        await blk.co_preadv(0, memory)
        assert memory == b"A" * 65536 + b"B" * 65536
        await blk.co_pwritev(131072, b"C" * 65536)
    assert_clean(image)


@pytest.mark.peer("qemu-io")
async def test_closed_while_another_process_has_it(tmp_path: Path) -> None:
    """Neither a flush nor closing touches an image that is no longer ours."""
    image = tmp_path / "disk.qcow2"
    await img.create(str(image), "qcow2", size=1 << 20)
    async with await BlockBackend.new_open(str(image), options={"driver": "qcow2"}) as blk:
        blk.monitor_add_blk("disk0")
        await blk.co_pwritev(0, b"A" * 65536)
        await blk.inactivate_root()
        qemu_io(image, "write -P 66 64k 64k", format="qcow2")
        theirs = image.read_bytes()
        await blk.co_flush()
    assert image.read_bytes() == theirs
    assert_clean(image)


async def test_all_at_once(disk: MemoryDisk) -> None:
    async with IOThread() as thread, BlockBackend() as empty:
        there = await BlockBackend.new_open(options=disk.options(), context=thread.context)
        there.monitor_add_blk("there")
        with MemoryDisk(4096) as other:
            async with await BlockBackend.new_open(options={"driver": "raw", "file": other.options()}) as here:
                assert here.bs is not None
                assert there.bs is not None
                nodes = [there.bs, here.bs, here.bs.children["file"].node]
                with pytest.raises(BlockError, match="in use"):
                    await inactivate_all()  # the last one is nameless, and it writes
                assert not any(asleep(node) for node in nodes)
                await there.co_pwritev(0, b"x")
                here.monitor_add_blk("here")
                await inactivate_all()
                assert all(asleep(node) for node in nodes)
                await activate_all()
                assert not any(asleep(node) for node in nodes)
                await here.co_pwritev(0, b"x")
                assert empty.bs is None
        await there.close()


async def test_a_shared_base_goes_with_the_last_of_its_users(tmp_path: Path) -> None:
    for name, backing in (("base", None), ("one", "base"), ("two", "base")):
        await img.create(
            str(tmp_path / f"{name}.qcow2"),
            "qcow2",
            size=1 << 20,
            backing_file=backing and str(tmp_path / f"{backing}.qcow2"),
            backing_format=backing and "qcow2",
        )

    def options(name: str, **more: object) -> dict[str, object]:
        return {"driver": "qcow2", "file": {"driver": "file", "filename": str(tmp_path / f"{name}.qcow2")}, **more}

    base = await open_node(options=options("base"), flags=OpenFlags(read_only=True), path_factory=NodeIO, node_name="b")
    async with (
        await BlockBackend.new_open(options=options("one", backing="b")) as one,
        await BlockBackend.new_open(options=options("two", backing="b")) as two,
    ):
        await base.unref()
        for blk, name in ((one, "one"), (two, "two")):
            blk.monitor_add_blk(name)
            assert not asleep(base)
            await blk.inactivate_root()
        assert asleep(base)
        assert asleep(base.children["file"].node)
        await one.invalidate_cache()
        assert not asleep(base)
        await two.invalidate_cache()
        await two.co_pwritev(0, b"x")
