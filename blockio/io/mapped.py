"""Moving the bytes of a format: its driver says where they are, here they are read and written.

Reads go extent by extent; while one is under way the driver holds back the reuse of what it pointed at
(``map_begin``, ``map_end``). Writes get an ``Allocation``; old content around the data is copied where it is needed,
head, data and tail are one request, then the driver links the new place, or is told to abandon it.

A request in one extent or one allocation, which most are, is a straight line of awaits; only fragmented ones start
tasks (see ``Workers``).
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector
from blockio.driver.debug import tell
from blockio.io.memory import zero_vector
from blockio.io.shield import shielded
from blockio.io.workers import Workers
from blockio.types import Extent, ExtentKind, Extents

if TYPE_CHECKING:
    from blockio.driver.base import Allocation, FormatDriver

__all__ = ["abandon", "allocate", "locate", "old_content", "read", "write"]

_MERGE_READS: Final = 16 << 10
"""Head and tail are read as one request if no more than this lies between them: a transfer costs more than that."""

_DATA: Final = ExtentKind.DATA
_ZERO: Final = ExtentKind.ZERO
_UNALLOCATED: Final = ExtentKind.UNALLOCATED
_COMPRESSED: Final = ExtentKind.COMPRESSED
_ENCRYPTED: Final = ExtentKind.ENCRYPTED

_PACKED_TOGETHER: Final = 2 << 20
"""Guest bytes of compressed extents that are one job for the driver: handing one over costs as much as it takes."""


async def locate(driver: FormatDriver, offset: int, nbytes: int) -> Extent:
    """The first extent from *offset* on, from memory where the driver can; RuntimeError for an impossible one."""
    extent = driver.try_map(offset, nbytes)
    if extent is None:
        extent = await driver.co_map(offset, nbytes)
    kind, length, host_offset, child = extent
    if not 0 < length <= nbytes or ((kind is _DATA or kind is _ENCRYPTED) and (child is None or host_offset < 0)):
        raise RuntimeError(f"driver '{driver.name}' mapped {nbytes} bytes at {offset} to {extent!r}")
    return extent


async def read(driver: FormatDriver, offset: int, iov: IoVector) -> None:
    """Fill *iov* from *offset*; the range lies within the disk."""
    token = driver.map_begin()
    try:
        await _read(driver, offset, iov)
    finally:
        driver.map_end(token)


async def _read(driver: FormatDriver, offset: int, iov: IoVector) -> None:
    nbytes = iov.nbytes
    extent = await locate(driver, offset, nbytes)
    if extent.length == nbytes:
        await _read_extent(driver, extent, offset, iov)
        return
    at = packed_bytes = 0
    packed: list[tuple[int, IoVector, Extents]] = []
    async with Workers() as workers:
        while True:
            if extent.kind is _COMPRESSED:
                row = _row(driver, extent, offset + at, nbytes - at, _PACKED_TOGETHER - packed_bytes)
                length = sum(row.lengths)
                packed.append((offset + at, iov.slice(at, length), row))
                packed_bytes += length
                if length == nbytes:
                    break
                if packed_bytes >= _PACKED_TOGETHER:
                    await workers.add(driver.co_read_packed(packed))
                    packed, packed_bytes = [], 0
            else:
                length = extent.length
                part = iov.slice(at, length)
                if not _read_now(driver, extent, offset + at, part):
                    await workers.add(_read_extent(driver, extent, offset + at, part))
            at += length
            if at == nbytes:
                if packed:
                    await workers.add(driver.co_read_packed(packed))
                return
            extent = await locate(driver, offset + at, nbytes - at)
    await driver.co_read_packed(packed)  # all of the request, which needs no task


def _row(driver: FormatDriver, extent: Extent, offset: int, nbytes: int, room: int) -> Extents:
    """The compressed *extent* at *offset* and those next to it, mostly many: *room* bytes at most, or one."""
    if extent.length < min(nbytes, room):
        for kind, lengths, hosts, child in driver.try_map_many(offset, min(nbytes, 2 * _PACKED_TOGETHER))[:1]:
            if kind is _COMPRESSED:
                count = max(bisect_right(list(accumulate(lengths)), room), 1)
                return Extents(kind, lengths[:count], hosts[:count], child)
    return Extents(extent.kind, [extent.length], [extent.host_offset], extent.child)


def _read_now(driver: FormatDriver, extent: Extent, offset: int, part: IoVector) -> bool:
    """Serve *extent* without suspending, or answer False: a task for it would cost more than the bytes."""
    if extent.kind is _DATA:
        child = extent.child
        return child is not None and child.try_preadv(extent.host_offset, part.views, part.nbytes)
    if extent.kind is _ZERO or (extent.kind is _UNALLOCATED and driver.backing is None):
        part.fill_zero()
        return True
    if extent.kind is _UNALLOCATED and driver.backing is not None and driver.file.debug_event is None:
        return driver.backing.try_preadv(offset, part.views, part.nbytes)
    return False


async def _read_extent(driver: FormatDriver, extent: Extent, offset: int, part: IoVector) -> None:
    kind = extent.kind
    if kind is _DATA:
        assert extent.child is not None  # ``locate`` looked
        if driver.file.debug_event is not None:
            await driver.file.debug_event("read_aio")
        await extent.child.co_preadv(extent.host_offset, part)
    elif kind is _COMPRESSED:
        await driver.co_read_compressed(offset, part, extent)
    elif kind is _ENCRYPTED:
        await tell(driver.file, "read_aio")
        await driver.co_read_encrypted(offset, part, extent)
    elif kind is _UNALLOCATED and driver.backing is not None:
        await tell(driver.file, "read_backing_aio")
        await driver.backing.co_preadv(offset, part)  # past the backing file's end this reads zeroes
    else:
        part.fill_zero()


async def write(driver: FormatDriver, offset: int, iov: IoVector) -> None:
    """Write *iov* at *offset*; the range lies within the disk.

    When it fails or is cancelled each part of the range holds its old or its new content, as with any disk.
    """
    nbytes = iov.nbytes
    allocation = await allocate(driver, offset, nbytes)
    if allocation.length == nbytes:
        await _store(driver, allocation, iov)
        return
    unclaimed = {allocation}
    at = 0
    try:
        async with Workers() as workers:
            while True:
                await workers.add(_claim(unclaimed, driver, allocation, iov.slice(at, allocation.length)))
                at += allocation.length
                if at == nbytes:
                    return
                allocation = await allocate(driver, offset + at, nbytes - at)
                unclaimed.add(allocation)
    finally:
        # A task that is cancelled before its first step never runs: what it should have taken over is still ours.
        for left in unclaimed:
            await shielded(left.abandon())


async def allocate(driver: FormatDriver, offset: int, nbytes: int) -> Allocation:
    """The driver's next allocation for a write of *nbytes* at *offset*; RuntimeError for one that does not fit it."""
    allocation = await driver.co_allocate(offset, nbytes)
    if allocation.offset != offset or not 0 < allocation.length <= nbytes:
        await shielded(allocation.abandon())
        raise RuntimeError(
            f"driver '{driver.name}' allocated {allocation.length} bytes at {allocation.offset} "
            f"for a write of {nbytes} at {offset}"
        )
    return allocation


