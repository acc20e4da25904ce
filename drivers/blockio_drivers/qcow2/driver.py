"""The qcow2 driver: versions 2 and 3, put together from its parts.

``image`` is what the parts share; ``mapping`` knows where guest bytes are, ``allocator`` which host clusters are
free, ``allocation`` makes room for writes, ``discard`` lets go of it, ``writeback`` brings it all to disk in an order
that no crash can harm, ``resize`` changes the length, ``compressed`` reads compressed clusters, ``compressing``
writes them; ``data_file`` is what is different where guest data has a file of its own; ``check``, ``repair``,
``create``, ``amend`` and ``info`` are what their names say; ``bitmaps`` loads and stores the dirty bitmaps that the
image keeps. This file opens, closes and delegates.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from blockio.aio.clock import Clock, LoopClock
from blockio.buffers import IoVector
from blockio.driver.base import (
    Allocation,
    Capabilities,
    CheckFix,
    CheckResult,
    ChildOpener,
    CreateTarget,
    DriverHost,
    FormatDriver,
    ImageStream,
    Measurement,
    MeasureSource,
    ReopenState,
    StreamRun,
)
from blockio.driver.gate import ReferenceKind
from blockio.errors import BlockError, CorruptImage, NoMedium, OptionError, UnsupportedFeature
from blockio.types import (
    BlockInfo,
    BlockLimits,
    Capability,
    Extent,
    ExtentKind,
    Extents,
    PreallocMode,
    RequestFlags,
    Role,
)
from blockio_drivers.qcow2.allocation import Writer
from blockio_drivers.qcow2.allocator import Allocator
from blockio_drivers.qcow2.bitmaps import PersistentBitmaps
from blockio_drivers.qcow2.cache import CacheStatistics
from blockio_drivers.qcow2.cleaning import CacheCleaner
from blockio_drivers.qcow2.compressed import CompressedReader
from blockio_drivers.qcow2.compressing import CompressedWriter
from blockio_drivers.qcow2.data_file import DataFile, DataFileWriter
from blockio_drivers.qcow2.discard import Discarder
from blockio_drivers.qcow2.header import MAGIC, Autoclear, CryptMethod, Header, header_area
from blockio_drivers.qcow2.holes import data_may_be_hole
from blockio_drivers.qcow2.image import Corruption, Image, finish
from blockio_drivers.qcow2.info import specific_info
from blockio_drivers.qcow2.lanes import Lanes
from blockio_drivers.qcow2.mapping import Mapping
from blockio_drivers.qcow2.options import Qcow2AmendOptions, Qcow2CreateOptions, Qcow2Options, join_options
from blockio_drivers.qcow2.overlap import OverlapGuard
from blockio_drivers.qcow2.resize import Resizer
from blockio_drivers.qcow2.snapshots import Snapshots
from blockio_drivers.qcow2.tables import Geometry
from blockio_drivers.qcow2.tuning import Tuning
from blockio_drivers.qcow2.vmstate import MachineState
from blockio_drivers.qcow2.writeback import WriteBack

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping as NamedValues

    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.aio.flight import Flight
    from blockio.driver.child import Child
    from blockio.driver.inspection import HeaderReport, InspectSource
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.types import Limits
    from blockio_drivers.qcow2.snapshot_table import SnapshotEntry

__all__ = ["Qcow2Driver"]

T = TypeVar("T")


class Parts(NamedTuple):
    """What an image is worked on with; see the modules of these names."""

    image: Image
    mapping: Mapping
    allocator: Allocator
    write_back: WriteBack
    snapshots: Snapshots
    bitmaps: PersistentBitmaps


_MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)
_ZERO_WRITE: Final = int(RequestFlags.ZERO_WRITE)


class Qcow2Driver(FormatDriver):
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
        resize=Capability.NATIVE,
        backing=True,
        zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK,
    )

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._arming = asyncio.Lock()
        self._revising = asyncio.Lock()
        self._data_may_be_hole: bool | None = None
        self.clock: Clock = LoopClock()
        self._cleaner = CacheCleaner(self._clean)

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
        # reason: most processes create nothing
        from blockio_drivers.qcow2.create import create_image  # noqa: PLC0415

        await create_image(target, options)

    @classmethod
    async def co_inspect(cls, source: InspectSource, trust: Limits) -> HeaderReport:
        """Header, extensions, snapshot table; see ``inspect``."""
        # reason: most processes inspect nothing
        from blockio_drivers.qcow2.inspect import inspect_image  # noqa: PLC0415

        return await inspect_image(source, trust)

    @classmethod
    async def co_measure(cls, options: Any, source: MeasureSource | None) -> Measurement:
        """As ``create_image`` would lay it out; see ``measure``."""
        # reason: most processes measure nothing
        from blockio_drivers.qcow2.measure import measure_image  # noqa: PLC0415

        return await measure_image(options, source)

    @classmethod
    def stream(cls, options: Any, length: int, runs: Sequence[StreamRun]) -> ImageStream:
        """All metadata, then the data in the disk's order; see ``streaming``."""
        # reason: most processes stream nothing
        from blockio_drivers.qcow2.streaming import stream_image  # noqa: PLC0415

        return stream_image(options, length, runs)

    # -- life

    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Read the header and the tables; make a writable image fit for writing.

        Raises what ``Header.decode`` raises, OptionError for options that contradict each other or the image, and
        any I/O error.
        """
        flags = self.host.flags
        self._options: Qcow2Options = options
        self.file = await opener.required("file", Role.IMAGE)
        header = await self._read_header()
        tuning = self._tuning = Tuning.of(options, header, self.host.trust)
        data = await self._open_data_file(header, opener)
        image = self._image = Image(self, header, lazy=tuning.lazy, data=data)
        await self._unlock()
        self._assemble(options, tuning)
        await self._load()
        if not flags.no_backing:
            self.backing = await self._open_backing(opener)
        self.length = image.length
        if not flags.inactive:
            await self._bitmaps.load()
        if image.writable and not flags.check:
            await self._signalling(self._arm())
        self._cleaner.start(self.clock, tuning.clean_interval)

    async def _unlock(self, before: Image | None = None) -> None:
        """Find how data is encrypted, and the key: that of *before*, where it is the same."""
        image, given = self._image, self._options.encrypt
        header = image.header
        if before is not None and before.encryption is not None and before.header.same_encryption(header):
            await before.encryption.refresh()  # whoever gave us the secret may have taken it back
            image.encryption = before.encryption
            return
        self.encrypted = header.crypt_method != CryptMethod.NONE
        if not self.encrypted and not given:
            return
        # reason: most images are not encrypted, and the ciphers take time to load
        from blockio_drivers.qcow2.encryption import check_options, open_encryption  # noqa: PLC0415

        secret = check_options(given, header.crypt_method)
        if self.encrypted:
            image.encryption = await open_encryption(self.file, header, secret, self.host)

    def _clean(self) -> None:
        """Let go of metadata that nobody used for a while."""
        self._mapping.cache.clean()
        self._allocator.cache.clean()

    async def _read_header(self) -> Header:
        flags = self.host.flags
        length = await self.file.co_getlength()
        head = await _worded("Could not read qcow2 header", self._read(0, min(length, 512)))
        data = await _worded("Could not read qcow2 header", self._read(0, min(length, header_area(head))))
        return Header.decode(
            data,
            file_length=length,
            trust=self.host.trust,
            check=flags.check,
            writable=not (flags.read_only or flags.inactive),
        )

    async def _read(self, offset: int, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        await self.file.co_preadv(offset, IoVector.of(data))
        return bytes(data)

    def _assemble(self, options: Qcow2Options, tuning: Tuning) -> None:
        """Make the parts and introduce them to each other."""
        image = self._image
        protected, sizes = tuning.protected, tuning.sizes
        image.guard = OverlapGuard(image, protected)
        image.pass_discard_other = options.pass_discard_other
        self._allocator = Allocator(image, sizes.refcount)
        self._write_back = WriteBack(image, self._allocator)
        self._mapping = Mapping(
            image,
            self._allocator,
            slice_bytes=sizes.l2_entry,
            cache_bytes=sizes.l2,
            write_back=self._write_back.run,
        )
        self._write_back.mapping = self._mapping
        writer = DataFileWriter if image.header.has_data_file else Writer
        self._writer = writer(image, self._mapping, self._allocator, self._write_back)
        if image.header.has_data_file:
            image.data_file = DataFile(image, self._writer.locks)
        self._discarder = Discarder(
            image,
            self._mapping,
            self._writer,
            self._write_back,
            pass_discard=options.pass_discard_request,
        )
        self._compressed = CompressedReader(image)
        self._compressing = CompressedWriter(
            image,
            self._mapping,
            self._allocator,
            self._writer,
            self._write_back,
            self._compressed,
            level=options.compression_level,
        )
        self._bitmaps = PersistentBitmaps(image, self._allocator)
        self._resizer = Resizer(
            image,
            self._mapping,
            self._allocator,
            self._writer,
            self._discarder,
            self._write_back,
            self._compressed,
        )
        self._snapshots = Snapshots(
            image,
            self._mapping,
            self._allocator,
            self._write_back,
            protect_tables="inactive_l2" in protected,
            pass_discard=options.pass_discard_snapshot,
        )
        self._state = MachineState(image, self._mapping, self._writer, self._resizer, self._compressed)
        lanes = self._lanes = Lanes(image, self._mapping)
        if image.blind:
            return
        # One call less for each request.
        vars(self).update(
            try_preadv=lanes.try_preadv,
            try_pwritev=lanes.try_pwritev,
            start_preadv=lanes.start_preadv,
            start_pwritev=lanes.start_pwritev,
        )

    def _tune(self, options: Qcow2Options, tuning: Tuning) -> None:
        """What *options* say is in force. All metadata is on disk, and no request under way."""
        before, self._options, self._tuning = self._tuning, options, tuning
        self._image.lazy = tuning.lazy
        self._image.pass_discard_other = options.pass_discard_other
        self._image.guard.choose(tuning.protected)
        self._discarder.pass_discard = options.pass_discard_request
        self._snapshots.pass_discard = options.pass_discard_snapshot
        self._snapshots.protect_tables = "inactive_l2" in tuning.protected
        self._compressing.level = options.compression_level
        if tuning.sizes != before.sizes:
            self._allocator.use_cache(tuning.sizes.refcount)
            self._mapping.use_cache(tuning.sizes.l2_entry, tuning.sizes.l2)
            self._lanes.find_slices()
        self._cleaner.start(self.clock, tuning.clean_interval)

    async def _load(self) -> None:
        """Read what is kept in memory whole: L1 and refcount table."""
        await _worded("Could not initialize refcount handling", self._allocator.open())
        await _worded("Could not read L1 table", self._mapping.open())
        if not self.host.flags.check:
            await self._snapshots.open()
        self._compressed.cache.drop()

    async def _protect(self) -> None:
        """Know all metadata, so that none is written over."""
        self._allocator.protect()
        self._mapping.protect()
        await self._snapshots.protect()

    async def _open_data_file(self, header: Header, opener: ChildOpener) -> Child | None:
        """Where guest data is, if not in the image. The image's word for it counts if the caller has none."""
        if self.host.flags.no_io:
            opener.ignore("data-file")
            return None
        if not header.has_data_file:
            if await opener.child("data-file", Role.DATA, optional=True) is not None:
                raise OptionError("'data-file' can only be set for images with an external data file")
            return None
        if header.data_file is None:
            found = await opener.child("data-file", Role.DATA, optional=True)
        else:
            kind = ReferenceKind.DATA_FILE.value
            found = await opener.implicit("data-file", Role.DATA, target=header.data_file, format=None, kind=kind)
        if found is None:
            raise OptionError("'data-file' is required for this image")
        return found

    async def _open_backing(self, opener: ChildOpener) -> Child | None:
        header = self._image.header
        if header.backing_file is None:
            return await opener.child("backing", Role.COW, optional=True)
        return await opener.implicit(
            "backing",
            Role.COW,
            target=header.backing_file,
            format=header.backing_format or None,  # an empty name is none
            kind=ReferenceKind.BACKING.value,
        )

    async def _arm(self) -> None:
        """Before the first change: drop what we do not maintain, and make refcounts true."""
        image = self._image
        known = image.header.autoclear & int(Autoclear.BITMAPS | Autoclear.DATA_FILE_RAW)
        if image.header.autoclear != known:
            await image.set_autoclear(known)
        if image.header.dirty:
            result = await self.co_check(CheckFix.ALL)
            if result.check_errors or image.header.dirty:
                raise CorruptImage("Could not repair dirty image")
        await self._protect()
        await self._bitmaps.begin()
        self._image.armed = True

    async def _ready(self) -> None:
        """The image is alive and fit for changes."""
        self._need_data()
        if not self._image.armed:
            async with self._arming:  # requests that come together must not repair side by side
                if not self._image.armed:
                    await self._arm()

    async def _signalling(self, work: Awaitable[T]) -> T:
        """Await *work*; a corruption it meets is reported, and on a writable image is the end of it."""
        try:
            return await work
        except Corruption as found:
            await self._corrupted(found)
            raise

    async def _corrupted(self, found: Corruption) -> None:
        await self._image.signal(found)
        if self._image.dead:
            self._mapping.cache.drop()  # the fast lane finds nothing any more

    async def close(self) -> None:
        """Write everything back, make it stable and mark the image clean. Releases also where that fails."""
        image = self._image
        self._cleaner.stop()
        try:
            if self._bitmaps.unsaved and not self._image.armed and image.writable:
                await self._signalling(self._ready())  # storing them failed before: one more try
            if self._image.armed and image.writable:
                await self._signalling(self._settle())
        finally:
            self._mapping.cache.drop()
            self._allocator.cache.drop()
            self._compressed.cache.drop()

    async def _settle_tables(self) -> None:
        """With no request under way: what is on disk is the truth."""
        await self._write_back.settle_all()
        await self._image.barrier()

    async def _settle(self) -> None:
        """Store the bitmaps, write everything back, mark the image clean: all of it, whichever fails."""
        lost: BlockError | None = None
        try:
            await self._bitmaps.store()
        except Corruption:
            raise
        except BlockError as error:
            node = self.host.node_name
            lost = error.prefixed(f"Lost persistent bitmaps during inactivation of node '{node}': ")
        try:
            await self._settle_tables()
            await self._image.mark_clean()
        except OSError as error:
            if lost is not None:
                error.add_note(str(lost))
            raise
        if lost is not None:
            raise lost

    async def inactivate(self) -> None:
        """Write everything back and mark the image clean, as ``close`` does; from then on it is only read."""
        armed, self._image.armed = self._image.armed, False
        if armed and self._image.writable:
            await self._signalling(self._settle())

    async def invalidate_cache(self) -> None:
        """Somebody else had the image: read header and tables anew, and make it fit for writing as ``open`` does.

        Raises as ``open`` does; what was known before is then as it was, to be read on.
        """
        before = vars(self).copy()
        try:
            header = await self._read_header()
            tuning = self._tuning = Tuning.of(self._options, header, self.host.trust)
            data = self._image.data if header.has_data_file else None
            if data is self.file:
                raise OptionError("'data-file' is required for this image")
            self._image = Image(self, header, lazy=tuning.lazy, data=data)
            await self._unlock(before["_image"])
            self._data_may_be_hole = None
            self._assemble(self._options, tuning)
            await self._load()
            self.length = self._image.length
            await self._bitmaps.load()
            if self._image.writable and not self.host.flags.check:
                await self._signalling(self._arm())
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise
        before["_mapping"].cache.drop()
        before["_allocator"].cache.drop()
        before["_compressed"].cache.drop()
        self.host.limits_changed()

    async def reopen_prepare(self, state: ReopenState) -> None:
        """To read-only or other options: write everything back and mark the image clean, as ``close`` does.

        To writable: CorruptImage for a corrupt image. OptionError for options that cannot be.
        """
        image, header = self._image, self._image.header
        was = self.host.flags.read_only
        if was and not state.flags.read_only and header.corrupt and not state.flags.check:
            raise CorruptImage("qcow2: Image is corrupt; cannot be opened read/write", 13)
        state.notes["tuning"] = Tuning.of(state.options, header, self.host.trust)
        behind = image.armed or self._mapping.dirty or self._allocator.dirty  # disarmed and dirty: a try that failed
        if behind and image.writable and (state.flags.read_only or state.options != self._options):
            image.armed = False  # what is stored must be made fit for changes again, should this come to nothing
            await self._signalling(self._settle())

    def reopen_commit(self, state: ReopenState) -> None:
        """The next change makes the image fit for changes again: others may have had it meanwhile."""
        self._image.armed = self._image.armed and not state.flags.read_only
        if state.options != self._options:
            self._tune(state.options, state.notes["tuning"])

    async def reopen_done(self) -> None:
        """A writable image is made fit for changes now, for its bitmaps' sake."""
        if self._image.writable and not self.host.flags.check:
            await self._ready()

    # -- facts

    def detach_context(self) -> None:
        """The old loop calls no more."""
        self._cleaner.stop()

    def attach_context(self, context: AioContext) -> None:
        """Locks and timer for the new loop."""
        self._cleaner.start(self.clock, self._tuning.clean_interval)
        self._arming = asyncio.Lock()
        self._revising = asyncio.Lock()
        for part in (self._image, self._allocator, self._mapping, self._write_back, self._compressing, self._bitmaps):
            part.change_loop()

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
        # reason: most processes amend nothing
        from blockio_drivers.qcow2.amend import amend_image  # noqa: PLC0415

        await self._ready()
        await self._signalling(amend_image(self, options, force=force, resize=resize, progress=progress))

    @property
    def parts(self) -> Parts:
        """What the image is worked on with, until ``renew``."""
        return Parts(self._image, self._mapping, self._allocator, self._write_back, self._snapshots, self._bitmaps)

    def renew(self, refcount_table: array[int] | None = None) -> None:
        """The header says that the image is laid out otherwise: put the parts together anew. Cannot fail.

        What is in memory goes on to be the truth; *refcount_table* is another one, where there is. Everything is
        settled and no request under way.
        """
        image, guard, bitmaps = self._image, self._image.guard, self._bitmaps
        allocator, snapshots = self._allocator, self._snapshots
        image.geometry = Geometry.of(image.header)
        self._assemble(self._options, self._tuning)
        image.guard = guard
        self._allocator.succeed(allocator, refcount_table)
        self._snapshots.succeed(snapshots)
        self._bitmaps = bitmaps
        bitmaps.use(self._allocator)

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

    def _need_data(self) -> None:
        """NoMedium where the image is dead, UnsupportedFeature where it was opened for information only."""
        if self._image.dead:
            raise NoMedium
        if self._image.blind:
            raise UnsupportedFeature("The image was opened without its data file")

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

    async def co_read_packed(self, pieces: Sequence[tuple[int, IoVector, Extent]]) -> None:
        """As ``co_read_compressed``: fetched together where they lie together, decompressed by one job in a thread."""
        await self._signalling(
            self._compressed.read_several([(offset, iov, extent.host_offset) for offset, iov, extent in pieces])
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
                self._compressed.cache.drop()  # what it knows may be freed, and used for something else

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
        # reason: few processes check
        if fix is CheckFix.NONE:
            from blockio_drivers.qcow2.check import check_image  # noqa: PLC0415

            return await check_image(self.file, image.header, trust=trust, report=report, progress=progress)
        from blockio_drivers.qcow2.repair import repair_image  # noqa: PLC0415

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

    async def _reload(self) -> None:
        """The image was changed behind our back: believe nothing that is in memory. Failing, it is dead to us."""
        image = self._image
        try:
            data = await self._read(0, image.geometry.cluster_size)
            image.header = Header.decode(data, trust=self.host.trust, check=True)
            await self._load()
            if self._image.armed:
                await self._protect()
        except BaseException:
            image.dead = True
            raise

    # -- the lanes that need no waiting (see ``lanes``); on an open image its own methods stand in for these

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """From memory's tables, down to the backing file."""
        return not self._image.blind and self._lanes.try_preadv(offset, bufs, nbytes)

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


async def _worded(what: str, work: Awaitable[T]) -> T:
    """Await *work*; its failure says *what* could not be done."""
    try:
        return await work
    except CorruptImage:
        raise  # it says what is wrong
    except BlockError as error:
        raise error.prefixed(f"{what}: ") from error
