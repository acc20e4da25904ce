"""The life of an open qcow2 image: opened, put together, made fit for changes, settled, handed to others, closed.

Nothing is changed before the image is armed (``Image.armed``): autoclear bits that mean nothing to us are cleared then,
refcounts made true and bitmaps marked as in use. Whoever else may have the image finds it settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from blockio.aio.clock import Clock, LoopClock
from blockio.buffers import IoVector
from blockio.driver.base import CheckFix, ChildOpener, DriverHost, FormatDriver, ReopenState
from blockio.driver.gate import ReferenceKind
from blockio.errors import BlockError, CorruptImage, NoMedium, OptionError, UnsupportedFeature
from blockio.types import Role
from blockio_drivers.qcow2.allocator import Allocator
from blockio_drivers.qcow2.bitmaps import PersistentBitmaps
from blockio_drivers.qcow2.cleaning import CacheCleaner
from blockio_drivers.qcow2.header import Autoclear, CryptMethod, Header, header_area
from blockio_drivers.qcow2.image import Corruption, Image
from blockio_drivers.qcow2.lanes import Lanes
from blockio_drivers.qcow2.mapping import Mapping
from blockio_drivers.qcow2.options import Qcow2Options
from blockio_drivers.qcow2.overlap import OverlapGuard
from blockio_drivers.qcow2.snapshots import Snapshots
from blockio_drivers.qcow2.tables import Geometry
from blockio_drivers.qcow2.tuning import Tuning
from blockio_drivers.qcow2.writeback import WriteBack

if TYPE_CHECKING:
    from array import array

    from blockio.aio.context import AioContext
    from blockio.driver.child import Child
    from blockio_drivers.qcow2.allocation import Writer
    from blockio_drivers.qcow2.compressed import CompressedReader
    from blockio_drivers.qcow2.compressing import CompressedWriter
    from blockio_drivers.qcow2.discard import Discarder
    from blockio_drivers.qcow2.resize import Resizer
    from blockio_drivers.qcow2.vmstate import MachineState

__all__ = ["Parts", "Qcow2Lifecycle"]

T = TypeVar("T")

_LATER: Final = ("_writer", "_discarder", "_compressed", "_compressing", "_resizer", "_state")


class Parts(msgspec.Struct, frozen=True):
    """What an image is worked on with; see the modules of these names."""

    image: Image
    mapping: Mapping
    allocator: Allocator
    write_back: WriteBack
    snapshots: Snapshots
    bitmaps: PersistentBitmaps


class Qcow2Lifecycle(FormatDriver):
    """What the driver does when no request is under way, or so that one may be."""

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._arming = asyncio.Lock()
        self._revising = asyncio.Lock()
        self._data_may_be_hole: bool | None = None
        self.clock: Clock = LoopClock()
        self._cleaner = CacheCleaner(self._clean)

    # -- opening

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
        image, header = self._image, self._image.header
        if before is not None and before.encryption is not None and before.header.same_encryption(header):
            await before.encryption.refresh()  # whoever gave us the secret may have taken it back
            image.encryption = before.encryption
            return
        self.encrypted = header.crypt_method != CryptMethod.NONE
        secret = _secret_in(self._options, header)
        if self.encrypted:
            # most images are not encrypted, and the ciphers take time to load
            from blockio_drivers.qcow2.encryption import open_encryption

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
        self._bitmaps = PersistentBitmaps(image, self._allocator)
        self._snapshots = Snapshots(
            image,
            self._mapping,
            self._allocator,
            self._write_back,
            protect_tables="inactive_l2" in protected,
            pass_discard=options.pass_discard_snapshot,
        )
        for part in _LATER:
            vars(self).pop(part, None)  # of an image that was put together before
        if image.header.has_data_file:
            from blockio_drivers.qcow2.data_file import DataFile  # most images have none

            image.data_file = DataFile(image, self._writer.locks)
        lanes = self._lanes = Lanes(image, self._mapping)
        if image.blind:
            return
        # One call less for each request.
        vars(self).update(
            try_preadv=lanes.try_preadv,
            try_descend=lanes.try_descend,
            try_pwritev=lanes.try_pwritev,
            start_preadv=lanes.start_preadv,
            start_pwritev=lanes.start_pwritev,
        )

    # Parts that most processes need not: made, and their modules loaded, when they are first used.

    @cached_property
    def _writer(self) -> Writer:
        if self._image.header.has_data_file:
            from blockio_drivers.qcow2.data_file import DataFileWriter

            return DataFileWriter(self._image, self._mapping, self._allocator, self._write_back)
        from blockio_drivers.qcow2.allocation import Writer

        return Writer(self._image, self._mapping, self._allocator, self._write_back)

    @cached_property
    def _discarder(self) -> Discarder:
        from blockio_drivers.qcow2.discard import Discarder

        return Discarder(
            self._image,
            self._mapping,
            self._writer,
            self._write_back,
            pass_discard=self._options.pass_discard_request,
        )

    @cached_property
    def _compressed(self) -> CompressedReader:
        from blockio_drivers.qcow2.compressed import CompressedReader

        return CompressedReader(self._image)

    @cached_property
    def _compressing(self) -> CompressedWriter:
        from blockio_drivers.qcow2.compressing import CompressedWriter

        return CompressedWriter(
            self._image,
            self._mapping,
            self._allocator,
            self._writer,
            self._write_back,
            self._compressed,
            level=self._options.compression_level,
        )

    @cached_property
    def _resizer(self) -> Resizer:
        from blockio_drivers.qcow2.resize import Resizer

        return Resizer(
            self._image,
            self._mapping,
            self._allocator,
            self._writer,
            self._discarder,
            self._write_back,
            self._compressed,
        )

    @cached_property
    def _state(self) -> MachineState:
        from blockio_drivers.qcow2.vmstate import MachineState

        return MachineState(self._image, self._mapping, self._writer, self._resizer, self._compressed)

    def _forget_decompressed(self) -> None:
        """What compressed clusters hold may have changed."""
        if "_compressed" in vars(self):
            self._compressed.cache.drop()

    def _tune(self, options: Qcow2Options, tuning: Tuning) -> None:
        """What *options* say is in force. All metadata is on disk, and no request under way."""
        before, self._options, self._tuning = self._tuning, options, tuning
        self._image.lazy = tuning.lazy
        self._image.pass_discard_other = options.pass_discard_other
        self._image.guard.choose(tuning.protected)
        self._snapshots.pass_discard = options.pass_discard_snapshot
        self._snapshots.protect_tables = "inactive_l2" in tuning.protected
        if "_discarder" in vars(self):
            self._discarder.pass_discard = options.pass_discard_request
        if "_compressing" in vars(self):
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
        self._forget_decompressed()

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

    # -- fit for changes, and at rest

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

    def _need_data(self) -> None:
        """NoMedium where the image is dead, UnsupportedFeature where it was opened for information only."""
        if self._image.dead:
            raise NoMedium
        if self._image.blind:
            raise UnsupportedFeature("The image was opened without its data file")

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

    # -- the end, and others who have the image meanwhile

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
            self._forget_decompressed()

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
        if "_compressed" in before:
            before["_compressed"].cache.drop()
        self.host.limits_changed()

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

    # -- reopening

    async def reopen_prepare(self, state: ReopenState) -> None:
        """To read-only or other options: write everything back and mark the image clean, as ``close`` does.

        To writable: CorruptImage for a corrupt image. OptionError for options that cannot be.
        """
        image, header = self._image, self._image.header
        was = self.host.flags.read_only
        if was and not state.flags.read_only and header.corrupt and not state.flags.check:
            raise CorruptImage("qcow2: Image is corrupt; cannot be opened read/write", 13)
        state.notes["tuning"] = Tuning.of(state.options, header, self.host.trust)
        _secret_in(state.options, header)
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

    # -- another loop

    def detach_context(self) -> None:
        """The old loop calls no more."""
        self._cleaner.stop()

    def attach_context(self, context: AioContext) -> None:
        """Locks and timer for the new loop."""
        self._cleaner.start(self.clock, self._tuning.clean_interval)
        self._arming = asyncio.Lock()
        self._revising = asyncio.Lock()
        for part in (self._image, self._allocator, self._mapping, self._write_back, self._bitmaps):
            part.change_loop()
        if "_compressing" in vars(self):
            self._compressing.change_loop()

    # -- for who changes all of the image

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


def _secret_in(options: Qcow2Options, header: Header) -> str | None:
    """The id of the secret for the data, if any. OptionError where *options* do not fit the image's encryption."""
    if header.crypt_method == CryptMethod.NONE and not options.encrypt:
        return None
    # as in ``_unlock``
    from blockio_drivers.qcow2.encryption import check_options

    return check_options(options.encrypt, header.crypt_method)


async def _worded(what: str, work: Awaitable[T]) -> T:
    """Await *work*; its failure says *what* could not be done."""
    try:
        return await work
    except CorruptImage:
        raise  # it says what is wrong
    except BlockError as error:
        raise error.prefixed(f"{what}: ") from error
