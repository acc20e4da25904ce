"""What Python's ``os`` and ``fcntl`` lack: fallocate modes, OFD locks, statx alignment, block device ioctls.

Plain blocking functions that raise OSError; callers run those that can block in a worker. ``ctypes`` costs
milliseconds to import and is needed only by writers, so it is imported where it is used.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    import ctypes

__all__ = [
    "BLKDISCARD",
    "BLKGETSIZE64",
    "BLKSSZGET",
    "BLKZEROOUT",
    "FALLOC_FL_KEEP_SIZE",
    "FALLOC_FL_PUNCH_HOLE",
    "FALLOC_FL_ZERO_RANGE",
    "DioAlignment",
    "address_of",
    "block_device_range",
    "block_device_size",
    "device_block_sizes",
    "device_geometry",
    "dio_alignment",
    "fallocate",
    "file_system",
    "libc",
    "logical_block_size",
    "ofd_lock",
    "ofd_locked",
    "set_extent_size_hint",
    "set_nocow",
]

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10

# linux/fs.h; the numbers are the same on every architecture Python's manylinux wheels exist for
BLKSSZGET: Final = 0x1268
BLKDISCARD: Final = 0x1277
BLKZEROOUT: Final = 0x127F
BLKGETSIZE64: Final = 0x80081272
_BLKPBSZGET: Final = 0x127B
_HDIO_GETGEO: Final = 0x0301
_HD_GEOMETRY: Final = struct.Struct("@BBHL")
_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_IOC_SETFLAGS: Final = 0x40086602
_FS_NOCOW_FL: Final = 0x00800000
_FS_IOC_FSGETXATTR: Final = 0x801C581F
_FS_IOC_FSSETXATTR: Final = 0x401C5820
_FS_XFLAG_EXTSIZE: Final = 0x00000800
_FSXATTR: Final = struct.Struct("=IIIII8s")

_FLOCK: Final = struct.Struct("@hhqqi0q")
"""``struct flock`` with 64-bit offsets: type, whence, start, length, pid (0 for OFD locks)."""

_STATFS_SIZE: Final = 256
"""More than any ``struct statfs``; its first word is ``f_type``."""

_AT_EMPTY_PATH: Final = 0x1000
_STATX_DIOALIGN: Final = 0x2000
_STATX_SIZE: Final = 256
_STATX_DIO_AT: Final = 152
"""Where ``stx_dio_mem_align`` and ``stx_dio_offset_align`` lie in ``struct statx``."""


@lru_cache(maxsize=1)
def libc() -> ctypes.CDLL:
    """The C library, whose calls release the interpreter lock."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return library


def _raise_errno() -> None:
    import ctypes

    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def fallocate(fd: int, mode: int, offset: int, nbytes: int) -> None:
    """``fallocate(2)``: unlike ``os.posix_fallocate`` it takes a mode and never falls back to writing."""
    # On 64-bit systems off_t is 64 bits; on 32-bit ones the symbol with that width has a name of its own.
    call = libc().fallocate if sys.maxsize > 2**32 else libc().fallocate64
    while call(fd, mode, offset, nbytes) != 0:
        import ctypes

        if ctypes.get_errno() != 4:  # EINTR
            _raise_errno()


def file_system(fd: int) -> int:
    """The magic number of the file system that *fd* is on (``fstatfs(2)``)."""
    import ctypes  # see the module's docstring

    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if libc().fstatfs(fd, buffer) != 0:
        _raise_errno()
    return int(struct.unpack_from("@l", buffer.raw)[0])


def address_of(view: memoryview) -> int:
    """Where *view* begins in memory. Valid while the view is held."""
    import ctypes

    if not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    return _readonly_address(view)


@lru_cache(maxsize=1)
def _py_buffer() -> type[Any]:
    import ctypes

    class PyBuffer(ctypes.Structure):
        """CPython's ``Py_buffer``, part of its stable ABI since 3.11."""

        _fields_ = (
            ("buf", ctypes.c_void_p),
            ("obj", ctypes.c_void_p),
            ("len", ctypes.c_ssize_t),
            ("itemsize", ctypes.c_ssize_t),
            ("readonly", ctypes.c_int),
            ("ndim", ctypes.c_int),
            ("format", ctypes.c_char_p),
            ("shape", ctypes.c_void_p),
            ("strides", ctypes.c_void_p),
            ("suboffsets", ctypes.c_void_p),
            ("internal", ctypes.c_void_p),
        )

    return PyBuffer


