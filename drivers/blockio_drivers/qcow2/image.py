"""What all parts of an open image share: its file, header and L1 table, and how metadata reaches the file.

Invariants:

* ``unstable`` is True while something this driver wrote (or was told that a request wrote) may not be on stable
  storage, unless ``_flushing`` is held and the flush under way covers it; ``barrier`` makes it so, and is the only
  place where the driver flushes.
* The header on disk is changed by writes inside one 512-byte sector, so that no crash leaves half of it.
* ``dead`` is set by a fatal corruption: from then on nothing of the metadata in memory is written.
* ``retired`` holds host clusters whose last reference was dropped in memory; ``writeback`` says when they are free.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from array import array
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from blockio.aio.grace import GracePeriod
from blockio.buffers import IoVector
from blockio.driver.debug import tell
from blockio.errors import CorruptImage
from blockio.types import HostOffset
from blockio_drivers.qcow2.header import (
    AUTOCLEAR_FEATURES_OFFSET,
    INCOMPATIBLE_FEATURES_OFFSET,
    Incompatible,
)
from blockio_drivers.qcow2.tables import Geometry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from blockio.driver.base import FormatDriver
    from blockio.driver.child import Child
    from blockio.driver.debug import DebugEvent
    from blockio_drivers.qcow2.bitmap_header import HeaderWrite
    from blockio_drivers.qcow2.data_file import DataFile
    from blockio_drivers.qcow2.encryption import Encryption
    from blockio_drivers.qcow2.extensions import BitmapsExtension
    from blockio_drivers.qcow2.header import Header
    from blockio_drivers.qcow2.overlap import OverlapGuard

__all__ = ["Corruption", "Freed", "Image", "finish", "hexadecimal", "in_place_order"]

_SIZE_OFFSET: Final = 24
_L1_OFFSET: Final = 36
_REFCOUNT_TABLE_OFFSET: Final = 48
_REFCOUNTS_END: Final = 100
"""Behind the refcount order, the last of the fields that say how to count."""


async def finish(work: Awaitable[None]) -> None:
    """Run *work*, or wait for it, to its end even when we are cancelled; the cancellation goes on afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:
            break  # the work's own failure; raised below
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen, so that nobody complains of it; the cancellation goes first
        raise cancelled
    task.result()


def hexadecimal(number: int) -> str:
    """*number* as C's ``%#x`` has it, which writes a bare 0."""
    return f"{number:#x}" if number else "0"


def _tables_of(header: Header) -> bytes:
    """The header's fields from the disk's length to the snapshot table, which lie in one sector."""
    return struct.pack(
        ">QIIQQIIQ",
        header.size,
        header.crypt_method,
        header.l1_size,
        header.l1_table_offset,
        header.refcount_table_offset,
        header.refcount_table_clusters,
        header.nb_snapshots,
        header.snapshots_offset,
    )


class Corruption(CorruptImage):
    """A contradiction met while the image is open. ``offset`` and ``size`` say where, -1 where nowhere."""

    def __init__(self, message: str, *, offset: int = -1, size: int = -1) -> None:
        super().__init__(message)
        self.offset = offset
        self.size = size

    def __reduce__(self) -> tuple[object, ...]:
        return (CorruptImage, (self.message, self.errno), {"hint": self.hint})


class Freed(NamedTuple):
    """*clusters* host clusters from *first* on that lost one reference; *discard*: pass it on when it was the last."""

    first: int
    clusters: int
    discard: bool


def in_place_order(freed: Iterable[Freed]) -> deque[Freed]:
    """The same in the order of their places, neighbours together, so that each refcount block has its turn once."""
    found: deque[Freed] = deque()
    for item in sorted(freed):
        last = found[-1] if found else None
        if last is not None and (last.first + last.clusters, last.discard) == (item.first, item.discard):
            found[-1] = Freed(last.first, last.clusters + item.clusters, last.discard)
        else:
            found.append(item)
    return found


