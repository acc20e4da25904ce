"""Life: references, and what the last one takes along."""

from __future__ import annotations

import asyncio
import errno
import gc
import weakref

import pytest

from blockio.aio.context import IOThread
from blockio.backend import BlockBackend, DriveInfo, all_backends
from blockio.errors import BlockError
from blockio.graph.node import all_nodes
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm


async def settled() -> None:
    """Everything that can go on has."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_new_one_has_one_reference() -> None:
    blk = BlockBackend()
    assert blk.get_refcnt() == 1
    assert blk.enable_write_cache
    assert blk.bs is None
    assert all_backends() == [blk]
    await blk.unref()
    assert blk.get_refcnt() == 0
    assert blk.closed
    assert all_backends() == []


async def test_the_last_reference_drains_then_closes(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    blk.ref()
    await blk.unref()
    await blk.co_pwritev(0, b"x")
    disk.stall()
    request = blk.aio_pwritev(0, b"y")
    last = asyncio.create_task(blk.unref())
    await settled()
    assert not last.done()
    disk.go()
    await last
    await request
    assert disk.data[:1] == b"y"
    assert all_nodes() == []
    with pytest.raises(RuntimeError, match="is closed"):
        await blk.co_preadv(0, bytearray(1))


async def test_cancelled_while_it_drains_the_reference_is_still_there(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    disk.stall()
    request = blk.aio_pwritev(0, b"x")
    last = asyncio.create_task(blk.unref())
    await settled()
    last.cancel()
    with pytest.raises(asyncio.CancelledError):
        await last
    assert blk.get_refcnt() == 1
    disk.go()
    await request
    await blk.co_pwritev(0, b"y")
    await blk.unref()
    assert blk.closed


async def test_somebody_who_took_one_meanwhile_keeps_it(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    disk.stall()
    request = blk.aio_pwritev(0, b"x")
    last = asyncio.create_task(blk.unref())
    await settled()
    with pytest.raises(RuntimeError, match="being given back"):
        await blk.unref()
    blk.ref()
    disk.go()
    await last
    await request
    assert blk.get_refcnt() == 1
    await blk.co_pwritev(0, b"y")
    await blk.close()


async def test_what_keeps_the_last_reference_from_being_given_back(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    blk.monitor_add_blk("disk0")
    with pytest.raises(RuntimeError, match="monitor_remove_blk"):
        await blk.unref()
    blk.monitor_remove_blk()
    remove = blk.add_remove_bs_notifier(lambda: None)
    with pytest.raises(RuntimeError, match="has notifiers"):
        await blk.unref()
    remove()
    with pytest.raises(RuntimeError, match="removed already"):
        remove()
    await blk.unref()
    for again in (blk.unref, blk.close):
        with pytest.raises(RuntimeError, match="is closed already"):
            await again()
    with pytest.raises(RuntimeError, match="is closed"):
        blk.ref()


async def test_closing_takes_the_name_and_the_notifiers_along(disk: MemoryDisk) -> None:
    async with await BlockBackend.new_open(options=disk.options()) as blk:
        blk.monitor_add_blk("disk0")
        blk.add_insert_bs_notifier(lambda: None)
        blk.add_aio_context_notifier(lambda context: None, lambda: None)
    assert blk.closed
    assert BlockBackend.by_name("disk0") is None


async def test_closing_waits_for_those_who_hold_it(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    blk.monitor_add_blk("disk0")
    blk.ref()
    await blk.close()
    assert BlockBackend.by_name("disk0") is None
    await blk.co_pwritev(0, b"x")
    with pytest.raises(RuntimeError, match="is closed already"):
        await blk.close()
    await blk.unref()
    assert blk.closed


async def test_closed_by_its_maker_it_needs_no_more_tidying(disk: MemoryDisk) -> None:
    """Whoever gives back the last reference later, an iteration perhaps, is not the one to take notifiers back."""
    blk = await BlockBackend.new_open(options=disk.options())
    blk.add_insert_bs_notifier(lambda: None)
    blk.ref()
    await blk.close()
    await blk.unref()
    assert blk.closed


async def test_named_while_it_drains_it_stays(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    disk.stall()
    request = blk.aio_pwritev(0, b"x")
    last = asyncio.create_task(blk.unref())
    await settled()
    blk.monitor_add_blk("disk0")
    disk.go()
    with pytest.raises(RuntimeError, match="monitor_remove_blk"):
        await last
    await request
    assert blk.get_refcnt() == 1
    await blk.close()


async def test_a_notifier_that_fails_does_not_keep_the_image_open(disk: MemoryDisk) -> None:
    def notify() -> None:
        raise LookupError

    blk = await BlockBackend.new_open(options=disk.options())
    blk.add_remove_bs_notifier(notify)
    with pytest.raises(LookupError):
        await blk.close()
    assert blk.closed
    assert all_nodes() == []


async def test_two_give_back_at_once_from_other_threads(disk: MemoryDisk) -> None:
    async with IOThread() as thread:
        blk = await BlockBackend.new_open(options=disk.options(), context=thread.context)
        blk.ref()
        await asyncio.gather(blk.unref(), blk.unref())
        assert blk.closed
        assert all_nodes() == []


async def test_closing_fails_and_lets_go_of_everything(disk: MemoryDisk) -> None:
    blk = await BlockBackend.new_open(options=disk.options())
    await blk.co_pwritev(0, b"x")
    disk.fail = BlockError("the disk is gone", errno.EIO)
    with pytest.raises(BlockError, match="the disk is gone"):
        await blk.close()
    disk.fail = None
    assert blk.closed
    assert all_nodes() == []


async def test_inside_a_request_it_refuses(disk: MemoryDisk) -> None:
    failures: list[BaseException] = []
    async with await BlockBackend.new_open(options=disk.options()) as blk:

        async def end_it() -> None:
            for end in (blk.unref, blk.close):
                try:
                    await end()
                except RuntimeError as error:
                    failures.append(error)

        arrive = disk.arrive

        async def trap(operation: str, offset: int, nbytes: int) -> None:
            await arrive(operation, offset, nbytes)
            if operation == "read":
                await end_it()

        disk.arrive = trap  # type: ignore[method-assign]  # the one place inside a request
        await blk.co_preadv(0, bytearray(1))
        assert len(failures) == 2
        assert blk.get_refcnt() == 1


async def test_from_another_thread(disk: MemoryDisk) -> None:
    async with IOThread() as thread:
        blk = await BlockBackend.new_open(options=disk.options(), context=thread.context)
        blk.ref()
        await blk.unref()
        await blk.unref()
        assert blk.closed


async def test_a_failed_start_leaves_nothing(disk: MemoryDisk) -> None:
    node = await open_node(options=disk.options(), path_factory=NodeIO)
    with pytest.raises(BlockError):
        async with await BlockBackend.new_with_bs(node, Perm.WRITE, Perm.NONE):
            await BlockBackend.new_with_bs(node, Perm.WRITE, Perm.ALL)
    await node.unref()
    assert all_backends() == []


async def test_removing_every_root(disk: MemoryDisk) -> None:
    with MemoryDisk(4096) as other:
        one = await BlockBackend.new_open(options=disk.options())
        two = await BlockBackend.new_open(options=other.options())
        async with BlockBackend() as empty:
            await two.co_pwritev(0, b"x")
            other.fail = BlockError("the disk is gone", errno.EIO)
            with pytest.raises(ExceptionGroup) as caught:
                await BlockBackend.remove_all_bs()
            assert [str(error) for error in caught.value.exceptions] == ["the disk is gone"]
            other.fail = None
            assert [blk.bs for blk in (one, two, empty)] == [None, None, None]
            assert all_nodes() == []
            await BlockBackend.remove_all_bs()
        await one.close()
        await two.close()


async def test_legacy_drive_info() -> None:
    info, twin = DriveInfo("ide0-hd0", {"if": "ide"}), DriveInfo("ide0-hd0", {"if": "ide"})
    async with BlockBackend() as blk:
        assert blk.legacy_dinfo() is None
        assert blk.set_legacy_dinfo(info) is info
        with pytest.raises(RuntimeError, match="has a DriveInfo already"):
            blk.set_legacy_dinfo(twin)
        with pytest.raises(LookupError, match="monitor_add_blk"):
            BlockBackend.by_legacy_dinfo(info)
        blk.monitor_add_blk("ide0-hd0")
        assert BlockBackend.by_legacy_dinfo(info) is blk
        with pytest.raises(LookupError):
            BlockBackend.by_legacy_dinfo(twin)
    assert blk.legacy_dinfo() is None


async def test_forgotten_and_empty_it_is_simply_gone() -> None:
    seen = weakref.ref(BlockBackend())
    gc.collect()
    assert seen() is None
