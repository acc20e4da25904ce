"""Padding to the request alignment, and read-modify-write.

A disk with blocks of *align* bytes takes only whole blocks. A request that begins or ends inside one is widened: what
is read there is thrown away, what is written there is read first and written back. QEMU: BdrvRequestPadding.

::

    blocks   |       |       |       |
    request      xxxxxxxxxxxxxxx
    padded   hhhhxxxxxxxxxxxxxxxttttt       head, tail
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.buffers import IoVector
from blockio.io.memory import block_memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio.driver.debug import DebugEvent, DebugListener

__all__ = ["Padding"]


class Padding:
    """How the request ``offset .. offset + nbytes`` is widened to ``start .. end``, whole blocks of *align* bytes.

    ``head`` and ``tail`` are the bytes added before and behind; at least one of them is not 0. ``memory`` holds the
    first block and, where the request ends in a later one, the last block.
    """

    __slots__ = ("_align", "end", "head", "memory", "start", "tail")

    def __init__(self, offset: int, nbytes: int, align: int) -> None:
        mask = align - 1
        self.start = offset & ~mask
        self.end = (offset + nbytes + mask) & ~mask
        self.head = offset - self.start
        self.tail = self.end - offset - nbytes
        self._align = align
        blocks = 2 if self.head and self.tail and self.end - self.start > align else 1
        self.memory = block_memory(blocks * align, align)

    @property
    def merged(self) -> bool:
        """Whether head and tail lie in one block or in two neighbours: then one read serves both."""
        return self.end - self.start == self.memory.nbytes

    def around(self, iov: IoVector) -> IoVector:
        """*iov* with the padding's memory before and behind it."""
        views = list(iov.views)
        if self.head:
            views.insert(0, self.memory[: self.head])
        if self.tail:
            views.append(self.memory[self.memory.nbytes - self.tail :])
        return IoVector(views, self.end - self.start)

    async def read_edges(
        self, read: Callable[[int, IoVector], Awaitable[None]], debug_event: DebugListener | None = None
    ) -> None:
        """The read of read-modify-write: fill ``memory`` with what the edge blocks hold.

        An error of *read* propagates: writing back bytes that could not be read would destroy them.
        """
        if self.merged:
            if debug_event is not None:
                await self._tell_merged(debug_event, "pwritev_rmw_head", "pwritev_rmw_tail")
            await read(self.start, IoVector.of(self.memory))
            if debug_event is not None:
                await self._tell_merged(debug_event, "pwritev_rmw_after_head", "pwritev_rmw_after_tail")
            return
        if self.head:
            if debug_event is not None:
                await debug_event("pwritev_rmw_head")
            await read(self.start, IoVector.of(self.memory[: self._align]))
            if debug_event is not None:
                await debug_event("pwritev_rmw_after_head")
        if self.tail:
            if debug_event is not None:
                await debug_event("pwritev_rmw_tail")
            await read(self.end - self._align, IoVector.of(self.memory[self.memory.nbytes - self._align :]))
            if debug_event is not None:
                await debug_event("pwritev_rmw_after_tail")

    async def _tell_merged(self, debug_event: DebugListener, head: DebugEvent, tail: DebugEvent) -> None:
        if self.head:
            await debug_event(head)
        if self.tail:
            await debug_event(tail)
