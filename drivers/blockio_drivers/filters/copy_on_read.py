"""copy-on-read: a filter that keeps in the image below it what a read had to fetch from further down.

With ``bottom`` only what lies in the layers between that image and the node of that name, itself included, is kept;
what comes from below it is read and left there. That part of the chain cannot be changed meanwhile. A prefetch (a read
with PREFETCH) keeps as a read does and needs no memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.base import Capabilities, ChildOpener, DriverHost, FilterDriver, FrozenChain
from blockio.types import Capability, Perm, RequestFlags, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.buffers import IoVector

__all__ = ["CopyOnReadDriver", "CopyOnReadOptions"]

_PASSED_ON: Final = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE
_PREFETCH: Final = int(RequestFlags.PREFETCH)
_COPY_ON_READ: Final = int(RequestFlags.COPY_ON_READ)


class CopyOnReadOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``bottom``: the name of the lowest node whose data is kept; without it all of the chain's is."""

    bottom: str | None = None


class CopyOnReadDriver(FilterDriver):
    """Turns reads into copy-on-read. Invariant: between ``open`` and ``close`` ``_chain`` is frozen, if there is one.

    The fast lane is closed for reads: it cannot tell where the bytes come from.
    """

    name = "copy-on-read"
    Options = CopyOnReadOptions
    strong_options = frozenset()
    capabilities = Capabilities(write_compressed=Capability.NATIVE, read_flags=RequestFlags.PREFETCH)

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._chain: FrozenChain | None = None

    async def open(self, options: Any, opener: ChildOpener) -> None:
        await super().open(options, opener)
        if options.bottom is not None:
            self._chain = opener.frozen_chain(options.bottom)

    async def close(self) -> None:
        if self._chain is not None:
            self._chain.release()
            self._chain = None

    def child_perm(self, child: str, role: Role, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """Keeping is a write that changes nothing: it needs WRITE_UNCHANGED, and so lets others have it."""
        wanted = perm & _PASSED_ON
        if not self.host.flags.inactive:
            wanted |= Perm.WRITE_UNCHANGED
        return wanted, (shared & _PASSED_ON) | Perm.WRITE_UNCHANGED

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        chain = self._chain
        if chain is None:
            await self.file.co_preadv(offset, iov, int(flags) | _COPY_ON_READ)
            return
        at = 0
        while at < iov.nbytes:
            keep, length = await self._above_bottom(chain, offset + at, iov.nbytes - at)
            if keep or not int(flags) & _PREFETCH:
                part = iov.slice(at, length)
                await self.file.co_preadv(offset + at, part, int(flags) | (_COPY_ON_READ if keep else 0))
            at += length

    async def _above_bottom(self, chain: FrozenChain, offset: int, nbytes: int) -> tuple[bool, int]:
        """Whether the first bytes are to be kept: they are in the chain, but not in its upper end; and how many."""
        try:
            depth, length = await chain.co_is_allocated(offset, nbytes)
        except OSError:
            return True, nbytes  # copying will meet the error again, or know better
        # Past the end of the disk there is nothing to keep; what is read there are zeroes.
        return (depth > 1, length) if length else (False, nbytes)

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        await self.file.co_pwritev(offset, iov, RequestFlags.WRITE_COMPRESSED)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False
