"""Both ends of a pipe: taking in what comes out of one, and writing into one.

A pipe cannot be read twice, so what comes is kept in a file that has no name. Nor can anybody go back in one, so what
is written is written in order. Neither end is changed for those who share it: no flag of the pipe is touched.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from blockio.aio.threads import in_worker
from blockio.buffers import is_zero
from blockio.errors import BlockError, LimitExceeded, UnsupportedFeature
from blockio.img.opening import Image, Pipe

__all__ = ["Outlet", "outlet", "spooled"]

_BLOCK: Final = 64 << 10
"""A block of zeroes of what comes is a hole of the file that keeps it."""
_AT_ONCE: Final = 1 << 20
_ZEROES: Final = memoryview(bytes(_AT_ONCE))


@asynccontextmanager
async def spooled(pipe: Pipe) -> AsyncIterator[Image]:
    """What comes out of *pipe*, to its end, as an image; a file that *pipe* turns out to be is that image itself.

    LimitExceeded where more comes than ``spool_limit``; BlockError for what reading and keeping it meet. Nothing is
    left of it afterwards, after a cancellation neither.
    """
    if _is_storage(pipe.fd):
        yield _image(pipe, pipe.fd)
        return
    # It may grow as large as the limit: not into a file system in memory, and nobody else needs to see it.
    with tempfile.TemporaryFile(prefix="blockio.", dir=os.environ.get("TMPDIR", "/var/tmp")) as file:
        stop, stopping = os.pipe()
        try:
            taking = asyncio.ensure_future(in_worker(_take_in, pipe, file.fileno(), stop))
            try:
                await asyncio.shield(taking)
            except asyncio.CancelledError:
                os.write(stopping, b"x")
                with suppress(OSError):
                    await taking
                raise
        finally:
            os.close(stop)
            os.close(stopping)
        yield _image(pipe, file.fileno())


def _is_storage(fd: int) -> bool:
    mode = os.fstat(fd).st_mode
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _image(pipe: Pipe, fd: int) -> Image:
    return Image(filename=f"/proc/self/fd/{fd}", format=pipe.format, label=pipe.label, gate=pipe.gate, trust=pipe.trust)


def _take_in(pipe: Pipe, file: int, stop: int) -> None:
    """Keep what comes out of *pipe* in *file*, until its end or until something comes out of *stop*. In a thread."""
    poller = select.poll()
    poller.register(pipe.fd, select.POLLIN)
    poller.register(stop, select.POLLIN)
    buffer = memoryview(bytearray(_AT_ONCE))
    at = filled = 0
    try:
        while True:
            if any(fd == stop for fd, _ in poller.poll()):
                return
            try:
                count = os.readv(pipe.fd, [buffer[filled:]])
            except BlockingIOError:
                continue
            filled += count
            if at + filled > pipe.spool_limit:
                raise LimitExceeded(
                    f"More than {pipe.spool_limit} bytes came out of the pipe, which is how much may be kept of it",
                    errno.EFBIG,
                )
            if filled == _AT_ONCE or not count:
                _keep(file, at, buffer[:filled])
                at, filled = at + filled, 0
            if not count:
                os.ftruncate(file, at)
                return
    except BlockError as error:
        raise error.prefixed(f"Could not read '{pipe.label}': ") from error
    except OSError as error:
        raise BlockError(f"Could not read '{pipe.label}': {error.strerror}", error.errno) from error


def _keep(file: int, at: int, data: memoryview) -> None:
    for start in range(0, data.nbytes, _BLOCK):
        block = data[start : start + _BLOCK]
        if not is_zero(block):
            done = 0
            while done < block.nbytes:
                done += os.pwrite(file, block[done:], at + start + done)


class Outlet:
    """The end of a pipe that is written to, in order; a target for ``Copier``.

    Invariant: ``done`` bytes have been written. Writes that begin one after the other are carried out in that order.
    BlockError (EPIPE) where nobody reads any more. Cancelled: a part of the write may have been carried out.
    """

    root = None
    """It is no node of the graph."""

    def __init__(self, send: Callable[[memoryview], int], fd: int, *, waits: bool) -> None:
        self._send = send
        self._fd = fd
        self._waits = waits
        self._turn = asyncio.Lock()
        self.done = 0

    async def co_pwritev(self, offset: int, data: memoryview, flags: int = 0) -> None:
        """Write *data* next, wherever in the disk its *offset* is."""
        async with self._turn:
            left = data
            while left:
                sent = await self._some(left)
                self.done += sent
                left = left[sent:]

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: int = 0) -> None:
        """Write so many zeroes next."""
        for at in range(0, nbytes, _AT_ONCE):
            await self.co_pwritev(offset + at, _ZEROES[: min(_AT_ONCE, nbytes - at)])

    async def co_pwrite_compressed(self, offset: int, data: memoryview) -> None:
        """How much room something will take has to be known before anything is written."""
        raise UnsupportedFeature("Compressed clusters cannot be written to a pipe")

    async def _some(self, data: memoryview) -> int:
        try:
            if not self._waits:
                return await in_worker(self._send, data)
            while True:
                try:
                    return self._send(data)
                except BlockingIOError:
                    await self._room()
        except OSError as error:
            raise BlockError(error.strerror or "", error.errno) from error

    async def _room(self) -> None:
        """Until the pipe takes more, or nobody reads it any more."""
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(self._fd, _answer, ready)
        try:
            await ready
        finally:
            loop.remove_writer(self._fd)


def _answer(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


@asynccontextmanager
async def outlet(pipe: Pipe) -> AsyncIterator[Outlet]:
    """A way to write into *pipe* without making others wait who share it, or their programs stumble over its flags."""
    mode = os.fstat(pipe.fd).st_mode
    if stat.S_ISSOCK(mode):
        with socket.socket(fileno=os.dup(pipe.fd)) as peer:
            flags = socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL
            yield Outlet(lambda data: peer.send(data, flags), peer.fileno(), waits=True)
        return
    waits = stat.S_ISFIFO(mode)
    fd = _own_end(pipe.fd) if waits else os.dup(pipe.fd)
    try:
        if waits:
            with suppress(OSError):  # as large as this user may have it
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _AT_ONCE)
        yield Outlet(lambda data: os.write(fd, data), fd, waits=waits)
    finally:
        os.close(fd)


def _own_end(fd: int) -> int:
    """The same end of the pipe, opened once more: this one does not block, and nobody else's is changed."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        number = errno.EPIPE if error.errno == errno.ENXIO else error.errno or errno.EIO
        raise BlockError(f"Could not write to the pipe: {os.strerror(number)}", number) from error
