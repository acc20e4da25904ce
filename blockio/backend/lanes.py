"""The backend's fast lane: one call from a request's memory to the root, counted, and timed where that is asked for.

A lane is made anew whenever something that decides over it changes, so that a request asks only what can differ from
one to the next: which thread it comes from and what its memory is. What one costs is a row of ``make bench``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import get_ident
from typing import TYPE_CHECKING, Literal, TypeAlias

from blockio.backend.accounting import REQUEST_COST

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.backend.accounting import Accounting, Counters, TryTransfer
    from blockio.buffers import BufferLike, IoVector

__all__ = ["Lane", "Lanes", "fast_lane"]

Lanes: TypeAlias = Literal["auto", "fast", "started", "slow"]
"""Which short ways are open: all, one of the two, none."""

Lane: TypeAlias = "Callable[[int, BufferLike], bool]"
"""Serves a request at once, or answers False having done nothing. TypeError for what is no memory."""


def fast_lane(
    root: TryTransfer,
    vector: Callable[[BufferLike], IoVector],
    counters: Counters,
    stats: Accounting,
    context: AioContext,
    *,
    writes: bool,
) -> Lane:
    """The lane through *root*, an edge's ``try_`` function. *vector* checks memory that is not of the usual kinds."""
    timed = stats.timing
    detailed = stats.detailed(counters)
    clock = stats.clock

    def lane(offset: int, iov: BufferLike) -> bool:
        # The loop's identity would cost a system call; the thread's is as good, see ``BackendCore._elsewhere``.
        if get_ident() != context.thread_id:
            return False
        bufs: Sequence[Buffer]
        if isinstance(iov, memoryview):  # read-only or with gaps: the engine's BufferError tells, for nothing
            nbytes = iov.nbytes
            bufs = (iov,)
        elif type(iov) is bytearray or (writes and type(iov) is bytes):  # no heirs, whose length could be another
            nbytes = len(iov)
            bufs = (iov,)
        else:
            checked = vector(iov)
            nbytes = checked.nbytes
            bufs = checked.views
        began = clock() if timed else 0
        try:
            if not nbytes or not root(offset, bufs, nbytes):
                return False
        except BufferError:
            return False
        if timed:
            now = clock()
            if detailed:
                stats.took(counters, began, now)
            else:  # the same by hand: a call would cost as much as looking at the clock
                counters.time_ns += now - began
                stats.last_access_ns = now
        counters.operations += 1
        counters.weight += nbytes + REQUEST_COST
        return True

    return lane