def _readonly_address(view: memoryview) -> int:
    """ctypes' ``from_buffer`` refuses read-only memory, such as the ``bytes`` of a write; the C API does not."""
    import ctypes

    buffer = _py_buffer()()
    where = ctypes.byref(buffer)
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), where, 0)
    address: int = buffer.buf
    ctypes.pythonapi.PyBuffer_Release(where)
    return address


# -- open file description locks


def ofd_lock(fd: int, kind: int, start: int, nbytes: int = 1) -> None:
    """Set or remove a lock; *kind* is ``fcntl.F_RDLCK``, ``F_WRLCK`` or ``F_UNLCK``.

    OSError EAGAIN (or EACCES) where another description holds a conflicting one; never waits.
    """
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, nbytes, 0))


def ofd_locked(fd: int, kind: int, start: int, nbytes: int = 1) -> bool:
    """Whether a lock of *kind* could not be had now because of another description."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(kind, os.SEEK_SET, start, nbytes, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


# -- direct I/O


class DioAlignment(msgspec.Struct, frozen=True):
    """What O_DIRECT asks for, in bytes: of addresses in memory, and of offsets and lengths in the file."""

    memory: int
    offset: int


def dio_alignment(fd: int) -> DioAlignment | None:
    """By ``statx`` (Linux 6.1), or None where the kernel, library or file system does not tell."""
    import ctypes

    try:
        statx = libc().statx
    except AttributeError:
        return None
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if statx(fd, b"", _AT_EMPTY_PATH, _STATX_DIOALIGN, buffer) != 0:
        return None
    mask = int.from_bytes(buffer.raw[:4], sys.byteorder)
    memory, offset = struct.unpack_from("=II", buffer.raw, _STATX_DIO_AT)
    if not mask & _STATX_DIOALIGN or not offset:
        return None
    return DioAlignment(memory, offset)


# -- block devices


def block_device_size(fd: int) -> int:
    """Length of a block device in bytes."""
    return int(struct.unpack("=Q", fcntl.ioctl(fd, BLKGETSIZE64, bytes(8)))[0])


def logical_block_size(fd: int) -> int:
    """The smallest unit a block device addresses, in bytes."""
    return int(struct.unpack("=i", fcntl.ioctl(fd, BLKSSZGET, bytes(4)))[0])


def device_block_sizes(fd: int) -> tuple[int, int]:
    """A block device's physical and logical block size, in bytes."""
    return int(struct.unpack("=I", fcntl.ioctl(fd, _BLKPBSZGET, bytes(4)))[0]), logical_block_size(fd)


def device_geometry(fd: int) -> tuple[int, int, int]:
    """A block device's heads, sectors a track, and cylinders; OSError (ENOTTY) where it has no such things."""
    heads, sectors, cylinders, _start = _HD_GEOMETRY.unpack(fcntl.ioctl(fd, _HDIO_GETGEO, bytes(_HD_GEOMETRY.size)))
    return heads, sectors, cylinders


def block_device_range(fd: int, request: int, offset: int, nbytes: int) -> None:
    """BLKDISCARD or BLKZEROOUT a range; both multiples of the logical block size."""
    fcntl.ioctl(fd, request, struct.pack("=QQ", offset, nbytes))


# -- file attributes


def set_nocow(fd: int) -> None:
    """Ask btrfs not to copy on write; only possible while the file is empty."""
    (flags,) = struct.unpack("=l", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(4)))
    fcntl.ioctl(fd, _FS_IOC_SETFLAGS, struct.pack("=l", flags | _FS_NOCOW_FL))


def set_extent_size_hint(fd: int, nbytes: int) -> None:
    """Ask the file system (XFS) to allocate *nbytes* at a time."""
    flags, _, nextents, project, cow, pad = _FSXATTR.unpack(fcntl.ioctl(fd, _FS_IOC_FSGETXATTR, bytes(_FSXATTR.size)))
    fcntl.ioctl(fd, _FS_IOC_FSSETXATTR, _FSXATTR.pack(flags | _FS_XFLAG_EXTSIZE, nbytes, nextents, project, cow, pad))
