"""New files, and devices made ready to take a new image."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from functools import partial
from typing import Final

from blockio.aio import syscalls
from blockio.aio.engine import choose_engine
from blockio.errors import BlockError
from blockio.types import Perm, PreallocMode
from blockio_drivers.posix.locks import LockBytes
from blockio_drivers.posix.opening import OpenFile, close_descriptor, open_blocking, opened_in_worker
from blockio_drivers.posix.space import resize_file

__all__ = ["create_file", "overwrite_device"]

_DEFAULT_EXTENT_SIZE: Final = 1 << 20
_FIRST_BLOCK: Final = 512


async def create_file(
    filename: str, size: int, prealloc: PreallocMode, *, nocow: bool, extent_size_hint: int | None
) -> None:
    """Make *filename* an empty file of *size* bytes; what it held is gone.

    ImageLocked, with the file as it was, where somebody uses it. BlockError ``Could not create 'X': …`` where it
    cannot be opened, and what ``resize_file`` raises.
    """
    if prealloc is PreallocMode.METADATA:
        raise BlockError(f"Unsupported preallocation mode: {prealloc}", errno.ENOTSUP)
    file = await opened_in_worker(partial(_create_blocking, filename))
    try:
        engine = choose_engine(file.fd)
        try:
            # As in QEMU: others may read and write meanwhile, but neither resize nor rely on the size.
            LockBytes(file.fd, filename, required=False).take(Perm.WRITE | Perm.RESIZE, Perm.ALL & ~Perm.RESIZE)
            await engine.run(_shape, file.fd, nocow, extent_size_hint)
            await resize_file(engine, 0, size, prealloc)
        finally:
            engine.close()
    finally:
        await close_descriptor(file.fd)


def _create_blocking(filename: str) -> OpenFile:
    try:
        fd = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise BlockError(f"Could not create '{filename}': {error.strerror}", error.errno) from error
    except ValueError as error:  # a NUL in the name
        raise BlockError(f"Could not create '{filename}': {os.strerror(errno.EINVAL)}", errno.EINVAL) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise BlockError(f"'file' driver requires '{filename}' to be a regular file", errno.EINVAL)
    return OpenFile(fd, is_device=False, is_block_device=False, length=0, dio=None, block_size=1)


def _shape(fd: int, nocow: bool, extent_size_hint: int | None) -> None:
    """Empty the file and give it the attributes that only an empty one takes. Hints are not owed."""
    try:
        os.ftruncate(fd, 0)
    except OSError as error:
        raise BlockError(f"Failed to clear file: {error.strerror}", error.errno) from error
    if nocow:
        with suppress(OSError):
            syscalls.set_nocow(fd)
    hint = _DEFAULT_EXTENT_SIZE if extent_size_hint is None else extent_size_hint
    if hint:
        with suppress(OSError):
            syscalls.set_extent_size_hint(fd, hint)


async def overwrite_device(filename: str, size: int) -> None:
    """Check that the device holds *size* bytes and clear its first block. BlockError EINVAL where it is too small."""
    opening = partial(open_blocking, filename, driver="host_device", writable=True, direct=False)
    file = await opened_in_worker(opening)
    try:
        if size > file.length:
            raise BlockError("Cannot grow device files", errno.EINVAL)
        engine = choose_engine(file.fd)
        try:
            LockBytes(file.fd, filename, required=False).take(Perm.WRITE | Perm.RESIZE, Perm.ALL & ~Perm.RESIZE)
            if size:
                await engine.pwritev(0, [memoryview(bytes(min(size, _FIRST_BLOCK)))])
        finally:
            engine.close()
    finally:
        await close_descriptor(file.fd)
