"""blkverify: the same disk twice, compared whenever it is read.

What is written goes to both, what is read is read from both, and where they differ the request fails and says where. A
raw copy that is known to be right finds the first wrong byte of a format that is not. QEMU's tools end at that point;
here it is an error of the request, so that a program decides.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.aio.ranges import RangeLocks
from blockio.buffers import IoVector
from blockio.driver.base import Capabilities, ChildOpener, DriverHost, FilterDriver
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.types import Capability, PreallocMode, RequestFlags, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.driver.child import Child

__all__ = ["BlkverifyDriver", "BlkverifyOptions"]

_COMPARED_AT_ONCE: Final = 4096


class BlkverifyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The children are ``raw`` and ``test``; these are their names as ``blkverify:RAW:TEST`` has them."""

    x_raw: str | None = None
    x_image: str | None = None


class BlkverifyDriver(FilterDriver):
    """Compares ``test`` with ``raw``, as long as ``test`` is.

    Invariant: a request holds its range in ``_ranges`` from before it reaches either child until both have answered, so
    that the two never see two requests for one byte in different orders. A cancelled request ends in both first.
    """

    name = "blkverify"
    protocols = ("blkverify",)
    Options = BlkverifyOptions
    strong_options = frozenset(())
    test: Child

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._ranges = RangeLocks()

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """``blkverify:RAW:TEST``. OptionError where one is missing."""
        raw, colon, test = filename.removeprefix("blkverify:").partition(":")
        if not filename.startswith("blkverify:") or not colon:
            raise OptionError("blkverify requires raw copy and original image path")
        return {"x-raw": raw, "x-image": test}

    @classmethod
    def join_filename(cls, options: Mapping[str, Any], children: Mapping[str, str]) -> str | None:
        """The inverse of ``parse_filename``."""
        return f"blkverify:{children['raw']}:{children['test']}"

    async def open(self, options: BlkverifyOptions, opener: ChildOpener) -> None:
        raw = await opener.child("raw", Role.FILTERED | Role.PRIMARY, filename=options.x_raw)
        if raw is None:
            raise OptionError('A block device must be specified for "raw"')
        test = await opener.child("test", Role.DATA, filename=options.x_image)
        if test is None:
            raise OptionError('A block device must be specified for "test"')
        self.filters(raw)
        self.test = test
        self.length = test.length
        # Neither child alone can answer for both: lengths stay, and what a discard leaves is not theirs to agree on.
        self.capabilities = Capabilities(
            write_zeroes=Capability.NATIVE,
            fua=Capability.NATIVE,
            zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK | RequestFlags.FUA,
        )

    def attach_context(self, context: AioContext) -> None:
        """Locks for the new loop; nobody holds one now."""
        self._ranges = RangeLocks()

    def has_zero_init(self) -> bool:
        return self.file.has_zero_init() and self.test.has_zero_init()

    async def co_getlength(self) -> int:
        self.length = await self.test.co_getlength()
        return self.length

    async def co_get_allocated_file_size(self) -> int | None:
        raise UnsupportedFeature  # QEMU takes it for a protocol, which spends nothing that it knew of

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        memory = memoryview(bytearray(iov.nbytes))
        copy = IoVector([memory], iov.nbytes)
        await self._both(
            "read",
            offset,
            iov.nbytes,
            self.test.co_preadv(offset, iov, flags),
            self.file.co_preadv(offset, copy, flags),
        )
        at = _first_difference(iov, memory)
        if at is not None:
            what = f"blkverify: read offset={offset} bytes={iov.nbytes} contents mismatch at offset {offset + at}"
            self.host.report(what)
            raise BlockError(what, errno.EIO)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._both(
            "write",
            offset,
            iov.nbytes,
            self.test.co_pwritev(offset, iov, flags),
            self.file.co_pwritev(offset, iov, flags),
        )

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        await self._both(
            "write",
            offset,
            nbytes,
            self.test.co_pwrite_zeroes(offset, nbytes, flags),
            self.file.co_pwrite_zeroes(offset, nbytes, flags),
        )

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        raise UnsupportedFeature

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        raise UnsupportedFeature("Image format driver does not support resize")

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False

    async def _both(
        self,
        operation: str,
        offset: int,
        nbytes: int,
        on_test: Coroutine[Any, Any, None],
        on_raw: Coroutine[Any, Any, None],
    ) -> None:
        """Run both, and compare how they ended. However this ends, the caller's memory is free then."""
        try:
            hold = await self._ranges.acquire(offset, nbytes)
        except BaseException:
            on_test.close()
            on_raw.close()
            raise
        try:
            test, raw = asyncio.ensure_future(on_test), asyncio.ensure_future(on_raw)
            cancelled: asyncio.CancelledError | None = None
            while not (test.done() and raw.done()):
                try:
                    await asyncio.wait((test, raw))
                except asyncio.CancelledError as error:
                    cancelled = error  # one copy with the bytes and one without would differ for ever
            errors = test.exception(), raw.exception()
        finally:
            hold.release()
        if cancelled is not None:
            raise cancelled
        codes = [error.errno if isinstance(error, OSError) else None for error in errors]
        if errors[0] is not None and (errors[1] is not None or codes[0] is None):
            raise errors[0]
        if errors[1] is not None and codes[1] is None:
            raise errors[1]
        if codes[0] != codes[1]:
            said = " != ".join("success" if code is None else os.strerror(code) for code in codes)
            what = f"blkverify: {operation} offset={offset} bytes={nbytes} return value mismatch: {said}"
            self.host.report(what)
            raise BlockError(what, errno.EIO)


def _first_difference(iov: IoVector, copy: memoryview) -> int | None:
    """Where *iov* and *copy* first differ, or None."""
    seen = iov.tobytes()
    if seen == copy:
        return None
    for start in range(0, len(seen), _COMPARED_AT_ONCE):
        one, other = seen[start : start + _COMPARED_AT_ONCE], bytes(copy[start : start + _COMPARED_AT_ONCE])
        if one != other:
            return start + next(at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
    return None
