"""What a node needs from the rooms to its right.

Imports go only leftward, so the graph cannot name ``blockio.io`` or ``blockio.backend``. It says here what it
needs of them: ``RequestPath`` is the way a request takes through one node (``blockio.io.NodeIO`` is the one
implementation), ``ChildParent`` is whoever holds a node: another node, a backend, a job.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul, Part, Put
    from blockio.buffers import IoVector
    from blockio.driver.base import BlockDriver
    from blockio.graph.edge import Edge
    from blockio.graph.holes import Holes
    from blockio.graph.node import BlockNode
    from blockio.types import BlockInfo, BlockLimits, BlockStatus, BlockStatuses, PreallocMode, RequestFlags

__all__ = ["ChildParent", "EdgePath", "PassiveParent", "PathFactory", "RequestPath"]


class EdgePath(Protocol):
    """What an edge binds of a node's request path."""

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None: ...
    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None: ...
    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None: ...
    async def co_pdiscard(self, offset: int, nbytes: int) -> None: ...
    async def co_flush(self) -> None: ...
    async def co_truncate(
        self, length: int, *, exact: bool = False, prealloc: PreallocMode | str = "off", flags: RequestFlags | int = 0
    ) -> None: ...
    async def co_getlength(self) -> int: ...
    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus: ...
    async def co_get_info(self) -> BlockInfo: ...
    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool: ...
    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool: ...
    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None: ...
    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None: ...


class Cargo(NamedTuple):
    """What is to be copied: *parts* of the protocol driver *source*; one of them, all of it, where there is no *haul*.

    With one ``phase`` is how far behind the beginning a multiple of its step is in the disk that is written.
    """

    source: BlockDriver
    parts: tuple[Part, ...]
    haul: Haul | None
    phase: int

    def behind(self, nbytes: int) -> Cargo:
        """What follows the first *nbytes*."""
        parts = tuple(
            part._replace(
                start=max(part.start - nbytes, 0),
                stop=part.stop - nbytes,
                offset=part.offset + max(nbytes - part.start, 0),
            )
            for part in self.parts
            if part.stop > nbytes
        )
        return self._replace(parts=parts, phase=self.phase - nbytes)


class RequestPath(EdgePath, Protocol):
    """The request path of one node. Offsets and lengths are bytes.

    Invariant: ``in_flight`` is the number of requests that have entered and not left, in either lane's view (the
    fast lane never suspends, so it needs no count). Whoever brings it to 0 calls ``node.kick()``.
    """

    @property
    def in_flight(self) -> int: ...

    limits: BlockLimits
    """The driver's limits merged with the DATA, FILTERED and COW children's."""

    async def co_copy_range_to(
        self, offset: int, target: Edge, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None: ...
    async def co_copy_range_from(self, cargo: Cargo, offset: int, nbytes: int, *, packed: int = 0) -> list[Put]:
        """The other end of ``co_copy_range_to``: *cargo* says which protocol driver holds the bytes."""

    def request(self, start: int, end: int) -> AbstractAsyncContextManager[None]:
        """``async with path.request(start, end):`` something that a drain waits for."""

    async def co_block_statuses(self, offset: int, nbytes: int, holes: Holes | None = None) -> list[BlockStatuses]:
        """As many answers of ``co_block_status`` in a row as memory has, else one; for a look at the whole disk.

        *holes* keeps what one step of it found out for the others.
        """

    async def co_is_allocated_above(self, base: BlockNode | None, offset: int, nbytes: int) -> tuple[int, int]:
        """The depth (1 for this node) of the layer above *base* that has the first bytes, 0 for none; how many bytes.

        None asks all layers. A layer that ends early has what it leaves to those above as zeroes.
        """

    def refresh_limits(self) -> None:
        """The driver's or a child's limits, or the set of children, changed."""

    def refresh_lanes(self) -> None:
        """Something that decides over the fast lane changed: no driver, read-only, copy-on-read, children, bitmaps."""


PathFactory = Callable[["BlockNode"], RequestPath]


class ChildParent(Protocol):
    """Whoever stands above a node: asked before the node changes, told when it did (QEMU's BdrvChildClass).

    Every method is called in the node's context. None may suspend but ``drained_begin``'s effect may take time:
    ``drained_poll`` says whether requests of this parent are still under way.
    """

    def parent_desc(self) -> str:
        """For messages: ``node 'n0'``, a backend's name, ``a block device``."""

    def drained_begin(self, edge: Edge) -> None:
        """Send nothing more through *edge*. Nests."""

    def drained_poll(self, edge: Edge) -> bool:
        """True while this parent still has requests under way that will end through *edge*."""

    def drained_end(self, edge: Edge) -> None:
        """Undo one drained_begin."""

    def resized(self, edge: Edge) -> None:
        """The child's length changed."""

    def change_media(self, edge: Edge, load: bool) -> None:
        """The child's medium was put in (*load*), or is gone."""

    def attached(self, edge: Edge) -> None:
        """*edge* now leads to ``edge.node``."""

    def detached(self, edge: Edge) -> None:
        """*edge* is about to leave ``edge.node``."""

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """May the child (and with it this parent) move to *context*? Raises BlockError(EPERM) if not."""

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """The child moves to *context* now; it was allowed."""

    def activate(self, edge: Edge) -> None:
        """The node is active again: take permissions back. May raise PermissionConflict."""

    def inactivate(self, edge: Edge) -> None:
        """The node becomes inactive: give permissions up. May raise."""


class PassiveParent:
    """What a ``ChildParent`` does that sends nothing by itself and keeps nothing of the node's: no drain waits for it.

    The rest is ``parent_desc``.
    """

    def drained_begin(self, edge: Edge) -> None:
        """There is nothing to hold back."""

    def drained_poll(self, edge: Edge) -> bool:
        """Never busy: the node itself knows of the requests in flight in it."""
        return False

    def drained_end(self, edge: Edge) -> None:
        """Nothing was held back."""

    def resized(self, edge: Edge) -> None:
        """No length is kept."""

    def change_media(self, edge: Edge, load: bool) -> None:
        """Nor what medium there is."""

    def attached(self, edge: Edge) -> None:
        """Whoever attached it knows."""

    def detached(self, edge: Edge) -> None:
        """As above."""

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """It may move wherever the node does."""

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """It has nothing to bring along."""

    def activate(self, edge: Edge) -> None:
        """Nothing was given up."""

    def inactivate(self, edge: Edge) -> None:
        """There is nothing to give up."""
