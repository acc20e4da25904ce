"""Accounting node by node: which layer costs what.

A node counts nothing by itself: on the fast lane even an addition in each layer would show. Asked to
(``blk.account_nodes()``), a ``CountedPath`` is put before the request path of every node below the backend, and the
edges bind it in place of the path itself; taken away again, nothing of it is left. Times are those of a node and all
below it: the layer itself costs the difference to the lines under its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from blockio.backend.accounting import REQUEST_COST, Accounting
from blockio.backend.core import BackendCore

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.backend.accounting import Kind, TryTransfer
    from blockio.backend.statistics import Statistics
    from blockio.buffers import IoVector
    from blockio.graph.node import BlockNode
    from blockio.graph.path import RequestPath
    from blockio.types import RequestFlags

__all__ = ["CountedPath", "NodeAccounting"]


class CountedPath:
    """What edges bind in place of a node's *path* while the node is accounted for: the same requests, counted."""

    def __init__(self, path: RequestPath) -> None:
        self.path = path
        self.stats = Accounting()
        self.stats.lanes_changed = self._bind
        self.co_truncate = path.co_truncate
        self.co_getlength = path.co_getlength
        self.co_block_status = path.co_block_status
        self.co_get_info = path.co_get_info
        self._try_read: TryTransfer = path.try_preadv
        self._try_write: TryTransfer = path.try_pwritev
        self.stats.set_timing(True)

    def _bind(self) -> None:
        self._try_read = self.stats.timed_lane(self.path.try_preadv, self.stats.read)
        self._try_write = self.stats.timed_lane(self.path.try_pwritev, self.stats.write)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Counted, as all here."""
        with _Counted(self.stats, "read", iov.nbytes):
            await self.path.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """A write."""
        with _Counted(self.stats, "write", iov.nbytes):
            await self.path.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """A write as well."""
        with _Counted(self.stats, "write", nbytes):
            await self.path.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """An unmap."""
        with _Counted(self.stats, "unmap", nbytes):
            await self.path.co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """A flush."""
        with _Counted(self.stats, "flush", 0):
            await self.path.co_flush()

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Counted where it succeeds; else the slow lane is."""
        if self._try_read(offset, bufs, nbytes):
            counters = self.stats.read
            counters.operations += 1
            counters.weight += nbytes + REQUEST_COST
            return True
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """As ``try_preadv``."""
        if self._try_write(offset, bufs, nbytes):
            counters = self.stats.write
            counters.operations += 1
            counters.weight += nbytes + REQUEST_COST
            return True
        return False

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Not while each node takes its own time: the slow lane does."""
        return None

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """As ``start_preadv``."""
        return None


class _Counted:
    """``with`` around one request of a node."""

    __slots__ = ("_began", "_counters", "_nbytes", "_stats")

    def __init__(self, stats: Accounting, kind: Kind, nbytes: int) -> None:
        self._stats = stats
        self._counters = stats.counters(kind)
        self._nbytes = nbytes

    def __enter__(self) -> None:
        self._began = self._stats.begin()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stats.ended(self._counters, self._nbytes, self._began, error)


class NodeAccounting(BackendCore):
    """``account_nodes`` and ``node_stats``. In the backend's own loop."""

    def account_nodes(self, on: bool = True) -> None:
        """Account for every node that is below the root now, from zero on; or no longer, with *on* false.

        A node that is there already goes on counting. Nodes that come later are not accounted for until this is called
        again. Each look at the clock is some 60 ns a layer.
        """
        self._must_be_home("account_nodes", "await blk.context.run(...) something that calls it")
        for node in self._nodes_below():
            if (node.counted is not None) is on:
                continue
            node.counted = CountedPath(node.path) if on else None
            for edge in node.parents:
                edge.bind()
                if isinstance(edge.parent, BackendCore):
                    edge.parent._bind_lanes()

    def node_stats(self) -> list[Statistics]:
        """A snapshot of each accounted node below the root by its name, parents before children."""
        counted = [(node, node.counted) for node in self._nodes_below()]
        return [path.stats.snapshot(node.node_name) for node, path in counted if isinstance(path, CountedPath)]

    def _nodes_below(self) -> list[BlockNode]:
        found: dict[BlockNode, None] = {}
        queue = [] if self.bs is None else [self.bs]
        while queue:
            node = queue.pop(0)
            if node not in found:
                found[node] = None
                queue += [edge.node for edge in node.children.values()]
        return list(found)
