"""``measure``: how large a new image would get."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from blockio.driver.base import Measurement
from blockio.errors import OptionError
from blockio.graph.create import typed_create_options
from blockio.img.creating import option_pairs, plan_create
from blockio.img.opening import ImageLike, opened, sectors_up
from blockio.img.snapshots import load_snapshot
from blockio.io.status import block_status_above
from blockio.types import OpenFlags, StatusFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.graph.node import BlockNode

__all__ = ["measure"]

_LONGEST: Final = 1 << 30
_ZERO: Final = int(StatusFlags.ZERO)
_STORED: Final = int(StatusFlags.DATA | StatusFlags.ALLOCATED)


async def measure(
    image: ImageLike | None = None,
    format: str = "raw",
    *,
    size: int | None = None,
    options: Mapping[str, Any] | Iterable[tuple[str, str]] = (),
    snapshot: str | None = None,
) -> Measurement:
    """How many bytes a new image of *format* with *options* takes: with what *image* holds, or empty with *size* bytes.

    *snapshot* measures one of *image*'s internal snapshots. Nothing is written. OptionError, UnsupportedFeature for a
    format that cannot be made or measured, and what opening raises.
    """
    if (image is None) == (size is None):
        raise ValueError("measure an image or a size, one of them")
    plan = plan_create("", format, ())
    try:
        for name, text in option_pairs(options):
            plan.set(name, text)
    except OptionError as error:
        raise OptionError(error.message, hint=f"Invalid options for file format '{format}'") from error
    if image is None:
        plan.set("size", size or 0)
        return await _measured(plan.driver, plan.values, None)
    async with opened(image, OpenFlags(read_only=True)) as blk:
        if snapshot is not None:
            await load_snapshot(blk, snapshot)
        source = _Source(blk)
        plan.set("size", source.length)
        return await _measured(plan.driver, plan.values, source)


async def _measured(driver: Any, values: Mapping[str, Any], source: _Source | None) -> Measurement:
    measurement: Measurement = await driver.co_measure(typed_create_options(driver, values), source)
    return measurement


class _Source:
    """The ``MeasureSource``: an open disk."""

    def __init__(self, blk: BlockBackend) -> None:
        node = blk.bs
        assert node is not None
        self._node: BlockNode = node
        self.length = sectors_up(node.length)
        self.bitmaps: Sequence[tuple[str, int]] | None = None
        if _keeps_bitmaps(node):
            self.bitmaps = [
                (bitmap.name or "", bitmap.granularity) for bitmap in node.dirty_bitmaps if bitmap.persistent
            ]

    async def data(self) -> AsyncIterator[tuple[int, int]]:
        at, end = 0, self._node.length
        while at < end:
            status = await block_status_above(self._node, None, at, min(_LONGEST, end - at))
            if not status.length:
                return
            flags = int(status.flags)
            if not flags & _ZERO and flags & _STORED == _STORED:
                yield at, status.length
            at += status.length


def _keeps_bitmaps(node: BlockNode) -> bool:
    """Whether the format has room for bitmaps: qcow2's from version 3 on."""
    specific = None if node.driver is None else node.driver.specific_info()
    return specific is not None and specific["type"] == "qcow2" and specific["data"].get("compat") != "0.10"
