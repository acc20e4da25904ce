"""A small world for the request path: a disk with awkward limits, a format with clusters, and the nodes around them.

``Disk`` is storage in memory that checks every promise the framework makes its drivers, pauses in every request, and
fails on demand. ``ClusterFormat`` maps clusters of one byte-addressed file; its allocations note how they end.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from blockio.buffers import IoVector
from blockio.driver.base import (
    Allocation,
    Capabilities,
    ChildOpener,
    DriverHost,
    FormatDriver,
    ProtocolDriver,
)
from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, UnsupportedFeature
from blockio.graph.mutate import attach_child, detach_child
from blockio.graph.open import open_node
from blockio.graph.path import PassiveParent
from blockio.io import NodeIO
from blockio.types import (
    BlockInfo,
    BlockLimits,
    BlockStatus,
    Capability,
    DetectZeroes,
    Extent,
    ExtentKind,
    OpenFlags,
    Perm,
    PreallocMode,
    RequestFlags,
    Role,
    StatusFlags,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.driver.child import Child
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

ALL_NATIVE: Final = Capabilities(
    write_zeroes=Capability.NATIVE,
    discard=Capability.NATIVE,
    fua=Capability.EMULATED,
    resize=Capability.NATIVE,
    copy_range=Capability.NATIVE,
    zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK,
)


class Disk:
    """What a ``DiskDriver`` stores. Made before the node; ``name`` is the driver's option.

    ``log`` has an entry ``(operation, offset, nbytes, flags)`` for every call; ``before`` may make it fail.
    ``pauses`` is how often a call gives the loop its turn, half before and half behind the moment it acts.
    """

    _numbers = itertools.count(1)
    known: ClassVar[dict[str, Disk]] = {}

    def __init__(
        self,
        content: bytes | bytearray | int = 1 << 20,
        *,
        limits: BlockLimits | None = None,
        capabilities: Capabilities = ALL_NATIVE,
        pauses: int = 0,
        fast: bool = True,
    ) -> None:
        self.data = bytearray(content)
        self.limits = limits or BlockLimits()
        self.capabilities = capabilities
        self.pauses = pauses
        self.fast = fast
        self.log: list[tuple[str, int, int, int]] = []
        self.before: Callable[[str, int, int], None] | None = None
        self.gate: asyncio.Event | None = None
        """While set (to an event), every slow request waits for it first."""
        self.running = 0
        self.zero_unaligned = True
        self.name = f"disk{next(self._numbers)}"
        self.known[self.name] = self

    @property
    def operations(self) -> list[str]:
        return [entry[0] for entry in self.log]

    def ranges(self, operation: str) -> list[tuple[int, int]]:
        return [(entry[1], entry[2]) for entry in self.log if entry[0] == operation]


class DiskOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    disk: str


class DiskDriver(ProtocolDriver):
    name = "test-disk"
    Options = DiskOptions
    disk: Disk

    async def open(self, options: DiskOptions, opener: ChildOpener) -> None:
        self.disk = Disk.known[options.disk]
        self.capabilities = self.disk.capabilities
        self.length = len(self.disk.data)

    def limits(self) -> BlockLimits:
        return self.disk.limits

    async def _act(self, operation: str, offset: int, nbytes: int, flags: int, act: Callable[[], None]) -> None:
        disk = self.disk
        disk.log.append((operation, offset, nbytes, int(flags)))
        disk.running += 1
        try:
            if disk.gate is not None:
                await disk.gate.wait()
            for _ in range((disk.pauses + 1) // 2):
                await asyncio.sleep(0)
            if disk.before is not None:
                disk.before(operation, offset, nbytes)
            act()
            for _ in range(disk.pauses // 2):
                await asyncio.sleep(0)
        finally:
            disk.running -= 1

    def _whole_blocks(self, offset: int, nbytes: int) -> None:
        limits = self.disk.limits
        assert offset >= 0
        assert nbytes > 0
        assert (offset | nbytes) % limits.request_alignment == 0
        assert not limits.max_transfer or nbytes <= limits.max_transfer

    def _fill(self, offset: int, iov: IoVector) -> None:
        part = bytes(self.disk.data[offset : offset + iov.nbytes])
        iov.copy_from(part.ljust(iov.nbytes, b"\0"))

    def _store(self, offset: int, payload: bytes) -> None:
        data = self.disk.data
        data.extend(bytes(max(0, offset + len(payload) - len(data))))
        data[offset : offset + len(payload)] = payload

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        self._whole_blocks(offset, iov.nbytes)
        assert len(iov.views) <= self.disk.limits.max_iov
        await self._act("read", offset, iov.nbytes, flags, lambda: self._fill(offset, iov))

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        self._whole_blocks(offset, iov.nbytes)
        assert len(iov.views) <= self.disk.limits.max_iov
        await self._act("write", offset, iov.nbytes, flags, lambda: self._store(offset, iov.tobytes()))

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        unit = self.disk.limits.pwrite_zeroes_alignment
        if unit and (offset | nbytes) % unit and not self.disk.zero_unaligned:
            raise UnsupportedFeature
        most = self.disk.limits.max_pwrite_zeroes
        assert not most or nbytes <= max(most, unit, self.disk.limits.request_alignment)
        await self._act("zero", offset, nbytes, flags, lambda: self._store(offset, bytes(nbytes)))

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        end = min(offset + nbytes, len(self.disk.data))

        def act() -> None:
            self.disk.data[offset:end] = b"\xdd" * max(0, end - offset)

        await self._act("discard", offset, nbytes, 0, act)

    async def co_flush_to_os(self) -> None:
        await self._act("flush-to-os", 0, 0, 0, lambda: None)

    async def co_flush_to_disk(self) -> None:
        await self._act("flush-to-disk", 0, 0, 0, lambda: None)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        def act() -> None:
            data = self.disk.data
            del data[length:]
            data.extend(bytes(length - len(data)))
            self.length = length

        await self._act("truncate", length, 0, flags, act)

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """Runs of zero bytes are holes, block by block."""
        block = max(512, self.disk.limits.request_alignment)

        def is_hole(at: int) -> bool:
            return not any(self.disk.data[at : at + block])

        end = offset + nbytes
        hole = is_hole(offset // block * block)
        stop = (offset // block + 1) * block
        while stop < end and is_hole(stop) == hole:
            stop += block
        kind = StatusFlags.ZERO if hole else StatusFlags.DATA
        return BlockStatus(kind | StatusFlags.OFFSET_VALID, min(stop, end) - offset, offset, self.host.node_name)

    async def co_copy_range_to(self, offset: int, target: object, target_offset: int, nbytes: int) -> None:
        if not isinstance(target, DiskDriver):
            raise UnsupportedFeature
        other = target

        def act() -> None:
            other._store(target_offset, bytes(self.disk.data[offset : offset + nbytes]))

        await self._act("copy", offset, nbytes, 0, act)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        if not self.disk.fast or self.disk.gate is not None:
            return False
        self._whole_blocks_fast(offset, nbytes)
        self.disk.log.append(("try-read", offset, nbytes, 0))
        self._fill(offset, IoVector.of(list(bufs)))
        return True

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        if not self.disk.fast or self.disk.gate is not None:
            return False
        self._whole_blocks_fast(offset, nbytes)
        assert offset + nbytes <= len(self.disk.data), "the fast lane made the disk longer"
        self.disk.log.append(("try-write", offset, nbytes, 0))
        self._store(offset, IoVector.of(list(bufs)).tobytes())
        return True

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None

    def _whole_blocks_fast(self, offset: int, nbytes: int) -> None:
        assert offset >= 0
        assert (offset | nbytes) % self.disk.limits.request_alignment == 0
        assert offset + nbytes <= self.length


# -- a format


class Room(Allocation):
    """One allocation of ``ClusterFormat``; ``ended`` is how."""

    __slots__ = ("clusters", "driver", "ended")

    def __init__(
        self,
        driver: ClusterFormat,
        clusters: dict[int, int],
        offset: int,
        length: int,
        host_offset: int,
        *,
        cow_head: int,
        cow_tail: int,
    ) -> None:
        super().__init__(
            driver.file, offset, length, host_offset, cow_head=cow_head, cow_tail=cow_tail, fresh=driver.fresh
        )
        self.driver = driver
        self.clusters = clusters
        self.ended: str | None = None

    async def link(self) -> None:
        await self._end("link")
        self.driver.table.update(self.clusters)

    async def abandon(self) -> None:
        await self._end("abandon")

    async def _end(self, how: str) -> None:
        assert self.ended is None, f"{how} after {self.ended}"
        self.ended = how
        for _ in range(self.driver.pauses):
            await asyncio.sleep(0)
        for cluster in self.clusters:
            self.driver.pending.discard(cluster)
        self.driver.turn.set()
        self.driver.turn.clear()
        self.driver.fail(how)


class FormatOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    length: int = 1 << 20
    cluster: int = 4096


class ClusterFormat(FormatDriver):
    """A table of clusters: a host offset, ``ZEROED``, or nothing. Host clusters are never reused."""

    name = "test-format"
    Options = FormatOptions
    ZEROED: Final = -1
    capabilities = Capabilities(
        write_zeroes=Capability.NATIVE,
        discard=Capability.NATIVE,
        resize=Capability.NATIVE,
        copy_range=Capability.NATIVE,
        backing=True,
        zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK,
    )
    pauses = 0
    zero_pauses = 0
    """How long it takes between looking at the rest of a cluster and zeroing all of it."""
    fresh = True
    most = 1 << 30
    """How long one allocation or extent may be."""

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self.table: dict[int, int] = {}
        self.next_host = 0
        self.pending: set[int] = set()
        self.turn = asyncio.Event()
        self.rooms: list[Room] = []
        self.readers = 0
        self.cached = False
        self.may_be_hole = False
        self.failing: Callable[[str], None] | None = None

    def fail(self, what: str) -> None:
        if self.failing is not None:
            self.failing(what)

    async def open(self, options: FormatOptions, opener: ChildOpener) -> None:
        self.file = await opener.required("file", Role.IMAGE)
        self.backing = await opener.child("backing", Role.COW, optional=True)
        self.length = options.length
        self.cluster = options.cluster

    def limits(self) -> BlockLimits:
        return BlockLimits(pwrite_zeroes_alignment=self.cluster, pdiscard_alignment=self.cluster)

    async def co_get_info(self) -> BlockInfo:
        return BlockInfo(cluster_size=self.cluster)

    async def co_data_may_be_hole(self) -> bool:
        return self.may_be_hole

    def map_begin(self) -> object:
        self.readers += 1
        return self

    def map_end(self, token: object) -> None:
        assert token is self
        self.readers -= 1

    def try_map(self, offset: int, nbytes: int) -> Extent | None:
        return self._map(offset, nbytes) if self.cached else None

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        assert self.readers or self.rooms, "a mapping asked for outside map_begin"
        assert offset + nbytes <= self.length
        for _ in range(self.pauses):
            await asyncio.sleep(0)
        self.fail("map")
        return self._map(offset, nbytes)

    def _map(self, offset: int, nbytes: int) -> Extent:
        length = min(nbytes, self.cluster - offset % self.cluster, self.most)
        host = self.table.get(offset // self.cluster)
        if host is None:
            return Extent(ExtentKind.UNALLOCATED, length)
        if host == self.ZEROED:
            return Extent(ExtentKind.ZERO, length)
        return Extent(ExtentKind.DATA, length, host + offset % self.cluster, self.file)

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        assert offset + nbytes <= self.length
        first = offset // self.cluster
        for _ in range(self.pauses):
            await asyncio.sleep(0)
        self.fail("allocate")
        while first in self.pending:
            await self.turn.wait()
        end = min(offset + nbytes, offset + self.most)
        last = (end - 1) // self.cluster
        kinds = [self.table.get(index, self.ZEROED) == self.ZEROED for index in range(first, last + 1)]
        run = next((at for at, new in enumerate(kinds) if new != kinds[0]), len(kinds))
        busy = next((at for at in range(1, run) if first + at in self.pending), run)
        stop = min(end, (first + min(run, busy)) * self.cluster)
        if not kinds[0]:
            stop = min(stop, (first + 1) * self.cluster)
            room = Room(
                self, {}, offset, stop - offset, self.table[first] + offset % self.cluster, cow_head=0, cow_tail=0
            )
        else:
            count = (stop - 1) // self.cluster - first + 1
            clusters = {first + at: self.next_host + at * self.cluster for at in range(count)}
            head = offset % self.cluster
            room = Room(
                self,
                clusters,
                offset,
                stop - offset,
                self.next_host + head,
                cow_head=head,
                cow_tail=-stop % self.cluster,
            )
            self.next_host += count * self.cluster
            self.pending.update(clusters)
        self.rooms.append(room)
        return room

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        first, last = offset // self.cluster, (offset + nbytes - 1) // self.cluster
        if (offset | nbytes) % self.cluster:
            # As qcow2: a whole cluster is zeroed for a part of it, if the rest reads as zeroes anyway.
            if self.table.get(first) != self.ZEROED and (first in self.table or self.backing is not None):
                raise UnsupportedFeature
            for _ in range(self.zero_pauses):
                await asyncio.sleep(0)
        self.fail("zero")
        for index in range(first, last + 1):
            self.table[index] = self.ZEROED

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        if (offset | nbytes) % self.cluster:
            raise UnsupportedFeature
        for index in range(offset // self.cluster, (offset + nbytes) // self.cluster):
            self.table[index] = self.ZEROED

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        self.fail("truncate")
        if flags & RequestFlags.ZERO_WRITE:
            for index in range(-(-self.length // self.cluster), -(-length // self.cluster)):
                self.table[index] = self.ZEROED
        self.length = length

    def whole(self) -> None:
        """Nothing is left over from any request."""
        assert not self.pending
        assert self.readers == 0
        assert all(room.ended for room in self.rooms)


# -- nodes


class Top(PassiveParent):
    """The parent of a tree: may do everything, notes being resized."""

    def __init__(self) -> None:
        self.resizes = 0

    def parent_desc(self) -> str:
        return "the test"

    def resized(self, edge: Edge) -> None:
        self.resizes += 1


class Rig:
    """An opened tree: its top node, that node's path, and the parent that holds it."""

    def __init__(self, node: BlockNode, edge: Edge, top: Top) -> None:
        self.node = node
        self.edge = edge
        self.top = top
        assert isinstance(node.path, NodeIO)
        self.io: NodeIO = node.path

    @property
    def format(self) -> ClusterFormat:
        assert isinstance(self.node.driver, ClusterFormat)
        return self.node.driver

    def whole(self) -> None:
        """No request has left a trace in any node of the tree."""
        queue = [self.node]
        while queue:
            node = queue.pop()
            path = node.path
            assert isinstance(path, NodeIO)
            assert path.in_flight == 0
            assert not path.tracked.requests
            assert not path.tracked.serialising
            assert not path.tracked.waiters
            assert not path.flushes.requests
            if isinstance(node.driver, ClusterFormat):
                node.driver.whole()
            queue += [edge.node for edge in node.children.values()]

    async def read(self, offset: int, nbytes: int, flags: int = 0) -> bytes:
        memory = bytearray(b"\xee" * nbytes)
        await self.io.co_preadv(offset, IoVector.of(memory), flags)
        return bytes(memory)

    async def write(self, offset: int, payload: bytes, flags: int = 0) -> None:
        await self.io.co_pwritev(offset, IoVector.of(payload), flags)


