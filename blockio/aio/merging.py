"""Neighbouring transfers of one batch as one: what may be merged, and what of the outcome is whose.

Requests that arrive one by one from front to back, as most do, become one system call's worth of work: the kernel looks
up the file, takes its lock and wakes a worker once for all of them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

__all__ = ["MAX_MERGED", "MAX_PARTS", "Entry", "follows", "shares", "vector_of"]

MAX_MERGED: Final = 256 << 10
"""Bytes that are merged into one at most: beyond that there is nothing left to save."""

MAX_PARTS: Final = 256
"""Transfers that are merged into one at most; ``UIO_MAXIOV`` would allow 1024."""


Entry: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""What the kernel is told of a request: opcode, SQE flags, priority, fd, offset, address, length, RWF flags."""


def follows(second: Entry, first: Entry, reach: int) -> bool:
    """Whether *second* goes on at *reach*, in the same file and in the same way as *first*."""
    opcode, sqe, _, fd, offset, _, _, flags = second
    return offset == reach and (opcode, sqe, fd, flags) == (first[0], first[1], first[3], first[7])


def vector_of(entries: Iterable[Entry]) -> bytearray:
    """The ``struct iovec`` array of the memory of *entries*."""
    words = [word for *_, address, length, _ in entries for word in (address, length)]
    return bytearray(struct.pack(f"@{len(words)}N", *words))


def shares(result: int, lengths: Sequence[int]) -> Iterator[int | None]:
    """What each of the merged transfers would have heard, of the kernel's one *result*; None: it must ask by itself.

    Those are all of them after an error, for one may spoil it for the others, and those that a short transfer did not
    reach: only by itself does one know whether that was the end of the file, a full disk or bad luck.
    """
    left = max(result, 0)
    for length in lengths:
        share = min(left, length)
        left -= share
        yield share or None
