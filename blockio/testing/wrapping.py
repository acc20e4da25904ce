"""Something between a driver and its child.

``PassingChild`` hands everything on; the tools of this package override what they watch or disturb. A ``Wrap`` makes
one for the disk of a given name. ``WrapFilter`` is the filter node that places one in a graph, ``wrapped`` writes
its options.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from blockio.driver.base import FilterDriver
from blockio.driver.registry import register, unregister
from blockio.errors import OptionError

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul
    from blockio.buffers import IoVector
    from blockio.driver.base import ChildOpener
    from blockio.driver.child import Child
    from blockio.driver.debug import DebugListener
    from blockio.types import BlockInfo, BlockLimits, BlockStatus, PreallocMode, RequestFlags, Role

__all__ = ["PassingChild", "PausingChild", "Wrap", "WrapFilter", "wrapped"]

Wrap: TypeAlias = "Callable[[str, Child], Child]"
"""What to put around the disk of that name."""


class PassingChild:
    """A ``Child`` that is another one. The fast lane always declines, so that nothing passes unseen."""

    def __init__(self, child: Child) -> None:
        self.child = child

    @property
    def name(self) -> str:
        """The child's."""
        return self.child.name

    @property
    def role(self) -> Role:
        """The child's."""
        return self.child.role

    @property
    def node_name(self) -> str:
        """The child's."""
        return self.child.node_name

    @property
    def filename(self) -> str:
        """The child's."""
        return self.child.filename

    @property
    def length(self) -> int:
        """The child's."""
        return self.child.length

    @property
    def limits(self) -> BlockLimits:
        """The child's."""
        return self.child.limits

    @property
    def read_only(self) -> bool:
        """The child's."""
        return self.child.read_only

    @property
    def driver_name(self) -> str:
        """The child's."""
        return self.child.driver_name

    @property
    def can_compress(self) -> bool:
        """The child's."""
        return self.child.can_compress

    @property
    def debug_event(self) -> DebugListener | None:
        """The child's."""
        return self.child.debug_event

    def has_zero_init(self) -> bool:
        """The child's."""
        return self.child.has_zero_init()

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """The child's."""
        await self.child.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """The child's."""
        await self.child.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """The child's."""
        await self.child.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """The child's."""
        await self.child.co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """The child's."""
        await self.child.co_flush()

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """The child's."""
        await self.child.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)

    async def co_getlength(self) -> int:
        """The child's."""
        return await self.child.co_getlength()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """The child's."""
        return await self.child.co_block_status(offset, nbytes, want_zero=want_zero)

    async def co_copy_range_to(
        self, offset: int, target: Child, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None:
        """The child's."""
        await self.child.co_copy_range_to(offset, target, target_offset, nbytes, haul)

    async def co_get_info(self) -> BlockInfo:
        """The child's."""
        return await self.child.co_get_info()

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Never."""
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Never."""
        return False

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """There is no engine below."""
        return None


class PausingChild(PassingChild):
    """A ``Child`` whose operations take turns of the loop before and after they are carried out, as a real file's do.

    Each takes one before and one after; with *rnd*, up to *turns* of each, so that requests overtake one another.
    """

    def __init__(self, child: Child, *, turns: int = 1, rnd: random.Random | None = None) -> None:
        super().__init__(child)
        self.turns = turns
        self.rnd = rnd

    @asynccontextmanager
    async def _pausing(self) -> AsyncIterator[None]:
        await self._pause()
        yield
        await self._pause()

    async def _pause(self) -> None:
        for _ in range(self.turns if self.rnd is None else self.rnd.randint(0, self.turns)):
            await asyncio.sleep(0)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """In its time."""
        async with self._pausing():
            await super().co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """In its time."""
        async with self._pausing():
            await super().co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """In its time."""
        async with self._pausing():
            await super().co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """In its time."""
        async with self._pausing():
            await super().co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """In its time."""
        async with self._pausing():
            await super().co_flush()

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """In its time."""
        async with self._pausing():
            await super().co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)


class WrapOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``wrap``: the key that ``wrapped`` gave out."""

    wrap: str


class WrapFilter(FilterDriver):
    """A filter node whose ``file`` child is wrapped. ``wrapped`` makes its options and keeps it registered."""

    name = "blockio-wrap"
    Options = WrapOptions

    _known: Final[dict[str, Callable[[Child], Child]]] = {}
    _numbers = itertools.count(1)

    async def open(self, options: Any, opener: ChildOpener) -> None:
        try:
            wrap = self._known[options.wrap]
        except KeyError:
            raise OptionError(f"nothing is called '{options.wrap}' to wrap a disk in") from None
        await super().open(options, opener)
        self.file = wrap(self.file)

    async def co_flush_to_disk(self) -> None:
        await self.file.co_flush()


@contextmanager
def wrapped(wrap: Wrap, name: str, options: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Within, the answer opens the node that *options* describe, wrapped as the disk called *name*."""
    known = WrapFilter._known
    if not known:
        register(WrapFilter)
    key = f"wrap{next(WrapFilter._numbers)}"
    known[key] = lambda child: wrap(name, child)
    try:
        yield {"driver": WrapFilter.name, "wrap": key, "file": options}
    finally:
        del known[key]
        if not known:
            unregister(WrapFilter)
