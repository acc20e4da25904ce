"""preallocate: a filter that lets a file grow in large steps, ahead of the writes behind its end.

A write past the end first has the file zeroed, without writing zeroes, up to ``prealloc-size`` bytes behind the write,
rounded up to ``prealloc-align``; so the next ones find room. What is written into the room is the disk, the rest is
not: users see where the data ends, and it is there that the file is cut when the node closes, goes to sleep, becomes
read-only, or when nobody needs both WRITE and RESIZE any more.

::

    file  |ddddddddddddddddd00000000|ppppppppppppppppppp|
                            zero_start                  the file's end
                                    data_end: the disk's end

Zero writes at the end become part of the preallocation where they ask for nothing special.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.driver.base import ChildOpener, DriverHost, FilterDriver, ReopenState
from blockio.driver.options import Size
from blockio.errors import BlockError, OptionError
from blockio.types import Perm, PreallocMode, RequestFlags, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.buffers import IoVector

__all__ = ["PreallocateDriver", "PreallocateOptions"]

_SECTOR: Final = 512
_GROWS: Final = Perm.WRITE | Perm.RESIZE
_NO_FALLBACK: Final = int(RequestFlags.NO_FALLBACK)
_AHEAD: Final = int(RequestFlags.NO_FALLBACK | RequestFlags.SERIALISING | RequestFlags.NO_WAIT)
"""Only what costs nothing, and only where nobody writes at the same time: a write there must not be undone."""


class PreallocateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """``prealloc-align``: where preallocation ends, in bytes. ``prealloc-size``: how far it reaches behind a write."""

    prealloc_align: Size = Size(1 << 20)
    prealloc_size: Size = Size(128 << 20)


class PreallocateDriver(FilterDriver):
    """See the module.

    Invariants: ``_data_end`` is a position only while the node holds WRITE and RESIZE on its child and shares
    neither; then it is the end of all that users wrote, tried to write or truncated to, and from ``_zero_start`` on
    to the file's end there are zeroes. It outlives the users' permissions until the file was cut there. Without it the
    filter only forwards, and is as long as its child.
    """

    name = "preallocate"
    Options = PreallocateOptions
    strong_options = frozenset()
    reopen_options = frozenset(("prealloc-align", "prealloc-size"))

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._options = PreallocateOptions()
        self._data_end: int | None = None
        self._zero_start = 0
        self._users_grow = False
        self._quiet = False
        self._cutting: asyncio.Task[None] | None = None

    async def open(self, options: PreallocateOptions, opener: ChildOpener) -> None:
        await super().open(options, opener)
        self._check(options)
        self._options = options

    async def close(self) -> None:
        await self._let_go()

    async def reopen_prepare(self, state: ReopenState) -> None:
        self._check(state.options)
        if state.flags.read_only:
            await self._let_go()

    def reopen_commit(self, state: ReopenState) -> None:
        self._options = state.options

    def reopen_abort(self, state: ReopenState) -> None:
        self._take_hold()

    async def inactivate(self) -> None:
        await self._let_go()

    async def drain_begin(self) -> None:
        self._quiet = True
        if self._cutting is not None:
            await self._cutting

    async def drain_end(self) -> None:
        self._quiet = False
        self._cut_soon()

    def _check(self, options: PreallocateOptions) -> None:
        if options.prealloc_align % _SECTOR:
            raise OptionError(f"prealloc-align parameter of preallocate filter is not aligned to {_SECTOR}")
        alignment = self.file.limits.request_alignment
        if options.prealloc_align % alignment:
            raise OptionError(
                "prealloc-align parameter of preallocate filter is not aligned to underlying node request alignment "
                f"({alignment})"
            )

    # -- permissions: alone with the file's end, or not preallocating

    def child_perm(self, child: str, role: Role, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        wanted, allowed = super().child_perm(child, role, perm, shared)
        if perm & _GROWS == _GROWS or self._data_end is not None:
            return wanted | _GROWS, allowed & ~_GROWS
        return wanted, allowed

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        self._users_grow = perm & _GROWS == _GROWS
        self._take_hold()
        self._cut_soon()

    def _take_hold(self) -> None:
        if self._users_grow and self._data_end is None:
            self._data_end = self._zero_start = self.length = self.file.length

    async def _let_go(self) -> None:
        """Cut the file where the disk ends, and follow it from now on."""
        if self._data_end is not None:
            await self._cut()
            self._data_end = None

    def _cut_soon(self) -> None:
        """Where nobody grows the file any more: cut it, and let go of it. A permission is changed without waiting."""
        if self._data_end is None or self._users_grow or self._quiet or self._cutting is not None:
            return
        self._cutting = self.host.context.loop.create_task(self._give_up_growing())

    async def _give_up_growing(self) -> None:
        try:
            if self._users_grow:
                return
            try:
                await self._cut()
            except BlockError as error:
                # The room stays ours, or somebody would take it for data; closing tries again.
                self.host.report(f"Failed to truncate file: {error}")
                return
            if not self._users_grow:
                self._data_end = None
                self.host.permissions_changed()
        finally:
            self._cutting = None

    async def _cut(self) -> None:
        """Let the file end where the disk does."""
        assert self._data_end is not None
        if self._data_end < self.file.length:
            await self.file.co_truncate(self._data_end, exact=True)

    # -- lengths

    def follow_length(self) -> bool:
        return self._data_end is None and super().follow_length()

    async def co_getlength(self) -> int:
        if self._data_end is None:
            return await super().co_getlength()
        self.length = self._data_end
        return self.length

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        if self._data_end is None:
            await super().co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)
            return
        if length > self._data_end:
            if prealloc is PreallocMode.FALLOC and length <= self.file.length:
                self._ends_at(length)
                return
            if prealloc is not PreallocMode.FALLOC:
                # What was asked for is more than room, or less: begin where the data ends.
                try:
                    await self._cut()
                except BlockError as error:
                    raise error.prefixed("preallocate-filter: failed to drop write-zero preallocation: ") from error
        await self.file.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)
        self._zero_start = length
        self._ends_at(length)

    def _ends_at(self, length: int) -> None:
        self._data_end = self.length = length
        self.host.length_changed()

    # -- requests

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._make_room(offset, iov.nbytes, zeroes=False)
        await self.file.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        # Whoever asks for more than zeroes (unmapped, durable) gets a zero write of their own.
        plain = not int(flags) & ~_NO_FALLBACK
        if not await self._make_room(offset, nbytes, zeroes=plain):
            await self.file.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        self._zero_start = max(self._zero_start, offset + nbytes)  # what is there now nobody knows
        await self.file.co_pdiscard(offset, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        if self._data_end is not None and offset + nbytes > self._zero_start:
            return False
        return self.file.try_pwritev(offset, bufs, nbytes)

    async def _make_room(self, offset: int, nbytes: int, *, zeroes: bool) -> bool:
        """Preallocate for a write. True: it is one of *zeroes*, and they are there.

        The file's end is looked up anew each time, without waiting: a write that grew it is still in flight, so that
        zeroing is refused (NO_WAIT), or it is counted in.
        """
        if self._data_end is None:
            return False
        end = offset + nbytes
        grows = end > self._data_end
        self._data_end = max(self._data_end, end)
        if not zeroes:
            self._zero_start = max(self._zero_start, end)
        if not grows:
            return False
        file_end = self.file.length
        if end <= file_end:
            return zeroes and offset >= self._zero_start
        # The file has to grow: let the next writes find room as well.
        alignment = self.file.limits.request_alignment
        start = _up(min(offset, file_end) if zeroes else file_end, alignment)
        stop = _up(max(start, end) + self._options.prealloc_size, max(self._options.prealloc_align, alignment))
        try:
            await self.file.co_pwrite_zeroes(start, stop - start, _AHEAD)
        except BlockError:
            return False  # no room ahead; the write itself will say whether that matters
        return zeroes and start <= offset


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
