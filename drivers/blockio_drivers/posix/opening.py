"""Opening a file or device, and what there is to know about it once it is open.

The functions block and are called in a worker; ``opened_in_worker`` is how a coroutine calls them without losing the
descriptor to a cancellation.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from blockio.aio import syscalls
from blockio.aio.syscalls import DioAlignment
from blockio.aio.threads import in_worker
from blockio.errors import BlockError, ReadOnly

__all__ = [
    "READ_ONLY_ERRNOS",
    "OpenFile",
    "close_descriptor",
    "measure",
    "open_blocking",
    "opened_in_worker",
    "same_storage",
]

READ_ONLY_ERRNOS: Final = frozenset((errno.EACCES, errno.EPERM, errno.EROFS))
"""What opening for writing says about something that may only be read."""

_TRIAL_ALIGNMENTS: Final = (512, 1024, 2048, 4096)


class OpenFile(msgspec.Struct, frozen=True):
    """An open descriptor and the facts of it. ``dio`` is what O_DIRECT asks for where it is on, else None."""

    fd: int
    is_device: bool
    is_block_device: bool
    length: int
    dio: DioAlignment | None
    block_size: int
    """A block device's logical block in bytes; 1 for files, which are addressed by bytes."""


def open_blocking(filename: str, *, driver: str, writable: bool, direct: bool) -> OpenFile:
    """Open *filename* for *driver* (``file`` or ``host_device``).

    BlockError with QEMU's message where it cannot be opened or is not what the driver is for; ReadOnly where only
    writing is not allowed.
    """
    access = os.O_RDWR if writable else os.O_RDONLY
    # O_NONBLOCK: a FIFO without a peer must be refused, not waited for. On files it means nothing.
    flags = access | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if direct else 0)
    try:
        fd = os.open(filename, flags)
    except OSError as error:
        raise _refusal(filename, error, direct=direct, writable=writable) from error
    except ValueError as error:  # a NUL in the name
        raise BlockError(f"Could not open '{filename}': {os.strerror(errno.ENOENT)}", errno.ENOENT) from error
    try:
        os.set_blocking(fd, True)
        return _look(fd, filename, driver, direct=direct)
    except BaseException:
        os.close(fd)
        raise


def _refusal(filename: str, error: OSError, *, direct: bool, writable: bool) -> BlockError:
    if direct and error.errno == errno.EINVAL:
        return BlockError(f"Could not open '{filename}': filesystem does not support O_DIRECT", errno.EINVAL)
    family = ReadOnly if writable and error.errno in READ_ONLY_ERRNOS else BlockError
    return family(f"Could not open '{filename}': {error.strerror}", error.errno)


def _look(fd: int, filename: str, driver: str, *, direct: bool) -> OpenFile:
    mode = os.fstat(fd).st_mode
    is_block_device = stat.S_ISBLK(mode)
    is_device = is_block_device or stat.S_ISCHR(mode)
    if driver == "file" and not stat.S_ISREG(mode):
        raise BlockError(f"'file' driver requires '{filename}' to be a regular file", errno.EINVAL)
    if driver == "host_device" and not is_device:
        raise BlockError(
            f"'host_device' driver requires '{filename}' to be either a character or block device", errno.EINVAL
        )
    block_size = syscalls.logical_block_size(fd) if is_block_device else 1
    length = measure(fd, is_block_device=is_block_device)
    dio = _direct_alignment(fd, filename, length, block_size) if direct else None
    return OpenFile(fd, is_device, is_block_device, length, dio, block_size)


def measure(fd: int, *, is_block_device: bool) -> int:
    """The length in bytes; 0 for a character device, which has none. Does not block."""
    if is_block_device:
        return syscalls.block_device_size(fd)
    return os.fstat(fd).st_size


def same_storage(one: int, other: int) -> bool:
    """Whether two descriptors lead to one file, or to one device by whatever name."""
    a, b = os.fstat(one), os.fstat(other)
    if stat.S_ISREG(a.st_mode):
        return os.path.samestat(a, b)
    return (a.st_rdev, stat.S_IFMT(a.st_mode)) == (b.st_rdev, stat.S_IFMT(b.st_mode))


def _direct_alignment(fd: int, filename: str, length: int, block_size: int) -> DioAlignment:
    """By statx where the kernel tells, by the device's block, else by trying what a read accepts."""
    told = syscalls.dio_alignment(fd)
    if told is not None:
        return DioAlignment(max(told.memory, 1), max(told.offset, block_size))
    if block_size > 1:
        return DioAlignment(block_size, block_size)
    if not length:
        return DioAlignment(4096, 4096)  # nothing to try with: what every device accepts
    import mmap  # only where the kernel does not tell

    with mmap.mmap(-1, 8192) as memory, memoryview(memory) as view:
        offset = _first_accepted(fd, view, lambda align: view[:align])
        if offset is None:
            raise BlockError(f"Could not open '{filename}': Could not find working O_DIRECT alignment", errno.EINVAL)
        aligned = _first_accepted(fd, view, lambda align: view[align : align + max(offset, 4096)])
        return DioAlignment(aligned or 4096, offset)


def _first_accepted(fd: int, _memory: memoryview, part: Callable[[int], memoryview]) -> int | None:
    for align in _TRIAL_ALIGNMENTS:
        with part(align) as piece:
            try:
                os.preadv(fd, [piece], 0)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return align
    return None


async def opened_in_worker(opening: Callable[[], OpenFile]) -> OpenFile:
    """What *opening* opens, in a worker. When we are cancelled meanwhile, the descriptor is closed again."""
    opened: list[OpenFile] = []
    try:
        await in_worker(lambda: opened.append(opening()))
    except BaseException:
        for file in opened:
            os.close(file.fd)
        raise
    return opened[0]


async def close_descriptor(fd: int, run: Callable[[Callable[[], None]], Awaitable[None]] = in_worker) -> None:
    """Close *fd* where it may block for a network file system's last writes; closed whatever happens to us."""
    left = [fd]

    def close() -> None:
        os.close(left.pop())

    try:
        await run(close)
    finally:
        if left:  # cancelled before a worker had begun
            close()
