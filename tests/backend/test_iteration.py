"""Walking over the nodes at the top: each once, each still there while it is looked at."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from blockio.aio.context import IOThread
from blockio.backend import BdrvNextIterator, BlockBackend, first_blk, has_blk, is_root_node, top_nodes
from blockio.graph.names import monitor_disown, monitor_own
from blockio.graph.node import BlockNode, all_nodes
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk
from blockio.types import Perm


async def walk() -> list[str]:
    return [node.node_name async for node in top_nodes()]


@pytest.fixture
async def three(disk: MemoryDisk) -> AsyncIterator[list[BlockNode]]:
    """``a`` with two backends, ``b`` with one behind an empty one, ``c`` held by the monitor only."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for name in "abc":
            nodes.append(await open_node(options=disk.options(), path_factory=NodeIO, node_name=name))
            stack.push_async_callback(nodes[-1].unref)
        a, b, c = nodes
        for node in (a, a, None, b):
            blk = BlockBackend(Perm.CONSISTENT_READ)
            await stack.enter_async_context(blk)
            if node is not None:
                await blk.insert_bs(node)
        monitor_own(c)
        stack.push_async_callback(monitor_disown, c)
        yield nodes


async def test_each_node_once(three: list[BlockNode]) -> None:
    a, b, c = three
    assert await walk() == ["a", "b", "c"]
    monitor_own(a)  # a backend is on it: met there, not twice
    assert await walk() == ["a", "b", "c"]
    await monitor_disown(a)
    with pytest.raises(ValueError, match="does not hold"):
        await monitor_disown(b)
    with pytest.raises(ValueError, match="holds node 'c' already"):
        monitor_own(c)


async def test_what_is_looked_at_stays(three: list[BlockNode]) -> None:
    a, b, _ = three
    counts = [node.refcnt for node in three]
    blk = first_blk(a)
    assert isinstance(blk, BlockBackend)
    async with BdrvNextIterator() as nodes:
        assert await nodes.first() is a
        assert (a.refcnt, blk.get_refcnt()) == (counts[0] + 1, 2)
        assert await nodes.next() is b
        assert (a.refcnt, blk.get_refcnt()) == (counts[0], 1)
        assert b.refcnt == counts[1] + 1
        await nodes.cleanup()
        assert [node.refcnt for node in three] == counts
        assert await nodes.first() is a
    assert [node.refcnt for node in three] == counts
    async with contextlib.aclosing(top_nodes()) as generator:
        async for node in generator:
            assert node is a
            break
    assert [node.refcnt for node in three] == counts


async def test_nodes_that_go_while_we_walk(disk: MemoryDisk) -> None:
    seen = []
    one = await BlockBackend.new_open(options=disk.options(), node_name="one")
    two = await BlockBackend.new_open(options=disk.options(), node_name="two")
    async for node in top_nodes():
        seen.append(node.node_name)
        if node.node_name == "one":
            await one.close()  # ours holds it until the next step
            assert not one.closed
            await two.close()
    assert seen == ["one"]
    assert one.closed
    assert all_nodes() == []


async def test_nodes_of_other_threads(disk: MemoryDisk) -> None:
    async with IOThread() as thread:
        there = await BlockBackend.new_open(options=disk.options(), node_name="there", context=thread.context)
        async with await BlockBackend.new_open(options=disk.options(), node_name="here"):
            assert await walk() == ["there", "here"]
        await there.close()


async def test_who_uses_a_node(disk: MemoryDisk) -> None:
    options = {"driver": "raw", "node-name": "top", "file": {**disk.options(), "node-name": "below"}}
    async with await BlockBackend.new_open(options=options) as blk:
        top = blk.bs
        assert top is not None
        below = top.children["file"].node
        assert first_blk(top) is blk
        assert (has_blk(top), has_blk(below)) == (True, False)
        assert (is_root_node(top), is_root_node(below)) == (True, False)
        async with await BlockBackend.new_with_bs(below, Perm.NONE, Perm.ALL) as other:
            assert first_blk(below) is other
            assert has_blk(below)
            assert not is_root_node(below)
            assert await walk() == ["top", "below"]
    free = await open_node(options=disk.options(), path_factory=NodeIO)
    assert is_root_node(free)
    assert not has_blk(free)
    await free.unref()
