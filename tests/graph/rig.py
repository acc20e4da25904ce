"""A small world for tests of the graph: a request path that only forwards, and drivers that live in memory."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from blockio.aio.context import AioContext
from blockio.buffers import IoVector
from blockio.driver.base import (
    Allocation,
    BlockDriver,
    Capabilities,
    ChildOpener,
    CreateTarget,
    FilterDriver,
    FormatDriver,
    ProtocolDriver,
    ReopenState,
)
from blockio.driver.options import Size
from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, NotThisFormat
from blockio.types import (
    BlockInfo,
    BlockLimits,
    BlockStatus,
    BlockStatuses,
    Capability,
    Extent,
    ExtentKind,
    Perm,
    PreallocMode,
    RequestFlags,
    Role,
    StatusFlags,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul, Put
    from blockio.graph.edge import Edge
    from blockio.graph.holes import Holes
    from blockio.graph.node import BlockNode
    from blockio.graph.path import Cargo

MAGIC = b"TOY!"


class Path:
    """A ``RequestPath`` that counts and forwards; formats are read through ``file`` at offset 512."""

    def __init__(self, node: BlockNode) -> None:
        self.node = node
        self.in_flight = 0
        self.limits = BlockLimits()
        self.refreshed = 0
        self.log: list[str] = []
        self.hold: asyncio.Event | None = None

    @contextmanager
    def _entered(self, what: str) -> Iterator[BlockDriver]:
        self.log.append(what)
        if self.node.driver is None:
            raise BlockError(errno=errno.ENOMEDIUM)
        self.in_flight += 1
        try:
            yield self.node.driver
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self.node.kick()

    @asynccontextmanager
    async def request(self, start: int, end: int) -> AsyncIterator[None]:
        with self._entered("request"):
            yield

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        with self._entered("read") as driver:
            if self.hold is not None:
                await self.hold.wait()
            await driver.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        with self._entered("write") as driver:
            if self.hold is not None:
                await self.hold.wait()
            await driver.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        await self.co_pwritev(offset, IoVector.of(bytes(nbytes)), flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        with self._entered("discard") as driver:
            await driver.co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        with self._entered("flush") as driver:
            await driver.co_flush_to_os()
            await driver.co_flush_to_disk()

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        with self._entered("truncate") as driver:
            await driver.co_truncate(length, exact=exact, prealloc=PreallocMode(prealloc), flags=flags)
            self.node.length_changed()

    async def co_getlength(self) -> int:
        with self._entered("getlength") as driver:
            return await driver.co_getlength()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        return BlockStatus(StatusFlags.DATA, nbytes, offset)

    async def co_block_statuses(self, offset: int, nbytes: int, holes: Holes | None = None) -> list[BlockStatuses]:
        return [BlockStatuses(StatusFlags.DATA, [nbytes], [offset])]

    async def co_is_allocated_above(self, base: BlockNode | None, offset: int, nbytes: int) -> tuple[int, int]:
        return 1, nbytes

    async def co_copy_range_to(
        self, offset: int, target: Edge, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None:
        raise BlockError(errno=errno.ENOTSUP)

    async def co_copy_range_from(self, cargo: Cargo, offset: int, nbytes: int, *, packed: int = 0) -> list[Put]:
        raise BlockError(errno=errno.ENOTSUP)

    async def co_get_info(self) -> BlockInfo:
        return BlockInfo()

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return True

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None

    def refresh_limits(self) -> None:
        self.refreshed += 1
        if self.node.driver is not None:
            self.limits = self.node.driver.limits()

    def refresh_lanes(self) -> None:
        pass


class StoreOptions(msgspec.Struct, frozen=True, rename="kebab"):
    filename: str
    locking: bool = False


class StoreCreate(msgspec.Struct, frozen=True):
    size: Size
    colour: str = ""


class Store(ProtocolDriver):
    """``toy-store:NAME``: bytes kept in ``disks``. Opening pauses at ``pause`` and fails by ``fail``."""

    name = "toy-store"
    protocols = ("toy-store",)
    Options = StoreOptions
    CreateOptions = StoreCreate
    disks: ClassVar[dict[str, bytearray]] = {}
    log: ClassVar[list[str]] = []
    fail: ClassVar[dict[str, BaseException]] = {}
    held: ClassVar[int] = 0
    colour: ClassVar[str] = ""

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        return {"filename": filename.removeprefix("toy-store:")}

    @classmethod
    async def co_create_file(cls, filename: str, options: Any) -> None:
        await step("create", filename)
        cls.disks[filename] = bytearray(options.size)
        cls.colour = options.colour
        await step("created", filename)

    @classmethod
    async def co_file_exists(cls, filename: str) -> bool:
        return filename in cls.disks

    @classmethod
    async def co_delete_file(cls, filename: str) -> None:
        await step("delete", filename)
        cls.disks.pop(filename, None)

    async def open(self, options: StoreOptions, opener: ChildOpener) -> None:
        self.key = options.filename
        await step("open", self.key)
        if self.key not in self.disks:
            raise BlockError(f"Could not open '{self.key}': No such file or directory", errno.ENOENT)
        self.length = len(self.disks[self.key])
        Store.held += 1

    async def close(self) -> None:
        Store.held -= 1
        await step("close", self.key)

    def check_perm(self, perm: Perm, shared: Perm) -> None:
        note("check", self.key)

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        self.log.append(f"set {self.key}")

    def abort_perm(self) -> None:
        self.log.append(f"abort {self.key}")

    async def reopen_prepare(self, state: ReopenState) -> None:
        await step("prepare", self.key)

    def reopen_commit(self, state: ReopenState) -> None:
        self.log.append(f"commit {self.key}")

    def reopen_abort(self, state: ReopenState) -> None:
        self.log.append(f"undo {self.key}")

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await step("read", self.key)
        disk = self.disks[self.key]
        iov.copy_from(bytes(disk[offset : offset + iov.nbytes]).ljust(iov.nbytes, b"\0"))

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await step("write", self.key)
        disk = self.disks[self.key]
        disk.extend(bytes(max(0, offset + iov.nbytes - len(disk))))
        disk[offset : offset + iov.nbytes] = iov.tobytes()
        self.length = len(disk)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        disk = self.disks[self.key]
        disk[:] = disk[:length].ljust(length, b"\0")
        self.length = length

    async def co_flush_to_disk(self) -> None:
        await step("flush", self.key)


class ImageOptions(msgspec.Struct, frozen=True, rename="kebab"):
    lazy_refcounts: bool = False


class ImageCreate(msgspec.Struct, frozen=True):
    size: int
    backing: str = ""


class Image(FormatDriver):
    """A format: ``TOY!`` and a JSON header in 512 bytes that may name a backing file; then the data."""

    name = "toy"
    capabilities = Capabilities(resize=Capability.NATIVE, backing=True)
    Options = ImageOptions
    CreateOptions = ImageCreate

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        return 100 if head.startswith(MAGIC) else 0

    @classmethod
    async def co_create(cls, target: CreateTarget, options: ImageCreate) -> None:
        header = image(backing=options.backing or None)
        await target.file.co_pwritev(0, IoVector.of(header))
        async with target.open_image() as whole:
            await whole.co_truncate(options.size)

    async def open(self, options: ImageOptions, opener: ChildOpener) -> None:
        self.file = await opener.required("file", Role.IMAGE)
        head = bytearray(512)
        await self.file.co_preadv(0, IoVector.of(head))
        if not head.startswith(MAGIC):
            raise NotThisFormat("Image is not in toy format")
        header = msgspec.json.decode(bytes(head[4:]).rstrip(b"\0"))
        if header.get("data"):
            await opener.implicit("data-file", Role.DATA, target=header["data"], format=None, kind="data file")
        self.names = (header["backing"], header.get("format")) if header.get("backing") else None
        if header.get("backing"):
            self.backing = await opener.implicit(
                "backing", Role.COW, target=header["backing"], format=header.get("format"), kind="backing file"
            )
        else:
            self.backing = await opener.child("backing", Role.COW, optional=True)
        self.length = self.file.length - 512

    def backing_reference(self) -> tuple[str, str | None] | None:
        return self.names

    async def close(self) -> None:
        await step("close", f"image {self.host.filename}")

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        return Extent(ExtentKind.DATA, nbytes, offset + 512, self.file)

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        raise AssertionError("the toy image is written in place")

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_preadv(offset + 512, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_pwritev(offset + 512, iov, flags)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        await self.file.co_truncate(length + 512)
        self.length = length


class Plain(FormatDriver):
    """What ``raw`` is: everything as it lies in the file."""

    name = "raw"

    async def open(self, options: Any, opener: ChildOpener) -> None:
        self.file = await opener.required("file", Role.FILTERED | Role.PRIMARY)
        self.length = self.file.length

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        return Extent(ExtentKind.DATA, nbytes, offset, self.file)

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        raise AssertionError("raw is written in place")

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_pwritev(offset, iov, flags)


class Sieve(FilterDriver):
    """A filter whose drain hooks take time: they pause like everything else."""

    name = "toy-filter"

    async def drain_begin(self) -> None:
        await step("drain", self.host.node_name)

    async def drain_end(self) -> None:
        await step("undrain", self.host.node_name)


DRIVERS = (Store, Image, Plain, Sieve)


async def step(what: str, key: str) -> None:
    """One await of a driver: noted, perhaps failing, and a place where a cancellation can strike."""
    note(what, key)
    await asyncio.sleep(0)


def note(what: str, key: str) -> None:
    Store.log.append(f"{what} {key}")
    error = Store.fail.get(f"{what} {key}")
    if error is not None:
        raise error


def image(*, backing: str | None = None, format: str | None = None, data: str | None = None, size: int = 0) -> bytes:
    """The bytes of a toy image."""
    header = {"backing": backing, "format": format, "data": data}
    return (MAGIC + msgspec.json.encode(header)).ljust(512, b"\0") + bytes(size)


@contextmanager
def world(**disks: bytes) -> Iterator[type[Store]]:
    """The drivers registered and *disks* on the shelf (``a_img`` is ``a.img``); everything is clean afterwards."""
    for cls in DRIVERS:
        register(cls)
    Store.disks = {name.replace("_", "."): bytearray(data) for name, data in disks.items()}
    Store.log = []
    Store.fail = {}
    Store.held = 0
    try:
        yield Store
        assert Store.held == 0, "a store was not closed"
    finally:
        for cls in DRIVERS:
            unregister(cls)


class User:
    """A ``ChildParent`` as a backend is one: notes what it is told, and says whether it is busy."""

    def __init__(self, name: str = "user") -> None:
        self.name = name
        self.quiesced = 0
        self.busy = False
        self.told: list[str] = []

    def parent_desc(self) -> str:
        return self.name

    def drained_begin(self, edge: Edge) -> None:
        self.quiesced += 1
        self.told.append("quiet")

    def drained_poll(self, edge: Edge) -> bool:
        return self.busy

    def drained_end(self, edge: Edge) -> None:
        self.quiesced -= 1
        self.told.append("go on")

    def resized(self, edge: Edge) -> None:
        self.told.append(f"resized {edge.length}")

    def change_media(self, edge: Edge, load: bool) -> None:
        self.told.append("loaded" if load else "ejected")

    def attached(self, edge: Edge) -> None:
        self.told.append(f"attached {edge.node_name}")

    def detached(self, edge: Edge) -> None:
        self.told.append(f"detached {edge.node_name}")

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        self.told.append("can move")

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        self.told.append("moved")

    def activate(self, edge: Edge) -> None:
        self.told.append("active")

    def inactivate(self, edge: Edge) -> None:
        self.told.append("inactive")
