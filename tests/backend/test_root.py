"""The root: inserted, removed, replaced, and told about; permissions and what others hold."""

from __future__ import annotations

import asyncio
import errno
import gc

import pytest

from blockio.aio.context import IOThread
from blockio.backend import BlockBackend, all_backends
from blockio.errors import BlockError, NoMedium, OptionError, PermissionConflict
from blockio.graph.mutate import replace_child
from blockio.graph.node import all_nodes
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm


async def test_inserted_and_removed(disk: MemoryDisk) -> None:
    events: list[str] = []
    node = await open_node(options=disk.options(), path_factory=NodeIO)
    async with BlockBackend(Perm.CONSISTENT_READ | Perm.WRITE) as blk:
        blk.add_insert_bs_notifier(lambda: events.append(f"inserted {blk.bs is node}"))
        blk.add_remove_bs_notifier(lambda: events.append(f"removing {blk.bs is node}"))
        assert not blk.is_inserted()
        await blk.insert_bs(node)
        assert node.refcnt == 2
        assert blk.is_available()
        assert blk.root is not None
        await blk.co_pwritev(0, b"x")
        with pytest.raises(RuntimeError, match="has a root"):
            await blk.insert_bs(node)
        await blk.remove_bs()
        assert node.refcnt == 1
        assert blk.bs is None
        with pytest.raises(NoMedium):
            await blk.co_pwritev(0, b"x")
        with pytest.raises(RuntimeError, match="has no root"):
            await blk.remove_bs()
        await blk.insert_bs(node)
        await node.unref()
    assert events == ["inserted True", "removing True", "inserted True", "removing True"]


async def test_removal_drains_first(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    request = blk.aio_pwritev(0, b"x")
    removal = asyncio.create_task(blk.remove_bs())
    for _ in range(5):
        await asyncio.sleep(0)
    late = blk.aio_pwritev(0, b"y")
    assert not removal.done()
    disk.go()
    await removal
    await request
    with pytest.raises(NoMedium):
        await late
    assert disk.data[:1] == b"x"


async def test_a_cancelled_removal_leaves_the_root(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.stall()
    request = blk.aio_pwritev(0, b"x")
    removal = asyncio.create_task(blk.remove_bs())
    for _ in range(5):
        await asyncio.sleep(0)
    removal.cancel()
    with pytest.raises(asyncio.CancelledError):
        await removal
    disk.go()
    await request
    assert blk.is_available()
    await blk.co_pwritev(0, b"y")


async def test_a_root_replaced_under_load(blk: BlockBackend, disk: MemoryDisk) -> None:
    """As a live snapshot does it: requests before go to the old node, those after to the new one, none is lost."""
    with MemoryDisk(len(disk.data), fast=False) as other:
        new = await open_node(options=other.options(), path_factory=NodeIO)
        assert blk.root is not None
        requests = [blk.aio_pwritev(n, b"a") for n in range(10)]
        swap = asyncio.create_task(replace_child(blk.root, new))
        await asyncio.sleep(0)
        late = [blk.aio_pwritev(n, b"b") for n in range(10)]
        await swap
        await new.unref()
        for request in requests + late:
            await request
        assert blk.bs is new
        assert disk.data[:10] == b"a" * 10
        assert other.data[:10] == b"b" * 10
        await blk.remove_bs()


async def test_a_replacement_that_fails_changes_nothing(blk: BlockBackend, disk: MemoryDisk) -> None:
    with MemoryDisk(len(disk.data)) as other:
        new = await open_node(options=other.options(), path_factory=NodeIO)
        guard = await BlockBackend.new_with_bs(new, Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
        await new.unref()
        assert blk.root is not None
        with pytest.raises(PermissionConflict):
            await replace_child(blk.root, new)
        await blk.co_pwritev(0, b"x")
        disk.fast = True
        assert blk.try_preadv(0, bytearray(1))
        await guard.close()


async def test_permissions_of_two_users(blk: BlockBackend) -> None:
    assert blk.bs is not None
    assert blk.get_perm() == (Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE, Perm.ALL)
    with pytest.raises(PermissionConflict, match="both required by a block device"):
        await BlockBackend.new_with_bs(blk.bs, Perm.CONSISTENT_READ, Perm.CONSISTENT_READ)
    blk.set_perm(Perm.CONSISTENT_READ, Perm.ALL)
    async with await BlockBackend.new_with_bs(blk.bs, Perm.CONSISTENT_READ, Perm.CONSISTENT_READ) as reader:
        reader.monitor_add_blk("reader")
        with pytest.raises(PermissionConflict, match="unshared by reader") as caught:
            blk.set_perm(Perm.WRITE, Perm.ALL)
        assert caught.value.errno == errno.EPERM
        assert blk.get_perm() == (Perm.CONSISTENT_READ, Perm.ALL)
    blk.set_perm(Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
    assert blk.is_writable()
    await blk.co_pwritev(0, b"x")
    assert [other for other in all_backends() if other is not blk] == []


async def test_inactive_and_active_again(blk: BlockBackend) -> None:
    assert blk.root is not None
    assert blk.bs is not None
    with pytest.raises(BlockError) as caught:  # nameless, and it writes
        blk.inactivate(blk.root)
    assert caught.value.errno == errno.EPERM
    blk.monitor_add_blk("disk0")
    blk.inactivate(blk.root)
    blk.inactivate(blk.root)
    async with await BlockBackend.new_with_bs(blk.bs, Perm.WRITE, Perm.NONE):
        with pytest.raises(PermissionConflict):
            blk.activate(blk.root)
    blk.activate(blk.root)
    blk.activate(blk.root)
    assert blk.get_perm()[0] & Perm.WRITE
    await blk.co_pwritev(0, b"x")


async def test_a_backend_in_use_does_not_move(blk: BlockBackend) -> None:
    assert blk.root is not None
    async with IOThread() as thread:
        with pytest.raises(BlockError, match="Cannot change iothread of active block backend"):
            blk.can_set_context(blk.root, thread.context, set())
        async with BlockBackend(Perm.NONE, context=thread.context) as stranger:
            assert blk.bs is not None
            with pytest.raises(RuntimeError, match="lives in"):
                await stranger.insert_bs(blk.bs)


async def test_a_failed_open_leaves_nothing(disk: MemoryDisk) -> None:
    for options in ({"driver": "memory", "disk": "nobody"}, disk.options(**{"no-such": "1"}), {"driver": "nope"}):
        with pytest.raises(OptionError):
            await BlockBackend.new_open(options=options)
    assert all_backends() == []
    assert all_nodes() == []


@pytest.mark.leaves_behind("a backend that is not closed is the subject")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_forgotten_it_warns(disk: MemoryDisk, recwarn: pytest.WarningsRecorder) -> None:
    blk: BlockBackend | None = await BlockBackend.new_open(options=disk.options())
    assert blk is not None
    blk = None
    with pytest.warns(ResourceWarning, match="was never closed"):
        gc.collect()


async def test_a_root_inherits_nothing(disk: MemoryDisk) -> None:
    """Children that were opened for a node follow its flags; a backend has none that its root could follow."""
    options = {"driver": "raw", "file": disk.options()}
    async with await BlockBackend.new_open(options=options) as blk:
        assert blk.root is not None
        assert blk.bs is not None
        assert not blk.root.inherits
        assert blk.bs.children["file"].inherits
