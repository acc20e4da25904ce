"""concat: two disks, one behind the other, as one.

A format driver only answers *where are these bytes*; blockio moves them, checks, aligns, splits and cancels.
"""

from __future__ import annotations

from typing import Any

from blockio.driver.base import Allocation, ChildOpener, FormatDriver
from blockio.types import Extent, ExtentKind, Role


class InPlace(Allocation):
    """The bytes have their place already: nothing to link, nothing to give back."""

    __slots__ = ()

    async def link(self) -> None:
        pass

    async def abandon(self) -> None:
        pass


class ConcatDriver(FormatDriver):
    """``{"driver": "concat", "file": {...}, "second": {...}}``"""

    name = "concat"

    async def open(self, options: Any, opener: ChildOpener) -> None:
        self.file = await opener.required("file", Role.DATA | Role.PRIMARY)
        self.second = await opener.required("second", Role.DATA)
        self.length = self.file.length + self.second.length

    def try_map(self, offset: int, nbytes: int) -> Extent:
        if offset < self.file.length:
            return Extent(ExtentKind.DATA, min(nbytes, self.file.length - offset), offset, self.file)
        return Extent(ExtentKind.DATA, nbytes, offset - self.file.length, self.second)

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        return self.try_map(offset, nbytes)

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        extent = self.try_map(offset, nbytes)
        assert extent.child is not None
        return InPlace(extent.child, offset, extent.length, extent.host_offset)