class Image:
    """One open image. All offsets are bytes in ``file`` unless a name says otherwise."""

    guard: OverlapGuard
    data_file: DataFile | None = None
    """What is to be known of the data file, where there is one."""

    def __init__(self, driver: FormatDriver, header: Header, *, lazy: bool, data: Child | None = None) -> None:
        """*data*: the data file, where there is one."""
        self.driver = driver
        self.host = driver.host
        self.file = driver.file
        self.data = data or self.file
        """Where guest data is."""
        self.blind = header.has_data_file and data is None
        """Opened for information only: guest data is out of reach."""
        self.header = header
        self.geometry = Geometry.of(header)
        self.encryption: Encryption | None = None
        self.l1: array[int] = array("Q")
        self.lazy = lazy
        """Whether refcounts may lag behind, covered by the dirty bit."""
        self.pass_discard_other = False
        """Whether clusters of metadata that others took the place of are discarded in the file."""
        self.unstable = False
        self._flushing = asyncio.Lock()
        self.dead = False
        self.armed = False
        """Made fit for changes: unknown autoclear bits cleared, refcounts repaired where the dirty bit said so, bitmaps
        marked as in use. True for a writable image only."""
        self.retired: GracePeriod[Freed] = GracePeriod()
        self.retired_clusters = 0
        """How many clusters are retired or wait for their metadata to become stable."""
        self._complained = False
        self._unsure: HeaderWrite | None = None
        """What must be written again, because a write of it failed: it may have arrived all the same."""

    def change_loop(self) -> None:
        """A lock stays with the loop that first waited for it: new ones for a new loop. Nobody holds one now."""
        self._flushing = asyncio.Lock()
        if self.encryption is not None:
            self.encryption.change_loop()

    @property
    def writable(self) -> bool:
        """Whether metadata may be written at all."""
        return not (self.host.flags.read_only or self.host.flags.inactive or self.dead)

    @property
    def backing(self) -> Child | None:
        """What shows where the image holds nothing. The graph may change it between any two requests."""
        return self.driver.backing

    @property
    def length(self) -> int:
        """The virtual disk's length in bytes."""
        return self.header.disk_size

    @property
    def raw(self) -> bool:
        """Whether the data file must at any time read as the disk does, for who knows nothing of this image.

        Never where it is encrypted: then it reads as noise, whatever the header says.
        """
        return self.header.data_file_raw and self.encryption is None

    # -- bytes

    async def read(self, offset: int, nbytes: int) -> bytearray:
        """*nbytes* from *offset*; past the file's end they are zeroes."""
        data = bytearray(nbytes)
        if nbytes:
            await self.file.co_preadv(offset, IoVector.of(data))
        return data

    async def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write metadata; it is stable after the next ``barrier``."""
        try:
            await self.file.co_pwritev(offset, IoVector.of(data))
        finally:
            self.unstable = True

    async def read_data(self, child: Child, offset: int, host_offset: int, iov: IoVector) -> None:
        """Fill *iov* with the guest's bytes from *offset* on, in plain clusters at *host_offset* of *child*."""
        if self.encryption is None:
            await child.co_preadv(host_offset, iov)
        else:
            await self.encryption.read(child, offset, host_offset, iov)

    async def write_data(self, child: Child, offset: int, host_offset: int, iov: IoVector) -> None:
        """Write *iov*, the guest's bytes from *offset* on, to *host_offset* of *child*; stable after a ``barrier``."""
        try:
            if self.encryption is None:
                await child.co_pwritev(host_offset, iov)
            else:
                await self.encryption.write(child, offset, host_offset, iov)
        finally:
            self.unstable = True

    async def write_zeroes(self, offset: int, nbytes: int) -> None:
        """Zeroes, as ``write``."""
        try:
            await self.file.co_pwrite_zeroes(offset, nbytes)
        finally:
            self.unstable = True

    async def event(self, event: DebugEvent) -> None:
        """*event* happens: whoever listens below hears of it, and may hold us up. See ``blockio.driver.debug``."""
        await tell(self.file, event)

    async def barrier(self) -> None:
        """What was written before is on stable storage when this returns; costs nothing where it already is."""
        # Somebody else's flush may be what we need, but only when it has ended, and well.
        async with self._flushing:
            if self.unstable:
                self.unstable = False
                try:
                    if self.data is not self.file:
                        await self.data.co_flush()
                    await self.file.co_flush()
                except BaseException:
                    self.unstable = True
                    raise

    # -- header fields

    async def _set_field(self, offset: int, value: bytes, **fields: Any) -> None:
        """Write *value* into the header, then believe it, then make it stable; whatever it relies on is stable.

        Not cancelled half-way: nobody could say afterwards which header the file has. A failed flush leaves the new
        one in force, as the file shows it.
        """

        async def switch() -> None:
            await self.make_sure()
            await self.write(offset, value)
            self.header = self.header.with_(**fields)
            await self.barrier()

        await finish(switch())

    async def set_incompatible(self, features: int) -> None:
        """Write the incompatible feature bits, and make them stable."""
        await self._set_field(INCOMPATIBLE_FEATURES_OFFSET, features.to_bytes(8, "big"), incompatible=features)

    async def set_autoclear(self, features: int) -> None:
        """Write the autoclear feature bits, and make them stable."""
        await self._set_field(AUTOCLEAR_FEATURES_OFFSET, features.to_bytes(8, "big"), autoclear=features)

    async def set_bitmaps(self, offset: int, value: bytes, extension: BitmapsExtension | None) -> None:
        """Write *value*, after which the bitmaps extension is *extension*, and make it stable."""
        await self._set_field(offset, value, bitmaps=extension, stale_bitmaps=False)

    async def set_size(self, size: int) -> None:
        """Write the disk's length, and make it stable."""
        await self._set_field(_SIZE_OFFSET, size.to_bytes(8, "big"), size=size)

    async def set_l1_table(self, offset: int, entries: int) -> None:
        """Write where the L1 table is and how long, and make it stable."""
        value = struct.pack(">IQ", entries, offset)
        await self._set_field(_L1_OFFSET, value, l1_table_offset=HostOffset(offset), l1_size=entries)

    async def set_refcount_table(self, offset: int, clusters: int) -> None:
        """Write where the refcount table is and how long, and make it stable."""
        value = struct.pack(">QI", offset, clusters)
        fields = {"refcount_table_offset": HostOffset(offset), "refcount_table_clusters": clusters}
        await self._set_field(_REFCOUNT_TABLE_OFFSET, value, **fields)

    async def set_refcounts(self, offset: int, clusters: int, order: int) -> None:
        """Write where the refcount table is, how long, and how wide refcounts are, and make it stable.

        As ``set_tables``. The image's geometry is still the old one afterwards.
        """
        from blockio_drivers.qcow2.bitmap_header import HeaderWrite  # few headers change by more than a field

        async def switch() -> None:
            await self.make_sure()
            header = self.header.with_(
                refcount_table_offset=HostOffset(offset), refcount_table_clusters=clusters, refcount_order=order
            )
            before, after = (one.encode()[_REFCOUNT_TABLE_OFFSET:_REFCOUNTS_END] for one in (self.header, header))
            await self._show(HeaderWrite(_REFCOUNT_TABLE_OFFSET, after), before=before, header=header)

        await finish(switch())

    async def set_tables(self, **fields: Any) -> None:
        """Change the disk's length, L1 table, refcount table, snapshot table or several at once, and make it stable.

        A write that failed may have arrived all the same. Both headers lead to whole tables, but what is written into
        those of the one in force must not be missed by the next opener: it is written again first, see ``make_sure``.
        """
        from blockio_drivers.qcow2.bitmap_header import HeaderWrite  # as above

        async def switch() -> None:
            await self.make_sure()
            header = self.header.with_(**fields)
            await self._show(
                HeaderWrite(_SIZE_OFFSET, _tables_of(header)), before=_tables_of(self.header), header=header
            )

        await finish(switch())

    async def _show(self, step: HeaderWrite, *, before: bytes, header: Header) -> None:
        """Write *step* over *before*, so that *header* is in force; ``make_sure`` repeats what then is, if need be."""
        self._unsure = step._replace(data=before)
        await self.write(*step)
        self.header = header
        self._unsure = step
        await self.barrier()
        self._unsure = None

    async def replace_header(self, header: Header) -> None:
        """Let *header* be the image's, whole, and make it stable; whatever it relies on is stable.

        A crash leaves the old header or *header* (see ``header_update``). BlockError ENOSPC where it does not fit into
        a cluster, CorruptImage for a name that is too long: then nothing has changed. After any other failure the image
        may have the one or the other when it is opened again.
        """
        from blockio_drivers.qcow2.header_update import plan_header  # as above

        encoded = header.encode()

        async def switch() -> None:
            await self.make_sure()
            await self.barrier()
            area = bytes(await self.read(0, self.geometry.cluster_size))
            for step in plan_header(area, encoded):
                if step.offset:
                    await self.write(*step)
                    await self.barrier()
                else:
                    await self._show(step, before=area[: len(step.data)], header=header)
                    area = step.data + area[len(step.data) :]
            self.header = header

        await finish(switch())

    async def make_sure(self) -> None:
        """The header on disk is the one in force, also after a switch that failed. Before any metadata is written."""
        if self._unsure is not None:
            await self.write(*self._unsure)
            await self.barrier()
            self._unsure = None

    async def mark_dirty(self) -> None:
        """Set the dirty bit, before refcounts begin to lag behind."""
        if not self.header.dirty:
            await self.set_incompatible(self.header.incompatible | Incompatible.DIRTY)

    async def mark_clean(self) -> None:
        """Clear the dirty bit. Everything else must be written and stable."""
        if self.header.dirty:
            await self.set_incompatible(self.header.incompatible & ~Incompatible.DIRTY)

    # -- clusters let go of

    def retire(self, first: int, count: int, *, discard: bool) -> None:
        """The mapping in memory no longer names these host clusters; give back one reference when it is safe."""
        self.retired.retire(Freed(first, count, discard))
        self.retired_clusters += count

    # -- corruption

    async def signal(self, found: Corruption) -> None:
        """Tell of *found*: once; on a writable image it is fatal and sets the corrupt bit (version 3)."""
        fatal = self.writable
        if self.dead or (self._complained and not fatal):
            return
        self._complained = True
        if fatal:
            self.dead = True
            self.host.report(
                f"qcow2: Marking image as corrupt: {found.message}; further corruption events will be suppressed"
            )
            if self.header.version >= 3:
                # The image is lost to writers whether or not its file takes the mark.
                with contextlib.suppress(OSError):
                    await self.set_incompatible(self.header.incompatible | Incompatible.CORRUPT)
        else:
            self.host.report(
                f"qcow2: Image is corrupt: {found.message}; further non-fatal corruption events will be suppressed"
            )
        self.host.corrupted(found.message, offset=found.offset, size=found.size, fatal=fatal)
