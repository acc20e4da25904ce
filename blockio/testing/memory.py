"""A driver's surroundings without a graph: storage in memory, a host and an opener.

For tests of one driver alone, and for people who write one. ``MemoryChild`` keeps what a file would keep, counts
and can log every operation, and can fail the next ones.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from blockio.bitmaps.owner import DirtyBitmaps
from blockio.buffers import IoVector
from blockio.errors import BlockError, OptionError, ReadOnly
from blockio.types import (
    BlockInfo,
    BlockLimits,
    BlockStatus,
    Limits,
    OpenFlags,
    PreallocMode,
    RequestFlags,
    Role,
    StatusFlags,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul
    from blockio.driver.child import Child
    from blockio.driver.debug import DebugListener
    from blockio.driver.host import FrozenChain

__all__ = ["MemoryChild", "MemoryHost", "MemoryOpener"]


class MemoryChild:
    """A ``Child`` whose bytes are ``data``. Grows when written past its end.

    ``log`` receives ``(operation, offset, nbytes)`` for every operation; ``before`` is called with the same three
    before each one and may raise to make it fail.
    """

    def __init__(self, data: bytes | bytearray = b"", *, name: str = "file", role: Role = Role.IMAGE) -> None:
        self.data = bytearray(data)
        self.name = name
        self.role = role
        self.node_name = f"#memory-{name}"
        self.filename = f"memory:{name}"
        self.driver_name = "memory"
        self.can_compress = False
        self.debug_event: DebugListener | None = None
        self.limits = BlockLimits()
        self.read_only = False
        self.fast = True
        self.log: list[tuple[str, int, int]] = []
        self.before: Callable[[str, int, int], None] | None = None

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return len(self.data)

    def has_zero_init(self) -> bool:
        """Memory begins as zeroes."""
        return True

    def _note(self, operation: str, offset: int, nbytes: int) -> None:
        self.log.append((operation, offset, nbytes))
        if self.before is not None:
            self.before(operation, offset, nbytes)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Past the end there are zeroes."""
        self._note("read", offset, iov.nbytes)
        part = bytes(self.data[offset : offset + iov.nbytes])
        iov.copy_from(part.ljust(iov.nbytes, b"\0"))

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """Grows where needed."""
        self._note("write", offset, iov.nbytes)
        self._store(offset, iov.tobytes())

    def _store(self, offset: int, payload: bytes) -> None:
        end = offset + len(payload)
        if end > len(self.data):
            self.data.extend(bytes(end - len(self.data)))
        self.data[offset:end] = payload

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """Zeroes, growing where needed."""
        self._note("zero", offset, nbytes)
        self._store(offset, bytes(nbytes))

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """The bytes become 0xdd: whoever relies on them is caught."""
        self._note("discard", offset, nbytes)
        end = min(offset + nbytes, len(self.data))
        if end > offset:
            self.data[offset:end] = b"\xdd" * (end - offset)

    async def co_flush(self) -> None:
        """Only noted."""
        self._note("flush", 0, 0)

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """Grow with zeroes or cut."""
        self._note("truncate", length, 0)
        if length < len(self.data):
            del self.data[length:]
        else:
            self.data.extend(bytes(length - len(self.data)))

    async def co_getlength(self) -> int:
        """``len(data)``."""
        return len(self.data)

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """All data."""
        flags = StatusFlags.DATA | StatusFlags.ALLOCATED | StatusFlags.OFFSET_VALID
        return BlockStatus(flags, nbytes, offset, self.node_name)

    async def co_copy_range_to(
        self, offset: int, target: Child, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None:
        """Never possible."""
        raise BlockError(errno=errno.ENOTSUP)

    async def co_get_info(self) -> BlockInfo:
        """Nothing to tell."""
        return BlockInfo()

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Possible while ``fast`` is set and the range is inside."""
        if not self.fast or offset + nbytes > len(self.data):
            return False
        IoVector.of(list(bufs)).copy_from(bytes(self.data[offset : offset + nbytes]))
        return True

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Possible while ``fast`` is set and the range is inside."""
        if not self.fast or offset + nbytes > len(self.data):
            return False
        self._note("write", offset, nbytes)
        self.data[offset : offset + nbytes] = IoVector.of(list(bufs)).tobytes()
        return True

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None


class MemoryHost:
    """A ``DriverHost`` that notes what it is told in ``events``."""

    def __init__(self, *, flags: OpenFlags | None = None, trust: Limits | None = None) -> None:
        self.node_name = "node0"
        self.filename = "memory:image"
        self.probed = False
        self.flags = flags or OpenFlags()
        self.trust = trust or Limits()
        self.dirty_bitmaps = DirtyBitmaps()
        self.events: list[tuple[object, ...]] = []

    @property
    def context(self) -> AioContext:
        """The running loop's."""
        from blockio.aio.context import AioContext  # only drivers that ask need a loop

        return AioContext.current()

    def fall_back_read_only(self, message: str) -> None:
        """As a node does it."""
        if self.flags.read_only:
            return
        if not self.flags.auto_read_only:
            raise ReadOnly(message, errno.EACCES)
        self.flags = self.flags.with_(read_only=True)
        self.events.append(("read-only",))

    def length_changed(self) -> None:
        """Noted."""
        self.events.append(("length",))

    def media_changed(self, load: bool) -> None:
        """Noted."""
        self.events.append(("media", load))

    def limits_changed(self) -> None:
        """Noted."""
        self.events.append(("limits",))

    def permissions_changed(self) -> None:
        """Noted."""
        self.events.append(("permissions",))

    def report(self, message: str) -> None:
        """Noted."""
        self.events.append(("report", message))

    def warn(self, message: str, hint: str = "") -> None:
        """Noted."""
        self.events.append(("warned", message, hint))

    def corrupted(self, message: str, *, offset: int = -1, size: int = -1, fatal: bool = True) -> None:
        """Noted."""
        self.events.append(("corrupted", message, offset, size, fatal))


class MemoryOpener:
    """A ``ChildOpener`` over given children; ``implicit`` wishes are noted in ``asked`` and answered from them."""

    def __init__(self, **children: Child | None) -> None:
        self.children = {name.replace("_", "-"): child for name, child in children.items()}
        self.asked: list[dict[str, Any]] = []

    async def child(
        self, name: str, role: Role, *, optional: bool = False, filename: str | None = None
    ) -> Child | None:
        """The given child of that name."""
        found = self.children.get(name)
        if found is None and not optional:
            raise OptionError(f'A block device must be specified for "{name}"')
        return found

    async def required(self, name: str, role: Role) -> Child:
        """The given child of that name; OptionError where there is none."""
        found = await self.child(name, role)
        assert found is not None
        return found

    async def implicit(self, name: str, role: Role, *, target: str, format: str | None, kind: str) -> Child | None:
        """The given child of that name, or None."""
        self.asked.append({"name": name, "target": target, "format": format, "kind": kind})
        return self.children.get(name)

    def ignore(self, name: str) -> None:
        """Nothing is opened here."""

    def frozen_chain(self, bottom: str) -> FrozenChain:
        """There are no nodes here."""
        raise OptionError(f"Bottom node '{bottom}' not found")
