"""The qcow2 driver: versions 2 and 3, put together from its parts.

``image`` is what the parts share; ``mapping`` knows where guest bytes are, ``allocator`` which host clusters are
free, ``allocation`` makes room for writes, ``discard`` lets go of it, ``writeback`` brings it all to disk in an order
that no crash can harm, ``resize`` changes the length, ``compressed`` reads compressed clusters, ``compressing``
writes them; ``data_file`` is what is different where guest data has a file of its own; ``check``, ``repair``,
``create``, ``amend`` and ``info`` are what their names say; ``bitmaps`` loads and stores the dirty bitmaps that the
image keeps. ``lifecycle`` opens and closes all that; this file knows the format by its head, and delegates requests.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from blockio.buffers import IoVector
from blockio.driver.base import (
    Allocation,
    Capabilities,
    CheckFix,
    CheckResult,
    CreateTarget,
    ImageStream,
    Measurement,
    MeasureSource,
    StreamRun,
)
from blockio.errors import BlockError, NoMedium
from blockio.types import (
    BlockInfo,
    BlockLimits,
    Capability,
    Extent,
    ExtentKind,
    Extents,
    PreallocMode,
    RequestFlags,
)
from blockio_drivers.qcow2.cache import CacheStatistics
from blockio_drivers.qcow2.header import MAGIC, Autoclear
from blockio_drivers.qcow2.holes import data_may_be_hole
from blockio_drivers.qcow2.image import Corruption, finish
from blockio_drivers.qcow2.lifecycle import Qcow2Lifecycle
from blockio_drivers.qcow2.options import Qcow2AmendOptions, Qcow2CreateOptions, Qcow2Options, join_options

if TYPE_CHECKING:
    from collections.abc import Mapping as NamedValues

    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.driver.child import Child
    from blockio.driver.inspection import HeaderReport, InspectSource
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.types import Limits
    from blockio_drivers.qcow2.snapshot_table import SnapshotEntry

__all__ = ["Qcow2Driver"]

_MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)
_ZERO_WRITE: Final = int(RequestFlags.ZERO_WRITE)


class Qcow2Driver(Qcow2Lifecycle):
    """QEMU's copy-on-write format.

    Invariant: nothing is changed before the image is armed (``Image.armed``).
    """

    name = "qcow2"
    Options = Qcow2Options
    strong_options = frozenset(("encrypt.key-secret",))
    reopen_options = frozenset(Qcow2Options.__struct_encode_fields__)
    CreateOptions = Qcow2CreateOptions
    AmendOptions = Qcow2AmendOptions
    stores_bitmaps = True
    capabilities = Capabilities(
        write_zeroes=Capability.NATIVE,
        discard=Capability.NATIVE,
        fua=Capability.EMULATED,
        write_compressed=Capability.NATIVE,
        copy_range=Capability.NATIVE,
        resize=Capability.NATIVE,
        backing=True,
        zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK,
    )

    # -- probing and creation

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """Magic and a version that is not that of the first qcow format."""
        return 100 if head[:4] == MAGIC and int.from_bytes(head[4:8], "big") >= 2 else 0

    @classmethod
    def join_options(cls, old: NamedValues[str, Any], new: NamedValues[str, Any]) -> dict[str, Any]:
        """A new template of overlap checks, or a new size of caches, replaces old ones."""
        return join_options(old, new)

    @classmethod
    async def co_create(cls, target: CreateTarget, options: Any) -> None:
        """Write the empty image that *options* describe."""
        # most processes create nothing
        from blockio_drivers.qcow2.create import create_image

        await create_image(target, options)

    @classmethod
    async def co_inspect(cls, source: InspectSource, trust: Limits) -> HeaderReport:
        """Header, extensions, snapshot table; see ``inspect``."""
        # most processes inspect nothing
        from blockio_drivers.qcow2.inspect import inspect_image

        return await inspect_image(source, trust)

    @classmethod
    async def co_measure(cls, options: Any, source: MeasureSource | None) -> Measurement:
        """As ``create_image`` would lay it out; see ``measure``."""
        # most processes measure nothing
        from blockio_drivers.qcow2.measure import measure_image

        return await measure_image(options, source)

    @classmethod
    def stream(cls, options: Any, length: int, runs: Sequence[StreamRun]) -> ImageStream:
        """All metadata, then the data in the disk's order; see ``streaming``."""
        # most processes stream nothing
        from blockio_drivers.qcow2.streaming import stream_image

        return stream_image(options, length, runs)

    # -- facts

    def limits(self) -> BlockLimits:
        """Zero writes and discards work on whole subclusters, ciphers on whole sectors."""
        size = self._image.geometry.subcluster_size
        unit = 512 if self.encrypted else 1
        return BlockLimits(request_alignment=unit, pwrite_zeroes_alignment=size, pdiscard_alignment=size)

    def has_zero_init(self) -> bool:
        """A new image maps nothing; one that was preallocated relies on its file, and is noise if encrypted."""
        return not any(self._image.l1[:1]) or (not self.encrypted and self._image.data.has_zero_init())

    async def co_get_info(self) -> BlockInfo:
        """Cluster and subcluster size, and whether refcounts lag behind."""
        image, geometry = self._image, self._image.geometry
        entries = geometry.l1_entries_for(image.length)
        vm_state = entries << geometry.l1_shift
        return BlockInfo(geometry.cluster_size, geometry.subcluster_size, vm_state, image.header.dirty)

    def specific_info(self) -> dict[str, Any]:
        """``format-specific`` of ``info``."""
        # only info asks
        from blockio_drivers.qcow2.info import specific_info

        encryption = self._image.encryption
        return specific_info(
            self._image.header, self._bitmaps.info(), None if encryption is None else encryption.info()
        )

    def backing_reference(self) -> tuple[str, str | None] | None:
        """Name and format of the backing file, as the header has them."""
        header = self._image.header
        return None if header.backing_file is None else (header.backing_file, header.backing_format or None)

    async def co_amend(
        self,
        options: Any,
        *,
        force: bool,
        resize: Callable[[int], Awaitable[None]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """See ``amend``."""
        # most processes amend nothing
        from blockio_drivers.qcow2.amend import amend_image

        await self._ready()
        await self._signalling(amend_image(self, options, force=force, resize=resize, progress=progress))

    async def co_change_backing_file(self, name: str | None, format: str | None) -> None:
        """Everything else is made stable first, then the header changes, at once; see ``header_update``."""
        await self._ready()
        if name and self._image.header.autoclear & Autoclear.DATA_FILE_RAW:
            raise BlockError(errno=errno.EINVAL)  # the data file alone would no longer be the disk
        await self._signalling(self._settle_tables())
        changed = self._image.header.with_(backing_file=name or None, backing_format=format)
        await self._image.replace_header(changed)

    def statistics(self) -> dict[str, CacheStatistics]:
        """Snapshots of the ``l2``, ``refcount`` and ``compressed`` caches."""
        return {
            "l2": self._mapping.cache.statistics(),
            "refcount": self._allocator.cache.statistics(),
            "compressed": self._compressed.cache.statistics(),
        }

    # -- the mapping

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        """One run of one kind, over as many clusters as it reaches."""
        self._need_data()
        extent = await self._signalling(self._mapping.map(offset, nbytes))
        return _veiled(extent) if self.encrypted else extent

    def try_map(self, offset: int, nbytes: int) -> Extent | None:
        """The same from the slices in memory."""
        extent = None if self._image.dead or self._image.blind else self._mapping.try_map(offset, nbytes)
        return _veiled(extent) if extent is not None and self.encrypted else extent

    def try_map_many(self, offset: int, nbytes: int) -> Sequence[Extents]:
        """What one slice in memory says."""
        extents = () if self._image.dead or self._image.blind else self._mapping.try_map_many(offset, nbytes)
        return list(map(_all_veiled, extents)) if self.encrypted else extents

    async def co_data_may_be_hole(self) -> bool:
        """Whether only metadata was preallocated; looked up once."""
        if self._data_may_be_hole is None:
            self._data_may_be_hole = await self._signalling(data_may_be_hole(self._image, self._allocator))
        return self._data_may_be_hole

    def map_begin(self) -> object:
        """From now on what is freed stays untouched."""
        return self._image.retired.enter()

    def map_end(self, token: object) -> None:
        """This reader is done."""
        assert isinstance(token, int)
        self._image.retired.exit(token)

    async def co_read_compressed(self, offset: int, iov: IoVector, extent: Extent) -> None:
        """Decompress the cluster that *extent* stands for."""
        await self._signalling(self._compressed.read(offset, iov, extent.host_offset))

    async def co_read_packed(self, rows: Sequence[tuple[int, IoVector, Extents]]) -> None:
        """As ``co_read_compressed``: fetched together where they lie together, decompressed by one job in a thread."""
        await self._signalling(
            self._compressed.read_rows([(offset, iov, row.lengths, row.host_offsets) for offset, iov, row in rows])
        )

    async def co_read_encrypted(self, offset: int, iov: IoVector, extent: Extent) -> None:
        """See ``encryption``."""
        assert extent.child is not None  # so it is mapped
        await self._image.read_data(extent.child, offset, extent.host_offset, iov)

    async def co_write_encrypted(self, child: Child, offset: int, host_offset: int, data: IoVector) -> None:
        """See ``encryption``."""
        await self._image.write_data(child, offset, host_offset, data)

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        """In place where the clusters are ours alone, else a run of new ones."""
        if not self._image.armed or self._image.dead:
            await self._ready()
        try:
            allocation = await self._writer.allocate(offset, nbytes)
        except Corruption as found:
            await self._corrupted(found)
            raise
        if self.encrypted:
            allocation.fresh = False  # what is zero in the file is noise to the guest
        return allocation

    # -- requests

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        """Store clusters compressed; see ``compressing``."""
        await self._ready()
        await self._signalling(self._compressing.write(offset, iov))

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        """Zero clusters; UnsupportedFeature where the format has no way to say it."""
        await self._ready()
        await self._signalling(self._discarder.zero(offset, nbytes, unmap=bool(flags & _MAY_UNMAP)))

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """Let go of whole clusters."""
        await self._ready()
        await self._signalling(self._discarder.discard(offset, nbytes))

    async def co_make_empty(self) -> None:
        """Every cluster becomes unallocated: what the backing file holds shows again. The file gets shorter."""
        await self._ready()
        await self._signalling(self._empty())

    async def _empty(self) -> None:
        await self._image.event("empty_image_prepare")
        clusters = -(-self.length // self._image.geometry.cluster_size)
        await self._discarder.crop(0, clusters * self._image.geometry.cluster_size)
        for index in range(len(self._image.l1)):
            self._mapping.drop_table(index)
        await self._write_back.run()
        await self._image.barrier()
        await self._resizer.cut_file()

    async def co_flush_to_os(self) -> None:
        """Write metadata back, with the barriers that its order needs."""
        await self._signalling(self._write_back.run())

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        """Grow or shrink; see ``resize``."""
        await self._ready()
        self._bitmaps.refuse_resize(length)
        zero = bool(flags & _ZERO_WRITE)
        work = self._resizer.truncate(length, PreallocMode(prealloc), exact=exact, zero=zero)
        try:
            await self._signalling(work)
        finally:
            self.length = self._image.length  # the new one also where a failure or a cancellation came too late

    # -- snapshots

    async def co_snapshot_list(self) -> tuple[SnapshotInfo, ...]:
        """As the image's table has them."""
        return self._snapshots.infos()

    async def co_snapshot_create(self, snapshot: SnapshotInfo) -> SnapshotInfo:
        """See ``snapshots``."""
        await self._revised(lambda: self._snapshots.create(snapshot))
        return self._snapshots.infos()[-1]

    async def co_snapshot_goto(self, name: str) -> None:
        """See ``snapshots``."""
        await self._revised(lambda: self._snapshots.goto(name))

    async def co_snapshot_delete(self, id: str | None, name: str | None) -> None:
        """See ``snapshots``."""
        await self._revised(lambda: self._snapshots.delete(id, name))

    async def co_snapshot_rename(self, id: str | None, name: str | None, new_name: str) -> None:
        """See ``snapshots``."""
        await self._revised(lambda: self._snapshots.rename(id, name, new_name))

    async def _revised(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do what changes snapshots; one at a time, and no machine's state meanwhile."""
        await self._ready()
        async with self._revising:
            try:
                await self._signalling(work())
            finally:
                self.length = self._image.length
                self._forget_decompressed()  # what it knows may be freed, and used for something else

    async def co_snapshot_load(self, id: str | None, name: str | None) -> None:
        """Show what a snapshot kept; the length stays the disk's, as QEMU has it. ReadOnly unless opened read-only."""
        if self._image.writable:
            raise BlockError("Device is not readonly", errno.EINVAL)
        await self._signalling(self._snapshots.load(id, name))

    # -- a machine's state

    async def co_save_vmstate(self, iov: IoVector, pos: int) -> None:
        """See ``vmstate``."""
        await self._ready()
        async with self._revising:
            await self._signalling(self._state.save(iov, pos))

    async def co_load_vmstate(self, iov: IoVector, pos: int) -> None:
        """See ``vmstate``."""
        if self._image.dead:
            raise NoMedium
        async with self._revising:
            await self._signalling(self._state.load(iov, pos))

    async def co_check(self, fix: CheckFix, progress: Callable[[int, int], None] | None = None) -> CheckResult:
        """Check, and repair as *fix* says; what was repaired is read anew. No other request may be under way."""
        image = self._image
        if self._image.armed and image.writable:
            await self._signalling(self._settle_tables())
        trust, report = self.host.trust, self.host.report
        if fix is CheckFix.NONE:
            from blockio_drivers.qcow2.check import check_image

            return await check_image(self.file, image.header, trust=trust, report=report, progress=progress)
        from blockio_drivers.qcow2.repair import repair_image

        tables: list[tuple[list[SnapshotEntry], int]] = []
        try:
            result, _ = await repair_image(
                self.file,
                image.header,
                fix,
                trust=trust,
                report=report,
                progress=progress,
                mend_snapshots=lambda *table: tables.append(table),
            )
        finally:
            await finish(self._reload())
        if tables:
            await self._protect()
            await self._signalling(self._snapshots.rewrite(*tables[0]))
            await self._signalling(self._settle_tables())
        return result

    # -- persistent bitmaps

    def supports_persistent_dirty_bitmap(self) -> bool:
        """From version 3 on."""
        return self._image.header.version >= 3

    async def co_can_store_new_dirty_bitmap(self, name: str, granularity: int) -> None:
        """See ``bitmaps``."""
        if self._image.writable:
            await self._ready()
        self._bitmaps.can_store(name, granularity)

    async def co_remove_persistent_dirty_bitmap(self, name: str) -> None:
        """See ``bitmaps``."""
        await self._ready()
        await self._signalling(self._bitmaps.remove(name))

    # -- the lanes that need no waiting (see ``lanes``); on an open image its own methods stand in for these

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """From memory's tables, down to the backing file."""
        return not self._image.blind and self._lanes.try_preadv(offset, bufs, nbytes)

    def try_descend(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool | Child:
        """As ``try_preadv``, but for what is below."""
        return not self._image.blind and self._lanes.try_descend(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Into clusters of our own."""
        return not self._image.blind and self._lanes.try_pwritev(offset, bufs, nbytes)

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """As ``try_preadv``."""
        return None if self._image.blind else self._lanes.start_preadv(offset, bufs, nbytes)

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """As ``try_pwritev``."""
        return None if self._image.blind else self._lanes.start_pwritev(offset, bufs, nbytes)


def _veiled(extent: Extent) -> Extent:
    """*extent* of an encrypted image: others can do nothing with places in the file."""
    if extent.kind is ExtentKind.DATA:
        return extent._replace(kind=ExtentKind.ENCRYPTED)
    return extent if extent.kind is ExtentKind.COMPRESSED else extent._replace(host_offset=-1, child=None)


def _all_veiled(extents: Extents) -> Extents:
    """The same for several."""
    if extents.kind is ExtentKind.DATA:
        return extents._replace(kind=ExtentKind.ENCRYPTED)
    nowhere = Extents(extents.kind, extents.lengths, [-1] * len(extents.lengths))
    return extents if extents.kind is ExtentKind.COMPRESSED else nowhere
