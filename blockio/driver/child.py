"""What a driver sees of the nodes below it.

The graph's ``Edge`` is the one implementation; a driver holds ``Child`` objects and nothing else of the graph.
All offsets and lengths are bytes. The slow lane's coroutines go through the child node's whole request path
(alignment, tracking, splitting, emulation); the fast lane's ``try_`` functions never suspend and answer False,
having done nothing, whenever the slow lane is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul
    from blockio.buffers import IoVector
    from blockio.driver.debug import DebugListener
    from blockio.types import BlockInfo, BlockLimits, BlockStatus, PreallocMode, RequestFlags, Role

__all__ = ["Child"]


@runtime_checkable
class Child(Protocol):
    """One edge from a parent to the node below it."""

    @property
    def name(self) -> str:
        """The edge's name: ``file``, ``backing``, ``data-file`` …"""

    @property
    def role(self) -> Role:
        """What the child is to its parent."""

    @property
    def node_name(self) -> str:
        """The child node's name, which ``BlockStatus.node_name`` uses too."""

    @property
    def filename(self) -> str:
        """The child node's name for people: a file name where there is one, else a ``json:`` form."""

    @property
    def length(self) -> int:
        """The child's length in bytes as last known. Never suspends; see ``co_getlength``."""

    @property
    def limits(self) -> BlockLimits:
        """What the child node takes in one request."""

    @property
    def read_only(self) -> bool:
        """Whether the child node was opened (or fell back to being) read-only."""

    @property
    def driver_name(self) -> str:
        """The child's driver, for messages: ``qcow2``."""

    @property
    def can_compress(self) -> bool:
        """Whether the child takes writes with WRITE_COMPRESSED."""

    @property
    def debug_event(self) -> DebugListener | None:
        """Where to tell what happens above the child; None where nobody wants to know. See ``driver.debug``."""

    def has_zero_init(self) -> bool:
        """Whether the child, if it is new, reads as zeroes without anybody writing them (a file does, a device not)."""

    # -- the slow lane: each may raise any BlockError, and may be cancelled, after which the child works on

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Fill *iov* from *offset*. Bytes past the child's end read as zeroes."""

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Write *iov* at *offset*. Past the end it grows the child where the parent holds RESIZE."""

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """Make *nbytes* from *offset* read as zeroes."""

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """Say that *nbytes* from *offset* are no longer needed; their content is undefined afterwards."""

    async def co_flush(self) -> None:
        """Put everything acknowledged so far onto stable storage."""

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """Set the child's length. New bytes read as zeroes where *flags* has ZERO_WRITE or the driver says so."""

    async def co_getlength(self) -> int:
        """The length in bytes, asked anew where it may have changed behind our back."""

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """What the first bytes from *offset* hold, as far as one answer reaches (QEMU's bdrv_block_status)."""

    async def co_copy_range_to(
        self, offset: int, target: Child, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None:
        """Copy inside the storage, without the bytes passing through us, or by *haul* through a worker of theirs.

        UnsupportedFeature: do it by hand.
        """

    async def co_get_info(self) -> BlockInfo:
        """The child driver's cluster size and state."""

    # -- the fast lane

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Fill *bufs* (*nbytes* in all) now, or answer False having done nothing of consequence."""

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Write *bufs* now, or answer False having written nothing."""

    # -- started by a plain call, ended by an engine; who starts one awaits its ``land``

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Begin to fill *bufs*, or answer None having done nothing."""

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Begin to write *bufs*, or answer None having written nothing."""
