"""Those who want to be told when nodes come, go and change thread."""

from __future__ import annotations

import pytest

from blockio.aio.context import AioContext
from blockio.backend import BlockBackend
from blockio.graph.mutate import replace_child
from blockio.graph.node import BlockNode
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm


def attached(context: AioContext) -> None:
    """Told with the new context."""


def detach() -> None:
    """Told in the old one."""


def registered(node: BlockNode | None) -> int:
    assert node is not None
    return node.aio_notifiers.count((attached, detach))


async def test_they_follow_the_root(blk: BlockBackend, disk: MemoryDisk) -> None:
    first = blk.bs
    blk.add_aio_context_notifier(attached, detach)
    assert registered(first) == 1
    with MemoryDisk(4096) as disk2:
        second = await open_node(options=disk2.options(), path_factory=NodeIO)
        assert blk.root is not None
        assert first is not None
        first.ref()
        await replace_child(blk.root, second)
        assert (registered(first), registered(second)) == (0, 1)
        await first.unref()
        await blk.remove_bs()
        assert registered(second) == 0
        await blk.insert_bs(second)
        assert registered(second) == 1
        guard = await BlockBackend.new_with_bs(second, Perm.NONE, Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE)
        third = await open_node(options=disk.options(**{"read-only": True}), path_factory=NodeIO)
        with pytest.raises(OSError, match="read-only"):
            await replace_child(blk.root, third)
        assert (registered(second), registered(third)) == (1, 0)  # told that it leaves, then that it stays
        await third.unref()
        await guard.close()
        await second.unref()
        blk.remove_aio_context_notifier(attached, detach)
        assert registered(second) == 0
        await blk.remove_bs()


async def test_one_that_was_never_added(blk: BlockBackend) -> None:
    with pytest.raises(ValueError, match="no such AioContext notifier"):
        blk.remove_aio_context_notifier(attached, detach)
    blk.add_aio_context_notifier(attached, detach)
    blk.add_aio_context_notifier(attached, detach)
    blk.remove_aio_context_notifier(attached, detach)
    assert registered(blk.bs) == 1
    blk.remove_aio_context_notifier(attached, detach)
    with pytest.raises(ValueError, match="it was added with"):
        blk.remove_aio_context_notifier(attached, detach)
    assert blk.bs is not None
    with pytest.raises(ValueError, match="no such AioContext notifier"):
        blk.bs.remove_aio_context_notifier(attached, detach)


async def test_the_same_one_twice(blk: BlockBackend) -> None:
    told: list[str] = []

    def notify() -> None:
        told.append("removing")

    once, twice = blk.add_remove_bs_notifier(notify), blk.add_remove_bs_notifier(notify)
    twice()
    with pytest.raises(RuntimeError, match="removed already"):
        twice()
    await blk.remove_bs()
    assert told == ["removing"]
    once()


async def test_a_notifier_that_fails_stops_the_removal(blk: BlockBackend) -> None:
    def notify() -> None:
        raise LookupError

    remove = blk.add_remove_bs_notifier(notify)
    with pytest.raises(LookupError):
        await blk.remove_bs()
    await blk.co_pwritev(0, b"x")
    remove()


async def test_the_public_part_and_back(blk: BlockBackend) -> None:
    assert blk.get_public() is blk.throttle
    assert BlockBackend.by_public(blk.get_public()) is blk