async def _claim(unclaimed: set[Allocation], driver: FormatDriver, allocation: Allocation, data: IoVector) -> None:
    unclaimed.discard(allocation)
    await _store(driver, allocation, data)


async def _store(driver: FormatDriver, allocation: Allocation, data: IoVector) -> None:
    """Write *data* into *allocation* with what belongs around it, and link it."""
    try:
        host_offset = allocation.host_offset
        copied = False
        if allocation.cow_head or allocation.cow_tail:
            head, tail = await old_content(driver, allocation)
            copied = head.nbytes + tail.nbytes > 0
            host_offset -= head.nbytes
            data = head.concat(data, tail)
        if driver.file.debug_event is not None:
            await driver.file.debug_event("write_aio")
            if copied:
                await driver.file.debug_event("cow_write")
        if driver.encrypted:
            before = allocation.host_offset - host_offset
            await driver.co_write_encrypted(allocation.child, allocation.offset - before, host_offset, data)
        else:
            await allocation.child.co_pwritev(host_offset, data)
    except BaseException as error:
        await abandon(allocation, error)
        raise
    await shielded(allocation.link())


async def abandon(allocation: Allocation, error: BaseException) -> None:
    """Give *allocation* back because of *error*; what goes wrong with that comes second."""
    try:
        await shielded(allocation.abandon())
    except Exception as second:
        error.add_note(f"and then, giving back what was allocated: {second!r}")


async def old_content(driver: FormatDriver, allocation: Allocation) -> tuple[IoVector, IoVector]:
    """What must be written before and behind the data. Either is empty where the new place already reads so."""
    head_start = allocation.offset - allocation.cow_head
    tail_start = allocation.offset + allocation.length
    token = driver.map_begin()
    try:
        head_is_nothing = await _is_nothing(driver, head_start, allocation.cow_head)
        tail_is_nothing = await _is_nothing(driver, tail_start, allocation.cow_tail)
        if not (head_is_nothing or tail_is_nothing) and allocation.length <= _MERGE_READS:
            whole = await _old(driver, head_start, tail_start + allocation.cow_tail - head_start)
            head = whole.slice(0, allocation.cow_head)
            tail = whole.slice(tail_start - head_start, allocation.cow_tail)
        else:
            head = await _old(driver, head_start, allocation.cow_head, nothing=head_is_nothing)
            tail = await _old(driver, tail_start, allocation.cow_tail, nothing=tail_is_nothing)
    finally:
        driver.map_end(token)
    if allocation.fresh:
        # The new place reads as zeroes: zeroes next to the data need not be written again.
        return (IoVector([], 0) if head.is_zero() else head), (IoVector([], 0) if tail.is_zero() else tail)
    return head, tail


async def _is_nothing(driver: FormatDriver, offset: int, nbytes: int) -> bool:
    """Whether the mapping alone says that these bytes read as zeroes. They may reach past the disk's end."""
    end = min(offset + nbytes, driver.length)
    while offset < end:
        kind, length, _, _ = await locate(driver, offset, end - offset)
        backing = driver.backing
        if kind is not _ZERO and (kind is not _UNALLOCATED or (backing is not None and offset < backing.length)):
            return False
        offset += length
    return True


async def _old(driver: FormatDriver, offset: int, nbytes: int, *, nothing: bool = False) -> IoVector:
    """The guest's bytes as they are; past the disk's end there are zeroes."""
    inside = min(nbytes, driver.length - offset)
    if nothing or inside <= 0:
        return zero_vector(nbytes)
    await tell(driver.file, "cow_read")
    memory = memoryview(bytearray(nbytes))
    await _read(driver, offset, IoVector([memory[:inside]], inside))
    return IoVector([memory], nbytes)
