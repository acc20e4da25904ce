"""The ``file`` and ``host_device`` drivers: regular files, and devices of the host.

Bytes are moved by a ``FileEngine`` (see ``blockio.aio.engine`` for the ladder). The file is locked against other
users, blockio's or QEMU's, with lock bytes. With ``cache.direct=on`` it is opened with O_DIRECT.
"""

from __future__ import annotations

import errno
import os
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import msgspec

from blockio.aio import syscalls
from blockio.aio.engine import FileEngine, choose_engine
from blockio.aio.threads import in_worker
from blockio.driver.base import Capabilities, ChildOpener, DriverHost, ProtocolDriver, ReopenState
from blockio.driver.options import Size
from blockio.errors import BlockError, ReadOnly, UnsupportedFeature
from blockio.types import (
    BlockLimits,
    BlockSizes,
    BlockStatus,
    Capability,
    Geometry,
    Perm,
    PreallocMode,
    RequestFlags,
    StatusFlags,
)
from blockio_drivers.posix import direct
from blockio_drivers.posix.locks import LockBytes
from blockio_drivers.posix.opening import (
    OpenFile,
    close_descriptor,
    measure,
    open_blocking,
    opened_in_worker,
    same_storage,
)
from blockio_drivers.posix.space import DataRange, Space, find_all_data, find_data, resize_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul, Part, Put
    from blockio.buffers import IoVector
    from blockio.driver.base import BlockDriver

__all__ = ["FileCreateOptions", "FileDriver", "FileOptions", "HostDeviceCreateOptions", "HostDeviceDriver"]

_FUA: Final = int(RequestFlags.FUA)
_MOST_RANGES: Final = 512
"""How many ranges of data are asked for at once: a millisecond's worth."""

_MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)
_NO_FALLBACK: Final = int(RequestFlags.NO_FALLBACK)
_DATA: Final = StatusFlags.DATA | StatusFlags.OFFSET_VALID
_HOLE: Final = StatusFlags.ZERO | StatusFlags.OFFSET_VALID
_NO_RANGE: Final = DataRange(0, 0)


class FileOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """How ``file`` and ``host_device`` are opened, in QEMU's words."""

    filename: str
    locking: Literal["auto", "on", "off"] = "auto"
    """``auto``: lock where the file system has open file description locks."""
    aio: Literal["threads", "native", "io_uring"] | None = None
    """The slow step of the engine; unset: io_uring where the kernel allows it, else threads."""
    aio_max_batch: int = 0
    """Requests submitted to the ring at once at most; 0: as many as a turn of the loop brings."""
    drop_cache: bool = True
    """Accepted for QEMU's sake, where it matters on a migration's target."""


class FileCreateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a new file is made."""

    size: Size
    preallocation: PreallocMode = PreallocMode.OFF
    nocow: bool = False
    """Ask btrfs not to copy this file on write."""
    extent_size_hint: Size | None = None
    """Ask the file system (XFS) to allocate this many bytes at a time; unset: 1 MiB, 0: leave it alone."""


class HostDeviceCreateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a device is made ready for a new image."""

    size: Size
    preallocation: PreallocMode = PreallocMode.OFF


