"""Drivers that say where bytes are, and the room they give to a write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from blockio.driver.block import BlockDriver, DriverKind
from blockio.errors import UnsupportedFeature
from blockio.types import BlockStatus, Extent, ExtentKind, Extents, RequestFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.hauling import Put
    from blockio.buffers import IoVector
    from blockio.driver.child import Child
    from blockio.driver.host import CreateTarget

__all__ = ["Allocation", "FormatDriver"]


class Allocation(ABC):
    """Room for guest bytes ``offset .. offset+length``, seen by nobody until it is linked.

    The framework writes ``cow_head`` bytes of old content, the data and ``cow_tail`` bytes of old content as one
    request to ``child`` at ``host_offset - cow_head``, then awaits ``link``; if anything failed, ``abandon``.
    Exactly one of the two is called, shielded from cancellation. ``fresh`` says the host bytes around the data
    already read as zeroes, so that COW from nothing need not be written. ``divisible``: ``link_parts`` may be awaited
    instead of ``link``.
    """

    __slots__ = ("child", "cow_head", "cow_tail", "divisible", "fresh", "host_offset", "length", "offset")

    def __init__(
        self,
        child: Child,
        offset: int,
        length: int,
        host_offset: int,
        *,
        cow_head: int = 0,
        cow_tail: int = 0,
        fresh: bool = False,
        divisible: bool = False,
    ) -> None:
        self.child = child
        self.offset = offset
        self.length = length
        self.host_offset = host_offset
        self.cow_head = cow_head
        self.cow_tail = cow_tail
        self.fresh = fresh
        self.divisible = divisible

    @abstractmethod
    async def link(self) -> None:
        """The data is written: make it the guest's."""

    def keep(self, nbytes: int) -> None:
        """Of a ``divisible`` one: *nbytes* of room, from the first cluster's beginning on, are enough; free the rest.

        What is written then must not go behind ``room_end``.
        """
        raise UnsupportedFeature

    @property
    def room_end(self) -> int:
        """Where the room ends, in bytes behind ``host_offset``; for what is put into it in parts."""
        return self.length

    async def link_parts(self, puts: Sequence[Put]) -> None:
        """*puts* are written, and nothing else: make them the guest's, leave it what it had between, free the rest.

        Their starts and stops are bytes of the guest's behind ``offset``, their places behind ``host_offset``; but for
        the first and the last both ends are whole clusters, and each is at the distance from a cluster that it had.
        """
        raise UnsupportedFeature

    @abstractmethod
    async def abandon(self) -> None:
        """The data is not (all) written: give the room back, leave the old content the guest's."""


class FormatDriver(BlockDriver):
    """A driver that answers where bytes are; the framework (``blockio.io.data``) moves them.

    ``file`` (and ``backing``, where there is one) are set by ``open``.
    """

    kind = DriverKind.FORMAT
    file: Child
    backing: Child | None = None
    encrypted: bool = False
    """Data is ENCRYPTED, never DATA, and written with ``co_write_encrypted``."""

    @classmethod
    async def co_create(cls, target: CreateTarget, options: Any) -> None:
        """Write a new, empty image described by *options* (an instance of ``CreateOptions``)."""
        raise UnsupportedFeature(f"Format driver '{cls.name}' does not support image creation")

    # -- the mapping

    @abstractmethod
    async def co_map(self, offset: int, nbytes: int) -> Extent:
        """Where the first bytes from *offset* are; one extent, as long as the answer is the same."""

    def try_map(self, offset: int, nbytes: int) -> Extent | None:
        """The same from cached metadata only, or None."""
        return None

    def try_map_many(self, offset: int, nbytes: int) -> Sequence[Extents]:
        """Several in a row from *offset* on, as many as cached metadata tells at once; empty where it tells none.

        They do not reach past ``offset + nbytes``, and a run may go on in the next extent.
        """
        return ()

    @abstractmethod
    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        """Room for the first bytes of a write; covers at least one byte, at most *nbytes*.

        Waits for overlapping allocations that are not linked yet. The caller ends it with ``link`` or ``abandon``.
        """

    async def co_read_compressed(self, offset: int, iov: IoVector, extent: Extent) -> None:
        """Fill *iov* with guest bytes from *offset* on, which lie in the COMPRESSED *extent*."""
        raise UnsupportedFeature

    async def co_read_packed(self, rows: Sequence[tuple[int, IoVector, Extents]]) -> None:
        """``co_read_compressed`` for rows of COMPRESSED extents of one request; one job where that helps.

        Each row fills its memory with the guest bytes from its offset on.
        """
        for offset, iov, (kind, lengths, hosts, child) in rows:
            at = 0
            for length, host in zip(lengths, hosts, strict=True):
                extent = Extent(kind, length, host, child)
                await self.co_read_compressed(offset + at, iov.slice(at, length), extent)
                at += length

    async def co_read_encrypted(self, offset: int, iov: IoVector, extent: Extent) -> None:
        """Fill *iov* with the guest bytes from *offset* on, which lie in the ENCRYPTED *extent*."""
        raise UnsupportedFeature

    async def co_write_encrypted(self, child: Child, offset: int, host_offset: int, data: IoVector) -> None:
        """Write *data*, the guest's from *offset* on, to *child* at *host_offset*, leaving *data* as it is."""
        raise UnsupportedFeature

    async def co_data_may_be_hole(self) -> bool:
        """Whether DATA extents may be holes of the file because only metadata was preallocated.

        Block status then looks into the file as well (QEMU's BDRV_BLOCK_RECURSE). Finding out may cost a look through
        the refcounts: a driver does that once, when it is first asked.
        """
        return False

    def map_begin(self) -> object:
        """A reader starts to rely on mappings: nothing it was told may be given to another use until map_end.

        Between the two calls host clusters may be freed but not reused. Cheap: called for every slow read.
        """
        return None

    def map_end(self, token: object) -> None:
        """The reader that got *token* is done."""

    # -- what the framework does with the mapping; a format overrides these only with a reason written down

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        raise AssertionError("blockio.io.data reads formats through their mapping")

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        raise AssertionError("blockio.io.data writes formats through their allocations")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        raise AssertionError("blockio.io.status derives this from the mapping")

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        extent = self.try_map(offset, nbytes)
        if extent is None or extent.kind is not ExtentKind.DATA or extent.length < nbytes:
            return False
        child = extent.child
        return child is not None and child.try_preadv(extent.host_offset, bufs, nbytes)
