"""The space behind a file's bytes: where there is data, zeroing without writing, giving back, growing and shrinking.

What a file system or device cannot do is found out by trying, once for each open file, and then left out.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.aio import syscalls
from blockio.aio.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE
from blockio.buffers import aligned_buffer
from blockio.errors import BlockError, UnsupportedFeature
from blockio.types import PreallocMode

if TYPE_CHECKING:
    from blockio.aio.engine import FileEngine

__all__ = ["DataRange", "Space", "find_data", "grow", "resize_file"]

_PUNCH: Final = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_CANNOT: Final = frozenset((errno.ENOTSUP, errno.ENOSYS, errno.ENOTTY, errno.ENODEV, errno.EINVAL))
"""What says *never here* rather than *not now*; EINVAL is how some file systems refuse a mode."""

_FULL_CHUNK: Final = 1 << 20


class DataRange(msgspec.Struct, frozen=True):
    """The first data at or behind an offset, as the file system tells: ``start`` to ``end`` (not included)."""

    start: int
    end: int


def find_data(fd: int, offset: int) -> DataRange | None:
    """By SEEK_DATA and SEEK_HOLE; None: only a hole from *offset* to the end.

    OSError EINVAL where the file system cannot tell, EAGAIN where the file was changed between the two looks.

    Blocks for the file system's metadata. The descriptor's position changes, which nobody uses.
    """
    try:
        start = os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return None
        raise
    try:
        end = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        end = start  # cut in between
    if start < offset or end <= start:
        raise OSError(errno.EAGAIN, "SEEK_DATA and SEEK_HOLE contradict each other")
    return DataRange(start, end)


def find_all_data(fd: int, offset: int, end: int, most: int) -> list[DataRange]:
    """``find_data`` again and again, up to *end* or *most* times; the last may begin behind *end*, or be missing."""
    found: list[DataRange] = []
    while offset < end and len(found) < most:
        data = find_data(fd, offset)
        if data is None:
            break
        found.append(data)
        offset = data.end
    return found


class Space:
    """What can be done with the space of one open file. All offsets and lengths in bytes, within alignment."""

    def __init__(self, *, is_block_device: bool) -> None:
        self.is_block_device = is_block_device
        self.can_punch = True
        self.can_zero_range = True
        self.can_allocate = not is_block_device
        self.can_zero_out = is_block_device

    async def zero(
        self, engine: FileEngine, offset: int, nbytes: int, *, length: int, may_unmap: bool, no_fallback: bool
    ) -> None:
        """Make the range read as zeroes without writing them, growing the file (now *length*) where it reaches further.

        With *may_unmap* by giving the space back, else keeping or making it allocated. *no_fallback* leaves out what
        may be as slow as writing. UnsupportedFeature: nothing here can; the range is unchanged or zero in parts.
        """
        end = offset + nbytes
        if may_unmap and await self._punch(engine, offset, nbytes):
            if end > length and not self.is_block_device:
                await grow(engine, end)
            return
        if self.can_zero_out and not no_fallback:
            try:
                await engine.run(syscalls.block_device_range, engine.fd, syscalls.BLKZEROOUT, offset, nbytes)
            except OSError as error:
                if error.errno not in _CANNOT:
                    raise BlockError(errno=error.errno) from error
                self.can_zero_out = False
            else:
                return
        if self.can_zero_range:
            try:
                await engine.fallocate(FALLOC_FL_ZERO_RANGE, offset, nbytes)
            except BlockError as error:
                if error.errno not in _CANNOT:
                    raise
                self.can_zero_range = False
            else:
                return
        # A new range behind the end is zero by itself, and an old one after a hole was punched: then only allocate.
        if self.can_allocate and (offset >= length or await self._punch(engine, offset, nbytes)):
            try:
                await engine.fallocate(0, offset, nbytes)
            except BlockError as error:
                if error.errno not in _CANNOT:
                    raise
                self.can_allocate = False
            else:
                return
        raise UnsupportedFeature

    async def discard(self, engine: FileEngine, offset: int, nbytes: int) -> None:
        """Give the range's space back. UnsupportedFeature where it cannot be."""
        if self.is_block_device:
            try:
                await engine.run(syscalls.block_device_range, engine.fd, syscalls.BLKDISCARD, offset, nbytes)
            except OSError as error:
                if error.errno in _CANNOT:
                    raise UnsupportedFeature from error
                raise BlockError(errno=error.errno) from error
        elif not await self._punch(engine, offset, nbytes):
            raise UnsupportedFeature

    async def _punch(self, engine: FileEngine, offset: int, nbytes: int) -> bool:
        if not self.can_punch:
            return False
        try:
            await engine.fallocate(_PUNCH, offset, nbytes)
        except BlockError as error:
            if error.errno not in _CANNOT:
                raise
            self.can_punch = False
            return False
        return True


async def grow(engine: FileEngine, length: int) -> None:
    """Make the file at least *length* long. Never shorter, whoever else is making it longer meanwhile."""
    try:
        await engine.fallocate(0, length - 1, 1)
    except BlockError as error:
        if error.errno not in _CANNOT:
            raise
        await engine.pwritev(length - 1, [memoryview(b"\0")])


async def resize_file(engine: FileEngine, old: int, length: int, prealloc: PreallocMode) -> None:
    """Set a regular file's length, now *old*; new bytes read as zeroes.

    ``falloc`` and ``full`` make sure of their space; when that fails or is cancelled the file is cut back to *old*.
    BlockError: EINVAL for preallocation while shrinking, ENOTSUP for ``metadata``, else what the kernel said.
    """
    if prealloc not in {PreallocMode.OFF, PreallocMode.FALLOC, PreallocMode.FULL}:
        raise UnsupportedFeature(f"Unsupported preallocation mode: {prealloc}")
    if length < old and prealloc is not PreallocMode.OFF:
        raise BlockError("Preallocation can't be used for shrinking files", errno.EINVAL)
    if prealloc is PreallocMode.OFF or length == old:
        await _set_length(engine, length)
        return
    try:
        if prealloc is PreallocMode.FALLOC:
            await _allocate(engine, old, length)
        else:
            await _write_zeroes(engine, old, length)
    except BaseException:
        # In place and not in a worker: nothing may come between a failure and its undoing.
        os.ftruncate(engine.fd, old)
        raise


async def _set_length(engine: FileEngine, length: int) -> None:
    try:
        await engine.run(os.ftruncate, engine.fd, length)
    except OSError as error:
        raise BlockError(f"Could not resize file: {error.strerror}", error.errno) from error


async def _allocate(engine: FileEngine, old: int, length: int) -> None:
    try:
        await engine.fallocate(0, old, length - old)
    except BlockError as error:
        if error.errno not in _CANNOT:
            raise error.prefixed("Could not preallocate new data: ") from error
        # The C library's way: touch every block.
        try:
            await engine.run(os.posix_fallocate, engine.fd, old, length - old)
        except OSError as worse:
            raise BlockError(f"Could not preallocate new data: {worse.strerror}", worse.errno) from worse


async def _write_zeroes(engine: FileEngine, old: int, length: int) -> None:
    await _set_length(engine, length)
    zeroes = aligned_buffer(min(_FULL_CHUNK, length - old))
    try:
        for at in range(old, length, _FULL_CHUNK):
            await engine.pwritev(at, [zeroes[: min(_FULL_CHUNK, length - at)]])
        await engine.fdatasync()
    except BlockError as error:
        raise error.prefixed("Could not write zeros for preallocation: ") from error