class FileDriver(ProtocolDriver):
    """Regular files.

    Invariant: while open, ``_file`` is the open descriptor and ``_engine`` its engine; both change together, in
    ``reopen_commit``. ``_data`` is a range known to hold data (QEMU's block status cache): only what this driver
    itself zeroes, discards or cuts can turn data into a hole, and that empties it, before and after.
    """

    name: ClassVar[str] = "file"
    protocols: ClassVar[tuple[str, ...]] = ("file",)
    Options = FileOptions
    strong_options: ClassVar[frozenset[str] | None] = frozenset()
    CreateOptions: ClassVar[type[msgspec.Struct] | None] = FileCreateOptions
    capabilities = Capabilities(
        write_zeroes=Capability.NATIVE,
        discard=Capability.NATIVE,
        fua=Capability.NATIVE,
        resize=Capability.NATIVE,
        copy_range=Capability.NATIVE,
        zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK,
    )

    _file: OpenFile
    _engine: FileEngine
    _locks: LockBytes | None

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self.filename = ""
        self._options: FileOptions | None = None
        self._space = Space(is_block_device=False)
        self._data = _NO_RANGE
        self._holes_unknown = False
        self._flush_failed = 0
        self._locks = None

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """``file:NAME`` and ``NAME``; what follows the colon is a path and nothing else, ``//`` included."""
        return {"filename": filename.removeprefix(f"{cls.name}:")}

    # -- making files

    @classmethod
    async def co_create_file(cls, filename: str, options: Any) -> None:
        """An empty file of ``size`` bytes; one that is there is emptied, unless somebody uses it (ImageLocked)."""
        from blockio_drivers.posix.creating import create_file  # most processes create nothing, here as below

        await create_file(
            filename,
            options.size,
            options.preallocation,
            nocow=options.nocow,
            extent_size_hint=options.extent_size_hint,
        )

    @classmethod
    async def co_file_exists(cls, filename: str) -> bool:
        """Whether there is a file (or anything) of that name."""
        return await in_worker(os.path.lexists, filename)

    @classmethod
    async def co_delete_file(cls, filename: str) -> None:
        """Remove the file."""
        try:
            await in_worker(os.unlink, filename)
        except OSError as error:
            raise BlockError(f"Could not delete '{filename}': {error.strerror}", error.errno) from error

    # -- life

    async def open(self, options: FileOptions, opener: ChildOpener) -> None:
        """Open the file; with ``auto_read_only`` one that may not be written becomes read-only."""
        self.filename = options.filename
        self._options = options
        flags = self.host.flags
        try:
            file = await self._open_file(writable=not flags.read_only, cached=not flags.cache_direct)
        except ReadOnly as error:
            if not flags.auto_read_only:
                raise
            self.host.fall_back_read_only(error.message)
            file = await self._open_file(writable=False, cached=not flags.cache_direct)
        try:
            self._serve(file, self._make_engine(file, self.host.context))
        except BaseException:
            os.close(file.fd)
            raise
        self.length = file.length
        if options.locking != "off":
            self._locks = LockBytes(file.fd, self.filename, required=options.locking == "on")

    async def _open_file(self, *, writable: bool, cached: bool) -> OpenFile:
        return await opened_in_worker(
            partial(open_blocking, self.filename, driver=self.name, writable=writable, direct=not cached)
        )

    def _make_engine(self, file: OpenFile, context: AioContext) -> FileEngine:
        assert self._options is not None
        return choose_engine(
            file.fd,
            context,
            aio=self._options.aio,
            direct=file.dio is not None,
            max_batch=max(self._options.aio_max_batch, 0),
            alignment=1 if file.dio is None else file.dio.memory,
        )

    def _serve(self, file: OpenFile, engine: FileEngine) -> None:
        self._file = file
        self._engine = engine
        self._space = Space(is_block_device=file.is_block_device)
        self._data = _NO_RANGE
        self._holes_unknown = file.is_device
        self._bind()

    def _bind(self) -> None:
        # The engine's own functions, so that the fast lane has no frame of ours in it. Whoever holds the former ones
        # gets False from them, until limits_changed() has everybody look again.
        vars(self).update(try_preadv=self._engine.try_preadv, try_pwritev=self._engine.try_pwritev)

    async def close(self) -> None:
        """Let go of the locks with the descriptor. Errors of writing back come from flushes, not from here."""
        engine = self._engine
        if self._locks is not None and self._locks.fd != self._file.fd:
            os.close(self._locks.fd)  # one that a reopen could not take the locks from
        try:
            await close_descriptor(self._file.fd, engine.run)
        finally:
            engine.close()

    async def invalidate_cache(self) -> None:
        """Forget the host's cached pages as well: another host may have written to the storage (``drop_cache``)."""
        self._data = _NO_RANGE
        assert self._options is not None
        if self._options.drop_cache and self._file.dio is None:
            fd = self._file.fd
            # Dirty pages would stay; we have none, but another process of this host may.
            await self._engine.run(os.fdatasync, fd)
            await self._engine.run(os.posix_fadvise, fd, 0, 0, os.POSIX_FADV_DONTNEED)

    async def reopen_prepare(self, state: ReopenState) -> None:
        """A second descriptor with the new access and cache mode, where those change.

        BlockError ESTALE where the name leads to another file by now: what was written would be torn in two.
        """
        flags = self.host.flags
        if (state.flags.read_only, state.flags.cache_direct) == (flags.read_only, flags.cache_direct):
            return
        file = await self._open_file(writable=not state.flags.read_only, cached=not state.flags.cache_direct)
        try:
            if not same_storage(self._file.fd, file.fd):
                raise BlockError(f"Could not reopen '{self.filename}': it is another file now", errno.ESTALE)
            state.notes["engine"] = self._make_engine(file, self.host.context)
        except BaseException:
            os.close(file.fd)
            raise
        state.notes["file"] = file

    def reopen_commit(self, state: ReopenState) -> None:
        """Change over; the lock bytes go along, so that nobody can come in between."""
        file = state.notes.pop("file", None)
        if file is None:
            return
        done = {self._file.fd}
        if self._locks is not None:
            done.add(self._locks.fd)  # an earlier one, if its locks had to stay with it
            self._locks.move(file.fd)
            done.discard(self._locks.fd)
        self._engine.close()
        for fd in done:
            os.close(fd)
        self._serve(file, state.notes.pop("engine"))

    def reopen_abort(self, state: ReopenState) -> None:
        """Forget the second descriptor."""
        file = state.notes.pop("file", None)
        if file is not None:
            state.notes.pop("engine").close()
            os.close(file.fd)

    def detach_context(self) -> None:
        """Let go of the context's ring and workers."""
        self._engine.detach()
        self._bind()

    def attach_context(self, context: AioContext) -> None:
        """Use those of *context*."""
        self._engine.attach(context)
        self._bind()
        self.host.limits_changed()

    # -- permissions

    def check_perm(self, perm: Perm, shared: Perm) -> None:
        """Take the lock bytes; ImageLocked where somebody else's are in the way."""
        if self._locks is not None:
            self._locks.take(perm, shared)

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        """Keep what is needed of them."""
        if self._locks is not None:
            self._locks.keep(perm, shared)

    def abort_perm(self) -> None:
        """Back to those held before."""
        if self._locks is not None:
            self._locks.give_back()

    # -- facts

    def limits(self) -> BlockLimits:
        """Bytes, or with O_DIRECT what the kernel asks for."""
        dio = self._file.dio
        if dio is None:
            return BlockLimits(min_mem_alignment=1, opt_mem_alignment=4096)
        return BlockLimits(
            request_alignment=dio.offset,
            min_mem_alignment=dio.memory,
            opt_mem_alignment=max(dio.memory, 4096),
        )

    def has_zero_init(self) -> bool:
        """New bytes of a file are zeroes."""
        return True

    async def co_getlength(self) -> int:
        """Asked of the kernel, which knows without blocking."""
        self.length = measure(self._file.fd, is_block_device=self._file.is_block_device)
        return self.length

    async def co_get_allocated_file_size(self) -> int | None:
        """The blocks the file system spends on it."""
        return os.fstat(self._file.fd).st_blocks * 512

    @property
    def aio(self) -> str:
        """The slow step that serves this file: ``io_uring`` or ``threads``."""
        return self._engine.name

    # -- requests

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """Behind the end of the file there are zeroes."""
        dio = self._file.dio
        if dio is None:
            got = await self._engine.preadv(offset, iov.views)
        else:
            got = await direct.preadv(self._engine, dio, offset, iov)
        if got < iov.nbytes:
            iov.slice(got, iov.nbytes - got).fill_zero()

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """FUA is RWF_DSYNC: these bytes are durable when it returns."""
        dsync = bool(flags & _FUA) and not self.host.flags.cache_no_flush
        dio = self._file.dio
        try:
            if dio is None:
                await self._engine.pwritev(offset, iov.views, dsync=dsync)
            else:
                await direct.pwritev(self._engine, dio, offset, iov, dsync=dsync)
        except OSError as error:
            if dsync:
                self._lost_write_back(error)
            raise

    async def co_flush_to_disk(self) -> None:
        """``fdatasync``. After one failure every later one fails too: see ``_lost_write_back``."""
        if self._flush_failed:
            raise BlockError(errno=self._flush_failed)
        try:
            await self._engine.fdatasync()
        except OSError as error:
            self._lost_write_back(error)
            raise

    def _lost_write_back(self, error: OSError) -> None:
        """The kernel reports a failed write-back once and drops the pages: no later success may hide that.

        Only the page cache loses data so; under O_DIRECT the next flush says the truth. Opening the file anew forgets.
        """
        if self._file.dio is None and error.errno == errno.EIO:
            self._flush_failed = errno.EIO

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """Data or hole, from SEEK_DATA and SEEK_HOLE; all is data where the file system cannot tell, or nobody asks."""
        node = self.host.node_name
        known = self._data
        if known.start <= offset < known.end:
            return BlockStatus(_DATA, min(nbytes, known.end - offset), offset, node)
        if not want_zero or self._holes_unknown:
            return BlockStatus(_DATA, nbytes, offset, node)
        try:
            found = await self._engine.run(find_data, self._file.fd, offset)
        except OSError as error:
            self._holes_unknown = error.errno != errno.EAGAIN
            return BlockStatus(_DATA, nbytes, offset, node)
        if found is None:
            return BlockStatus(_HOLE, nbytes, offset, node)
        # Blocks of O_DIRECT that hold any data are data.
        align = self.limits().request_alignment
        start, end = found.start & -align, (found.end + align - 1) & -align
        self._data = DataRange(start, end)
        if start > offset:
            return BlockStatus(_HOLE, min(nbytes, start - offset), offset, node)
        return BlockStatus(_DATA, min(nbytes, end - offset), offset, node)

    async def co_block_statuses(self, offset: int, nbytes: int) -> list[BlockStatus]:
        """By one look in one worker, of at most ``_MOST_RANGES`` ranges of data. Nothing of it is remembered."""
        if self._holes_unknown:
            return await super().co_block_statuses(offset, nbytes)
        try:
            found = await self._engine.run(find_all_data, self._file.fd, offset, offset + nbytes, _MOST_RANGES)
        except OSError:
            return await super().co_block_statuses(offset, nbytes)
        node, align, end = self.host.node_name, self.limits().request_alignment, offset + nbytes
        statuses: list[BlockStatus] = []
        at = offset
        for data in found:
            start, stop = min(data.start & -align, end), min((data.end + align - 1) & -align, end)
            if start > at:
                statuses.append(BlockStatus(_HOLE, start - at, at, node))
                at = start
            if stop > at:
                statuses.append(BlockStatus(_DATA, stop - at, at, node))
                at = stop
        if at < end and len(found) < _MOST_RANGES:
            statuses.append(BlockStatus(_HOLE, end - at, at, node))
        return statuses

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        """By the file system; MAY_UNMAP gives the space back."""
        self._data = _NO_RANGE
        try:
            await self._space.zero(
                self._engine,
                offset,
                nbytes,
                length=self.length,
                may_unmap=bool(flags & _MAY_UNMAP),
                no_fallback=bool(flags & _NO_FALLBACK),
            )
        finally:
            self._data = _NO_RANGE

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """Punch a hole; the bytes read as zeroes afterwards."""
        self._data = _NO_RANGE
        try:
            await self._space.discard(self._engine, offset, nbytes)
        finally:
            self._data = _NO_RANGE

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        """Set the file's length; see ``posix.space.resize_file``."""
        self._data = _NO_RANGE
        old = await self.co_getlength()
        try:
            await resize_file(self._engine, old, length, PreallocMode(prealloc))
        finally:
            self._data = _NO_RANGE
            await self.co_getlength()

    async def co_copy_range_to(self, offset: int, target: BlockDriver, target_offset: int, nbytes: int) -> None:
        """``copy_file_range`` into another file (or this one)."""
        if not isinstance(target, FileDriver):
            raise UnsupportedFeature
        target._data = _NO_RANGE  # holes may be copied too
        try:
            while nbytes:
                done = await self._engine.copy_file_range(offset, target._engine, target_offset, nbytes)
                if not done:
                    raise UnsupportedFeature  # behind the end of the file: the framework knows what to do there
                offset += done
                target_offset += done
                nbytes -= done
        finally:
            target._data = _NO_RANGE

    @property
    def hauls(self) -> bool:
        """Not with O_DIRECT, whose transfers have rules of their own."""
        return self._file.dio is None

    async def co_haul_to(
        self,
        parts: Sequence[Part],
        target: BlockDriver,
        target_offset: int,
        nbytes: int,
        haul: Haul,
        phase: int,
        *,
        packed: int,
    ) -> list[Put]:
        """By one worker, through the page cache."""
        if not (isinstance(target, FileDriver) and self.hauls and target.hauls):
            raise UnsupportedFeature
        return await self._engine.haul(haul, parts, target._engine, target_offset, nbytes, phase, packed=packed)

    async def co_ioctl(self, request: int, buf: Buffer | int) -> int:
        """The file's own request, in a worker."""
        import fcntl  # hardly anybody asks

        try:
            # type: the stubs know bytes and array; the call takes any writable buffer
            result: object | bytes = await self._engine.run(fcntl.ioctl, self._file.fd, request, buf)  # type: ignore[arg-type]
        except OSError as error:
            raise BlockError(errno=error.errno) from error
        return result if isinstance(result, int) else 0

    def register_buf(self, memory: memoryview) -> bool:
        """With io_uring, where the kernel pins it; else it is of no use to anybody."""
        return self._engine.register_buf(memory)

    def unregister_buf(self, memory: memoryview) -> None:
        """See ``register_buf``."""
        self._engine.unregister_buf(memory)

    def io_plug(self) -> None:
        """Hold back what goes to the ring."""
        self._engine.plug()

    def io_unplug(self) -> None:
        """See ``io_plug``."""
        self._engine.unplug()

    # -- fast lane; ``_bind`` puts the engine's own in their place

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """From the page cache, or False."""
        return self._engine.try_preadv(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Into the page cache, or False. A first part may have been written then: the slow lane writes it again."""
        return self._engine.try_pwritev(offset, bufs, nbytes)

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Into the ring, once there is one."""
        return self._engine.start_preadv(offset, bufs, nbytes)

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """As ``start_preadv``."""
        return self._engine.start_pwritev(offset, bufs, nbytes)


class HostDeviceDriver(FileDriver):
    """Block (and character) devices of the host."""

    name: ClassVar[str] = "host_device"
    protocols: ClassVar[tuple[str, ...]] = ("host_device",)
    CreateOptions: ClassVar[type[msgspec.Struct] | None] = HostDeviceCreateOptions

    @classmethod
    async def co_create_file(cls, filename: str, options: Any) -> None:
        """A device cannot be made, but its first block is cleared, so that no old format is found there."""
        if options.preallocation is not PreallocMode.OFF:
            raise UnsupportedFeature(f"Unsupported preallocation mode: {options.preallocation}")
        from blockio_drivers.posix.creating import overwrite_device

        await overwrite_device(filename, options.size)

    @classmethod
    async def co_delete_file(cls, filename: str) -> None:
        """Never: it is not ours."""
        raise UnsupportedFeature("Driver 'host_device' does not support image deletion")

    def has_zero_init(self) -> bool:
        """A device holds what it held."""
        return False

    async def co_probe_blocksizes(self) -> BlockSizes:
        """What the device says; UnsupportedFeature of one that has no blocks."""
        return BlockSizes(*await self._asked(syscalls.device_block_sizes))

    async def co_probe_geometry(self) -> Geometry:
        """What the device says; most have none, and raise UnsupportedFeature."""
        return Geometry(*await self._asked(syscalls.device_geometry))

    async def _asked(self, question: Callable[[int], tuple[int, ...]]) -> tuple[int, ...]:
        try:
            return await self._engine.run(question, self._file.fd)
        except OSError as error:
            if error.errno in {errno.ENOTTY, errno.EINVAL, errno.EOPNOTSUPP}:
                raise UnsupportedFeature from error
            raise BlockError(errno=error.errno) from error

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        """Devices keep their length; one that is long enough will do where *exact* does not matter."""
        if prealloc != PreallocMode.OFF:
            raise UnsupportedFeature(f"Preallocation mode '{prealloc}' unsupported for this device")
        current = await self.co_getlength()
        if length != current and exact:
            raise UnsupportedFeature("Cannot resize device files")
        if length > current:
            raise BlockError("Cannot grow device files", errno.EINVAL)
