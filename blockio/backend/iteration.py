"""Walking over the backends and the nodes at the top of the graphs.

Stands on the system *bds-iteration* of the reference document, and on the lists of *naming-monitor-list*. Nodes at the
top are the roots of backends, and the nodes that only the monitor holds; each is met once, however many backends are on
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING

from blockio.aio.context import finish
from blockio.backend.core import BackendCore
from blockio.backend.names import all_backends
from blockio.graph.names import monitor_owned

if TYPE_CHECKING:
    from blockio.backend.backend import BlockBackend
    from blockio.graph.node import BlockNode

__all__ = ["BdrvNextIterator", "first_blk", "has_blk", "is_root_node", "top_nodes"]


def first_blk(node: BlockNode) -> BackendCore | None:
    """The first backend among *node*'s users, or None (``bdrv_first_blk``)."""
    return next((edge.parent for edge in node.parents if isinstance(edge.parent, BackendCore)), None)


def has_blk(node: BlockNode) -> bool:
    """Whether a backend uses *node* directly (``bdrv_has_blk``)."""
    return first_blk(node) is not None


def is_root_node(node: BlockNode) -> bool:
    """Whether only backends use *node*; also where nobody does (``bdrv_is_root_node``)."""
    return all(isinstance(edge.parent, BackendCore) for edge in node.parents)


class BdrvNextIterator(AbstractAsyncContextManager["BdrvNextIterator"]):
    """A walk over the nodes at the top: ``first``, ``next`` until None, and ``cleanup`` where it is left earlier.

    Between two steps it holds a reference on the node it gave, and on the backend it found it by, so that both are
    still there. ``async with`` cleans up; ``top_nodes()`` is the comfortable form. One walker at a time.
    """

    def __init__(self) -> None:
        self._blk: BlockBackend | None = None
        self._node: BlockNode | None = None
        self._seen: set[BlockBackend] = set()
        self._owned: list[BlockNode] | None = None

    async def first(self) -> BlockNode | None:
        """Start anew; the first node, or None where there is none (``bdrv_first``)."""
        await self.cleanup()
        return await self.next()

    async def next(self) -> BlockNode | None:
        """The next node, held until the step after; None behind the last (``bdrv_next``)."""
        before = self._blk, self._node
        self._blk = self._node = None
        try:
            if self._owned is None:
                await self._next_root()
            if self._node is None:
                await self._next_owned()
        finally:
            await _let_go(*before)
        return self._node

    async def cleanup(self) -> None:
        """Let go of what is held and begin anew with the next step (``bdrv_next_cleanup``)."""
        before = self._blk, self._node
        self._reset()
        await _let_go(*before)

    def _reset(self) -> None:
        """At the beginning, holding nothing (``bdrv_next_reset``)."""
        self._blk = self._node = None
        self._seen = set()
        self._owned = None

    async def _next_root(self) -> None:
        for blk in all_backends():
            if blk in self._seen:
                continue
            self._seen.add(blk)
            if await blk.context.run(self._hold_root(blk)):
                return
        # From here on the roots are behind us, those that come later too.
        self._owned = monitor_owned()
        self._seen = set()

    async def _hold_root(self, blk: BlockBackend) -> bool:
        """In *blk*'s own thread: whether its root is to be met by it, and then it is held."""
        node = blk.bs
        if blk.get_refcnt() == 0 or node is None or node.refcnt == 0 or first_blk(node) is not blk:
            return False
        blk.ref()
        self._blk, self._node = blk, node.ref()
        return True

    async def _next_owned(self) -> None:
        assert self._owned is not None
        while self._owned:
            node = self._owned.pop(0)
            if await node.context.run(self._hold_owned(node)):
                return

    async def _hold_owned(self, node: BlockNode) -> bool:
        if node.refcnt == 0 or has_blk(node):
            return False
        self._node = node.ref()
        return True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.cleanup()


async def _let_go(blk: BlockBackend | None, node: BlockNode | None) -> None:
    """Give both references back, the node's first; to the end even if cancelled."""
    if node is not None:
        await finish(asyncio.ensure_future(_give_back(blk, node)))


async def _give_back(blk: BlockBackend | None, node: BlockNode) -> None:
    try:
        await node.context.run(node.unref())
    finally:
        if blk is not None:
            await blk.unref()


async def top_nodes() -> AsyncGenerator[BlockNode, None]:
    """``async for node in top_nodes():`` each node at the top once; each is there until the next step.

    Leave it early only inside ``contextlib.aclosing(top_nodes())``, which lets go of the last one at once.
    """
    async with BdrvNextIterator() as walk:
        while (node := await walk.next()) is not None:
            yield node
