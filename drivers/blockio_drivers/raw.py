"""raw: the file's bytes are the disk's, or a window of them (``offset``, ``size``).

The mapping is one addition, so requests are handed to the file directly instead of going through
``co_map`` and ``co_allocate``; the mapping is there for those who ask where bytes lie.

A disk whose format was guessed is watched: a guest that writes another format's header into its first sector would
have the host read it as that format the next time (and open the backing file it names). Such a write is refused.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn

import msgspec

from blockio.buffers import IoVector
from blockio.driver.base import (
    Allocation,
    Capabilities,
    ChildOpener,
    CreateTarget,
    DriverHost,
    FormatDriver,
    ImageStream,
    Measurement,
    MeasureSource,
    ReopenState,
    StreamRun,
    default_child_perm,
)
from blockio.driver.options import Size
from blockio.errors import BlockError, LimitExceeded, OptionError, ReadOnly, UnsupportedFeature
from blockio.types import (
    MAX_LENGTH,
    BlockInfo,
    BlockLimits,
    BlockStatus,
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
    from blockio.driver.inspection import HeaderReport, InspectSource
    from blockio.types import Limits

__all__ = ["RawCreateOptions", "RawDriver", "RawOptions"]

_SECTOR: Final = 512
"""Disks are whole sectors, as guests see them; a file that ends inside one is read as if zeroes followed."""

_MAX_OFFSET: Final = 2**63 - 1
_PLACE: Final = StatusFlags.RAW | StatusFlags.OFFSET_VALID
_WRITES: Final = Perm.WRITE | Perm.RESIZE


class RawOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The window in bytes: where the disk begins in the file and, if given, how long it is (then it cannot grow)."""

    offset: Size = 0
    size: Size | None = None


class RawCreateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``size`` in bytes, rounded up to whole sectors; ``preallocation`` is the file's."""

    size: Size | None = None
    preallocation: PreallocMode = PreallocMode.OFF


