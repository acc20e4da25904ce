"""Discards (QEMU's bdrv_co_pdiscard): advice, passed on in fragments that fit, and never an error for being refused."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import TYPE_CHECKING

from blockio.io import wall

if TYPE_CHECKING:
    from blockio.io.node_io import NodeIO
    from blockio.types import BlockLimits

__all__ = ["discard"]


async def discard(io: NodeIO, offset: int, nbytes: int) -> None:
    """Tell the driver, fragment by fragment. Fragments it does not take are left as they are."""
    for start, length in _fragments(io.limits, offset, nbytes):
        driver = io.driver()
        try:
            await wall.called(driver, "co_pdiscard", driver.co_pdiscard(start, length))
        except OSError as error:
            if error.errno != errno.ENOTSUP:
                raise


def _fragments(limits: BlockLimits, offset: int, nbytes: int) -> Iterator[tuple[int, int]]:
    """Cut at the discard units, and within them at the blocks.

    Unaligned ends are passed on too: some devices put them together with their neighbours' until a unit is full.
    """
    block = limits.request_alignment
    unit = max(limits.pdiscard_alignment, block)
    longest = (limits.max_pdiscard // unit * unit or unit) if limits.max_pdiscard else nbytes
    end = offset + nbytes
    while offset < end:
        left = end - offset
        if offset % block:
            length = min(left, block - offset % block)
        elif offset % unit or left < unit:
            length = min(left, unit - offset % unit)
            if length > block:
                length -= length % block
        else:
            length = min(left - left % unit, longest)
        yield offset, length
        offset += length
