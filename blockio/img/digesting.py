"""``digest``: a checksum of what a guest sees, whatever the format; see ``checksums`` for what exactly is hashed.

Data is read ahead by a few workers, each with one buffer, and hashed in a thread, in the order of the disk: reading and
hashing overlap. Zeroes are hashed without being read, a little at a time, so that a cancellation need not wait.
"""

from __future__ import annotations

import asyncio
import errno
import os
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.aio.context import AioContext
from blockio.aio.threads import WorkerPool
from blockio.buffers import aligned_buffer
from blockio.errors import BlockError
from blockio.img.checksums import DEFAULT, checksum
from blockio.img.opening import ImageLike, image_of, opened, sectors_up
from blockio.img.progress import Meter
from blockio.img.results import DigestResult, Side
from blockio.img.turns import Turns
from blockio.io.status import block_status_above
from blockio.types import OpenFlags, StatusFlags

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from types import TracebackType

    from blockio.backend import BlockBackend
    from blockio.img.checksums import Checksum
    from blockio.img.limiting import RateLimit
    from blockio.img.results import Observer

__all__ = ["OrderedChecksum", "digest", "hash_disk"]

CHUNK: Final = 2 << 20
"""How much is read and hashed at a time."""

_WORKERS: Final = 4
_LONGEST: Final = 1 << 30
_ZERO: Final = int(StatusFlags.ZERO)


class OrderedChecksum:
    """A checksum of pieces that come in any order and are hashed in that of their numbers, in a worker thread.

    Used as a context manager; all calls are over when it is left. The memory of a piece is in use until the call with
    it returns or raises, CancelledError included.
    """

    def __init__(self, algorithm: str) -> None:
        """OptionError where there is no such *algorithm*."""
        self._checksum: Checksum = checksum(algorithm)
        self._turns = Turns()
        self._context: AioContext | None = None

    def __enter__(self) -> OrderedChecksum:
        self._context = context = AioContext.current()
        self._pool = context.share(WorkerPool, lambda: WorkerPool(context))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._context is not None
        self._context.unshare(WorkerPool)

    async def update(self, number: int, data: memoryview) -> None:
        """Piece *number* is *data*."""
        await self._turns.wait(number)
        await self._pool.run(self._checksum.update, data)
        self._turns.pass_on(number)

    async def zeroes(self, number: int, nbytes: int) -> None:
        """Piece *number* is so many zeroes."""
        await self._turns.wait(number)
        while nbytes:
            part = min(nbytes, self._checksum.at_once)  # a cancellation waits for no more
            await self._pool.run(self._checksum.zeroes, part)
            nbytes -= part
        self._turns.pass_on(number)

    def recount(self) -> None:
        """The next piece is number 0 again. When all calls have returned."""
        self._turns = Turns()

    def hexdigest(self) -> str:
        """The digest of all pieces. Call it once, when all calls have returned."""
        return self._checksum.hexdigest()


async def digest(
    image: ImageLike, algorithm: str = DEFAULT, *, limit: RateLimit | None = None, observer: Observer | None = None
) -> DigestResult:
    """The checksum of all that a guest reads from *image*, backing files included.

    *algorithm* is one of ``checksums.ALGORITHMS``; that module says what is hashed. *limit* slows the reading down.
    Nobody may change the image meanwhile. Raises OptionError for an unknown algorithm and BlockError (``error while
    reading at byte N: …``). A cancellation leaves nothing open and no thread at work.
    """
    image = image_of(image)
    with OrderedChecksum(algorithm) as ordered:
        async with opened(image, OpenFlags(read_only=True), alone=True) as blk:
            size = sectors_up(blk.getlength())
            meter = Meter(observer, size, otherwise=Side.WORK)
            meter.start()
            await hash_disk(blk, size, ordered, meter, limit)
            meter.finish()
        return DigestResult(image.name, algorithm, ordered.hexdigest(), size)


async def hash_disk(
    blk: BlockBackend, size: int, ordered: OrderedChecksum, meter: Meter, limit: RateLimit | None = None
) -> None:
    """Let *ordered* know the first *size* bytes of *blk*, which no piece has come before. See ``digest``."""
    async with aclosing(_pieces(blk, size)) as pieces:
        reader = _Reader(blk, pieces, ordered, meter, limit)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_WORKERS):
                    group.create_task(reader.work())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None


class _Piece(NamedTuple):
    offset: int
    nbytes: int
    zero: bool


async def _pieces(blk: BlockBackend, size: int) -> AsyncGenerator[_Piece, None]:
    """The disk from its beginning to its end: zeroes at any length, all else in chunks, short zeroes among it."""
    node = blk.bs
    assert node is not None
    exact = min(blk.getlength(), size)
    at = begin = 0
    while at < size:
        if at < exact:
            try:
                status = await block_status_above(node, None, at, min(_LONGEST, exact - at))
            except BlockError as error:
                raise _at(error, f"error while reading block status at offset {at}") from error
            length, zero = status.length, bool(int(status.flags) & _ZERO)
        else:
            length, zero = size - at, True  # the rest of the last sector
        if zero and (length >= CHUNK or at + length == size):
            for piece in _chunks(begin, at):
                yield piece
            yield _Piece(at, length, True)
            begin = at + length
        elif at + length - begin >= CHUNK:
            whole = (at + length) // CHUNK * CHUNK
            for piece in _chunks(begin, whole):
                yield piece
            begin = whole
        at += length
    for piece in _chunks(begin, size):
        yield piece


def _chunks(begin: int, end: int) -> list[_Piece]:
    """From *begin* to *end* in pieces that end at multiples of a chunk."""
    stops = [*range((begin // CHUNK + 1) * CHUNK, end, CHUNK), end]
    return [
        _Piece(start, stop - start, False) for start, stop in zip([begin, *stops], stops, strict=False) if start < stop
    ]


class _Reader:
    """What the workers share. Invariant: pieces are numbered in the order in which they are taken."""

    def __init__(
        self,
        blk: BlockBackend,
        pieces: AsyncGenerator[_Piece, None],
        ordered: OrderedChecksum,
        meter: Meter,
        limit: RateLimit | None,
    ) -> None:
        self._blk = blk
        self._pieces = pieces
        self._ordered = ordered
        self._meter = meter
        self._limit = limit
        self._taking = asyncio.Lock()
        self._taken = 0
        self._exact = blk.getlength()

    async def work(self) -> None:
        buffer = aligned_buffer(CHUNK)
        take = None if self._limit is None else self._meter.timed(Side.LIMIT, self._limit.take)
        read = self._meter.timed(Side.SOURCE, self._blk.co_preadv)
        while True:
            async with self._taking:
                piece = await anext(self._pieces, None)
                if piece is None:
                    return
                number = self._taken
                self._taken += 1
            if piece.zero:
                await self._ordered.zeroes(number, piece.nbytes)
            else:
                if take is not None:
                    await take(piece.nbytes)
                view = buffer[: piece.nbytes]
                try:
                    await read(piece.offset, view)
                except BlockError as error:
                    raise _at(error, f"error while reading at byte {piece.offset}") from error
                await self._ordered.update(number, view)
            self._meter.advance(piece.nbytes)


def _at(error: BlockError, where: str) -> BlockError:
    return BlockError(f"{where}: {os.strerror(error.errno or errno.EIO)}", error.errno)