class RawDriver(FormatDriver):
    """A window on its file. Invariant: ``length`` is a multiple of 512; with a fixed size it never changes."""

    name = "raw"
    Options = RawOptions
    CreateOptions = RawCreateOptions
    reopen_options = frozenset(("offset", "size"))
    capabilities = Capabilities(
        write_zeroes=Capability.NATIVE,
        discard=Capability.NATIVE,
        fua=Capability.NATIVE,
        resize=Capability.NATIVE,
        copy_range=Capability.NATIVE,
        zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK | RequestFlags.FUA,
    )

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self.offset = 0
        self.fixed_size: int | None = None
        self._resized = False

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """Anything can be raw: the least that is more than nothing, for when nobody else speaks up."""
        return 1

    @classmethod
    async def co_create(cls, target: CreateTarget, options: RawCreateOptions) -> None:
        if options.size is None:
            raise OptionError("Image creation needs a size parameter")
        size = _whole_sectors(options.size)
        if size >= 1 << 63:
            raise BlockError("Could not resize file: Invalid argument", errno.EINVAL)
        if size > MAX_LENGTH:
            raise LimitExceeded("Could not resize file: File too large")
        await target.file.co_truncate(size, exact=False, prealloc=options.preallocation)

    @classmethod
    async def co_inspect(cls, source: InspectSource, trust: Limits) -> HeaderReport:
        """There is no header: every byte is the guest's."""
        # most processes inspect nothing
        from blockio.driver.inspection import HeaderReport

        return HeaderReport(virtual_size=_whole_sectors(source.length))

    @classmethod
    async def co_measure(cls, options: Any, source: MeasureSource | None) -> Measurement:
        """Every byte has its place."""
        size = _whole_sectors(options.size if source is None else source.length)
        return Measurement(size, size)

    @classmethod
    def stream(cls, options: RawCreateOptions, length: int, runs: Sequence[StreamRun]) -> ImageStream:
        """The disk, zeroes and all."""
        return ImageStream((), [(0, length)] if length else [], length)

    # -- life

    async def open(self, options: RawOptions, opener: ChildOpener) -> None:
        # Without a window raw passes everything through, as a filter does; then it needs no more of its file
        # than its users need of it.
        windowed = options.offset > 0 or options.size is not None
        role = (Role.DATA if windowed else Role.FILTERED) | Role.PRIMARY
        self.file = await opener.required("file", role)
        containing = await self.file.co_getlength()
        self._check(options, containing)
        self._look_through(options, containing)
        if self.host.probed and not self.host.flags.read_only:
            self.host.report(
                f"WARNING: Image format was not specified for '{self.file.filename}' and probing guessed raw.\n"
                "         Automatically detecting the format is dangerous for raw images, write operations on block 0 "
                "will be restricted.\n"
                "         Specify the 'raw' format explicitly to remove the restrictions."
            )

    def _check(self, options: RawOptions, containing: int) -> None:
        """OptionError where the window does not lie in a file of *containing* bytes."""
        if options.offset > containing:
            raise OptionError(
                f"Offset ({options.offset}) cannot be greater than size of the containing file ({containing})"
            )
        if options.size is not None:
            if options.size > containing - options.offset:
                raise OptionError(
                    f"The sum of offset ({options.offset}) and size ({options.size}) has to be smaller or equal to the "
                    f" actual size of the containing file ({containing})"
                )
            if options.size % _SECTOR:
                raise OptionError(f"Specified size is not multiple of {_SECTOR}")

    def _look_through(self, options: RawOptions, containing: int) -> None:
        self.offset, self.fixed_size = options.offset, options.size
        self.length = self._length_in(containing)

    async def reopen_prepare(self, state: ReopenState) -> None:
        containing = await self.file.co_getlength()
        self._check(state.options, containing)
        state.notes["containing"] = containing

    def reopen_commit(self, state: ReopenState) -> None:
        before = self.length
        self._look_through(state.options, state.notes["containing"])
        self._resized = self.length != before

    async def reopen_done(self) -> None:
        """Another window may be of another length: tell those who look through it."""
        if self._resized:
            self._resized = False
            self.host.length_changed()

    def _length_in(self, containing: int) -> int:
        """How long the disk is in a file of *containing* bytes."""
        left = max(0, containing - self.offset)
        return _whole_sectors(left) if self.fixed_size is None else min(self.fixed_size, left)

    def child_perm(self, child: str, role: Role, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        # What a format needs to write and grow its metadata, raw has no use for: there is none.
        wanted, allowed = default_child_perm(role, perm, shared, self.host.flags)
        return (wanted & ~_WRITES) | (perm & _WRITES), allowed

    # -- facts

    def limits(self) -> BlockLimits:
        """Whole sectors where the first one is watched: a write to it must be seen as a whole."""
        return BlockLimits(request_alignment=_SECTOR if self.host.probed else 1)

    def has_zero_init(self) -> bool:
        return self.file.has_zero_init()

    async def co_getlength(self) -> int:
        self.length = self._length_in(await self.file.co_getlength())
        return self.length

    async def co_get_info(self) -> BlockInfo:
        return await self.file.co_get_info()

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        return Extent(ExtentKind.DATA, nbytes, offset + self.offset, self.file)

    def try_map(self, offset: int, nbytes: int) -> Extent | None:
        return Extent(ExtentKind.DATA, nbytes, offset + self.offset, self.file)

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        raise AssertionError("raw writes in place")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        return BlockStatus(_PLACE, nbytes, offset + self.offset, self.file.node_name)

    # -- requests

    def _refuse_beyond(self) -> NoReturn:
        raise BlockError(errno=errno.ENOSPC)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        if self.file.debug_event is not None:
            await self.file.debug_event("read_aio")
        await self.file.co_preadv(offset + self.offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        if self.fixed_size is not None and offset + iov.nbytes > self.fixed_size:
            self._refuse_beyond()
        if offset < _SECTOR and self.host.probed:
            iov = self._checked_first_sector(iov)
        if self.file.debug_event is not None:
            await self.file.debug_event("write_aio")
        await self.file.co_pwritev(offset + self.offset, iov, flags)
        self._reached(offset + iov.nbytes)

    def _reached(self, end: int) -> None:
        """A write ended at *end*: past the disk's end it has made the disk longer, by whole sectors."""
        if end > self.length:
            self.length = _whole_sectors(end)
            self.host.length_changed()

    def _checked_first_sector(self, iov: IoVector) -> IoVector:
        """*iov* with its first sector copied and looked at; ReadOnly (EPERM) if it is the head of another format.

        The copy is what is written: a guest may change its own memory after the look.
        """
        from blockio.driver.probe import guess_format  # only a guessed raw needs it

        head = iov.slice(0, _SECTOR).tobytes()
        if guess_format(head) != self.name:
            raise ReadOnly
        return IoVector.of(head).concat(iov.slice(_SECTOR, iov.nbytes - _SECTOR))

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        if self.fixed_size is not None and offset + nbytes > self.fixed_size:
            self._refuse_beyond()
        await self.file.co_pwrite_zeroes(offset + self.offset, nbytes, flags)
        self._reached(offset + nbytes)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        if self.fixed_size is not None and offset + nbytes > self.fixed_size:
            self._refuse_beyond()
        await self.file.co_pdiscard(offset + self.offset, nbytes)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        if self.fixed_size is not None:
            raise UnsupportedFeature("Cannot resize fixed-size raw disks")
        if length > _MAX_OFFSET - self.offset:
            raise BlockError("Disk size too large for the chosen offset", errno.EINVAL)
        await self.file.co_truncate(length + self.offset, exact=exact, prealloc=prealloc, flags=flags)
        self.length = self._length_in(self.file.length)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return self.file.try_preadv(offset + self.offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        if offset < _SECTOR and self.host.probed:
            return False
        return self.file.try_pwritev(offset + self.offset, bufs, nbytes)

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        return self.file.start_preadv(offset + self.offset, bufs, nbytes)

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        if offset < _SECTOR and self.host.probed:
            return None
        return self.file.start_pwritev(offset + self.offset, bufs, nbytes)


def _whole_sectors(nbytes: int) -> int:
    return -(-nbytes // _SECTOR) * _SECTOR