@asynccontextmanager
async def opened(
    options: dict[str, object],
    *,
    flags: OpenFlags | None = None,
    detect_zeroes: DetectZeroes = DetectZeroes.OFF,
    perm: Perm = Perm.ALL,
) -> AsyncIterator[Rig]:
    """Open *options*; inside, the tree is usable through a parent that holds *perm*."""
    for cls in (DiskDriver, ClusterFormat):
        register(cls)
    try:
        node = await open_node(options=options, flags=flags or OpenFlags(), path_factory=NodeIO)
        try:
            node.detect_zeroes = detect_zeroes
            top = Top()
            edge = attach_child(top, node, "root", Role.FILTERED | Role.PRIMARY, perm, Perm.ALL)
            node.path.refresh_lanes()
            try:
                yield Rig(node, edge, top)
            finally:
                for disk in Disk.known.values():
                    disk.before = None
                    disk.gate = None
                await detach_child(edge)
        finally:
            await node.unref()
    finally:
        Disk.known.clear()
        for cls in (DiskDriver, ClusterFormat):
            unregister(cls)


def on_disk(disk: Disk) -> dict[str, object]:
    """Options for the disk itself."""
    return {"driver": DiskDriver.name, "disk": disk.name}


def in_format(
    disk: Disk, *, length: int = 1 << 20, cluster: int = 4096, backing: dict[str, object] | None = None
) -> dict[str, object]:
    """Options for a format on *disk*, over *backing* where that is given."""
    options: dict[str, object] = {
        "driver": ClusterFormat.name,
        "length": length,
        "cluster": cluster,
        "file": on_disk(disk),
    }
    if backing is not None:
        options["backing"] = backing
    return options


def failing_after(count: int, error: BaseException | None = None) -> Callable[..., None]:
    """For ``Disk.before`` and ``ClusterFormat.failing``: *count* calls succeed, the next fails, later ones succeed."""
    left = itertools.count(count, -1)

    def check(*_: object) -> None:
        if next(left) == 0:
            raise error or BlockError(errno=errno.EIO)

    return check


@cache
def pattern(nbytes: int, seed: int = 1) -> bytes:
    """Bytes that differ from their neighbours and are never zero."""
    return bytes((at * 7 + at // 256 * 31 + seed * 13) % 255 + 1 for at in range(nbytes))


def child_of(rig: Rig, name: str) -> Child:
    return rig.node.children[name]
