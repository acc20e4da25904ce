"""What one request may be, and whether it is a request at all (QEMU's bdrv_refresh_limits, bdrv_check_request)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from blockio.errors import OutOfRange
from blockio.types import INT_MAX, MAX_LENGTH, BlockLimits

__all__ = ["MAX_BOUNCE", "MAX_LENGTH", "check_range", "check_transfer", "merged_limits"]

MAX_BOUNCE: Final = 16 << 20
"""The most memory, in bytes, that one step of a request takes beside the caller's own."""


def check_range(offset: int, nbytes: int) -> None:
    """Raise OutOfRange (EIO) unless *offset* and *nbytes* make a request. The disk's end does not matter here."""
    if offset < 0 or nbytes < 0 or offset + nbytes > MAX_LENGTH:
        raise OutOfRange


def check_transfer(offset: int, nbytes: int) -> None:
    """``check_range`` for a request with memory, which is at most INT_MAX bytes long."""
    if offset < 0 or nbytes > INT_MAX or offset + nbytes > MAX_LENGTH:
        raise OutOfRange


def _smaller(a: int, b: int) -> int:
    """The tighter of two maxima, where 0 means none."""
    return min(a, b) if a and b else a or b


def merged_limits(own: BlockLimits, children: Iterable[BlockLimits]) -> BlockLimits:
    """A driver's *own* limits tightened by those of its DATA, FILTERED and COW *children*.

    A child's request alignment is not the node's: the child pads by itself. Nor are its zero-write limits: how a
    format zeroes has nothing to do with how its file does.
    """
    merged = own
    for child in children:
        merged = msgspec.structs.replace(
            merged,
            pdiscard_alignment=max(merged.pdiscard_alignment, child.pdiscard_alignment),
            opt_transfer=max(merged.opt_transfer, child.opt_transfer),
            max_transfer=_smaller(merged.max_transfer, child.max_transfer),
            max_iov=_smaller(merged.max_iov, child.max_iov),
            min_mem_alignment=max(merged.min_mem_alignment, child.min_mem_alignment),
            opt_mem_alignment=max(merged.opt_mem_alignment, child.opt_mem_alignment),
        )
    align = merged.request_alignment
    if align <= 0 or align & (align - 1):
        raise RuntimeError(f"a request alignment of {align} is not a power of two")
    if merged.max_transfer and (merged.max_transfer < align or merged.max_transfer % align):
        merged = msgspec.structs.replace(
            merged, max_transfer=max(align, merged.max_transfer - merged.max_transfer % align)
        )
    return merged
