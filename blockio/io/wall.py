"""The contract wall between the request path and a driver.

Before a call it looks whether *we* keep what ``BlockDriver`` promises its authors (range, alignment, size, flags),
after it whether the *driver* did (no result, a true errno). A breach is a mistake in a program, not in an image or a
disk: RuntimeError, naming the driver. The fast lane has no wall; its checks are the lane's own conditions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio.aio.hauling import Put
    from blockio.buffers import IoVector
    from blockio.driver.base import BlockDriver
    from blockio.types import BlockLimits

__all__ = ["called", "hauled", "preadv", "pwrite_zeroes", "pwritev"]

_FUA = int(RequestFlags.FUA)
_WRITE_FLAGS = int(RequestFlags.FUA | RequestFlags.WRITE_UNCHANGED)


def _breach(driver: BlockDriver, what: str) -> RuntimeError:
    return RuntimeError(f"driver '{driver.name}' (node '{driver.host.node_name}'): {what}")


def _check_transfer(driver: BlockDriver, limits: BlockLimits, offset: int, iov: IoVector) -> None:
    nbytes = iov.nbytes
    if (
        offset < 0
        or nbytes <= 0
        or (offset | nbytes) & (limits.request_alignment - 1)
        or len(iov.views) > limits.max_iov > 0
        or nbytes > limits.max_transfer > 0
    ):
        raise _breach(driver, f"a request of {nbytes} bytes in {len(iov.views)} parts at {offset} breaks {limits}")


def _check_errno(driver: BlockDriver, operation: str, error: OSError) -> None:
    if not error.errno or error.errno < 0:
        raise _breach(driver, f"{operation} failed with the errno {error.errno}") from error


def _check_result(driver: BlockDriver, operation: str, result: object) -> None:
    if result is not None:
        raise _breach(driver, f"{operation} returned {result!r}")


async def called(driver: BlockDriver, operation: str, call: Awaitable[object]) -> None:
    """Await *call*, the driver's *operation*, and look at how it ends."""
    try:
        _check_result(driver, operation, await call)
    except OSError as error:
        _check_errno(driver, operation, error)
        raise


async def hauled(driver: BlockDriver, nbytes: int, call: Awaitable[list[Put]]) -> list[Put]:
    """Await *call*, ``driver.co_haul_to`` of *nbytes*: what was put where."""
    try:
        puts = await call
    except OSError as error:
        _check_errno(driver, "co_haul_to", error)
        raise
    at = 0
    for start, stop, _ in puts:
        if not at <= start < stop <= nbytes:
            raise _breach(driver, f"co_haul_to put bytes {start} to {stop} of {nbytes}, behind {at}")
        at = stop
    return puts


# The two below do what ``called`` does in place: they are on the path of every request, and one coroutine less counts.


async def preadv(driver: BlockDriver, limits: BlockLimits, offset: int, iov: IoVector) -> None:
    """``driver.co_preadv`` of one request within *limits*."""
    _check_transfer(driver, limits, offset, iov)
    call: Callable[..., Awaitable[object]] = driver.co_preadv
    try:
        result = await call(offset, iov, 0)
    except OSError as error:
        _check_errno(driver, "co_preadv", error)
        raise
    if result is not None:
        _check_result(driver, "co_preadv", result)


async def pwritev(driver: BlockDriver, limits: BlockLimits, offset: int, iov: IoVector, flags: int) -> None:
    """``driver.co_pwritev`` of one request within *limits*; *flags* only those the driver may see."""
    _check_transfer(driver, limits, offset, iov)
    if flags and (flags & ~_WRITE_FLAGS or (flags & _FUA and driver.capabilities.fua is not Capability.NATIVE)):
        raise _breach(driver, f"a write with the flags {RequestFlags(flags)!r}")
    call: Callable[..., Awaitable[object]] = driver.co_pwritev
    try:
        result = await call(offset, iov, flags)
    except OSError as error:
        _check_errno(driver, "co_pwritev", error)
        raise
    if result is not None:
        _check_result(driver, "co_pwritev", result)


async def pwrite_zeroes(driver: BlockDriver, limits: BlockLimits, offset: int, nbytes: int, flags: int) -> None:
    """``driver.co_pwrite_zeroes`` of one fragment: within the disk's blocks, not across its zeroing units."""
    unit = max(limits.pwrite_zeroes_alignment, limits.request_alignment)
    misplaced = (offset | nbytes) % unit and offset // unit != (offset + nbytes - 1) // unit
    if (
        offset < 0
        or nbytes <= 0
        or misplaced
        or (offset | nbytes) & (limits.request_alignment - 1)
        or flags & ~int(driver.capabilities.zero_flags)
    ):
        raise _breach(driver, f"a zero write of {nbytes} bytes at {offset}, flags {flags:#x}, breaks {limits}")
    await called(driver, "co_pwrite_zeroes", driver.co_pwrite_zeroes(offset, nbytes, flags))
