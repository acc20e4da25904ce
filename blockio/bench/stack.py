"""What is measured: an image and how it is used. And what may be written: never a file that nobody gave away.

Opening an image for writing can already change it, so what it would write to is looked at through a read-only opening.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.bench.load import run_loop
from blockio.driver.block import DriverKind
from blockio.errors import BlockError
from blockio.img.opening import Image, opened, with_engine
from blockio.throttle import ThrottleConfig, ThrottleGroup
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.backend.lanes import Lanes
    from blockio.graph.node import BlockNode

__all__ = ["Stack", "refuse_strangers", "written_files"]

_NOWHERE: Final = frozenset(("null-co", "null-aio"))
"""Protocols that keep nothing."""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """An image, the way its requests take and what slows them down."""

    image: Image
    lane: Lanes = "auto"
    aio: str | None = None
    """``threads``, ``native`` or ``io_uring``; None: what is probed."""
    limits: Mapping[str, int] | None = None
    """A throttle group's, by the names of ``ThrottleConfig.of``."""

    @asynccontextmanager
    async def opened(self, *, write: bool) -> AsyncIterator[BlockBackend]:
        """The backend, closed again at the end. Errors as ``img.opened``; OptionError for limits that are none."""
        image = self.image if self.aio is None else with_engine(self.image, self.aio)
        config = None if self.limits is None else ThrottleConfig.of(self.limits)
        async with opened(image, OpenFlags(read_only=not write)) as blk:
            blk.set_lanes(self.lane)
            if config is None:
                yield blk
                return
            group = ThrottleGroup(f"bench-{id(blk):x}", config)
            blk.throttle.io_limits_enable(group)
            try:
                yield blk
            finally:
                await blk.throttle.io_limits_disable()
                group.delete()

    async def length(self) -> int:
        """Bytes of the disk."""
        async with self.opened(write=False) as blk:
            return await blk.co_getlength()


def written_files(root: BlockNode) -> list[str]:
    """What writes to *root* may reach: the names of its files, but for those of backing files, which are only read."""
    found = []
    cls = root.driver_class
    if cls.kind is DriverKind.PROTOCOL and cls.name not in _NOWHERE:
        found.append(root.filename)
    for name, edge in root.children.items():
        if name != "backing":
            found += written_files(edge.node)
    return found


def refuse_strangers(stack: Stack, given: Collection[str]) -> None:
    """BlockError (EPERM) where *stack*, opened for writing, could reach a file that is not one of *given*.

    Whatever a path looks like, it is the file that counts; a folder gives away all that is in it.
    """

    async def files() -> list[str]:
        async with stack.opened(write=False) as blk:
            root = blk.bs
            return [] if root is None else written_files(root)

    for name in run_loop(files()):
        if not any(_within(name, free) for free in given):
            raise BlockError(
                f"'{name}' would be overwritten; if that is what you want, say so with --overwrite {name}",
                errno=errno.EPERM,
            )


def _within(name: str, given: str) -> bool:
    if name == given:
        return True
    if not os.path.exists(name) or not os.path.exists(given):
        return False
    if os.path.isdir(given):
        return os.path.realpath(name).startswith(os.path.join(os.path.realpath(given), ""))
    return os.path.samefile(name, given)
