"""Setting a node's length (QEMU's bdrv_co_truncate)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from blockio.driver.base import DriverKind
from blockio.errors import BlockError, OutOfRange, ReadOnly, UnsupportedFeature
from blockio.io import wall
from blockio.types import MAX_LENGTH, Capability, PreallocMode, RequestFlags

if TYPE_CHECKING:
    from blockio.io.node_io import NodeIO

__all__ = ["truncate"]


async def truncate(io: NodeIO, length: int, *, exact: bool, prealloc: PreallocMode, flags: int) -> None:
    """Grow or shrink to *length*.

    It excludes everything behind the smaller of both ends meanwhile: preallocation could overwrite what is written
    there, a write could bring back what is cut, and another change of the length sees this one done. Where a backing
    file reaches past the old end, ZERO_WRITE is added, or its content would appear in the new range; the driver sees
    to that before the new length shows, so that no crash can expose it.

    Raises BlockError EINVAL for a negative length, OutOfRange for one that no disk may have, EACCES on a read-only
    node, ENOTSUP where the driver cannot.
    """
    driver = io.driver()
    if length < 0:
        raise BlockError("Image size cannot be negative", errno.EINVAL)
    if length > MAX_LENGTH:
        raise OutOfRange(f"offset({length}) exceeds maximum({MAX_LENGTH})")
    if io.node.read_only:
        raise ReadOnly("Image is read-only", errno.EACCES)
    if driver.capabilities.resize is Capability.NONE:
        raise UnsupportedFeature("Image format driver does not support resize")
    start = min(await driver.co_getlength(), length)
    async with io.request(start, MAX_LENGTH, serialising=True):
        driver = io.driver()
        old = await driver.co_getlength()
        backing = io.node.backing
        if length > old and backing is not None and await backing.co_getlength() > old:
            flags |= RequestFlags.ZERO_WRITE
        before = driver.length
        ok = False
        try:
            await wall.called(
                driver,
                "co_truncate",
                driver.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags),
            )
            ok = True
        finally:
            # Also when it failed: how far it came is the driver's to know.
            io.written(start, 0, ok=ok)
            if (
                driver.length != before and driver.kind is not DriverKind.FILTER
            ):  # a filter's parents heard of its child
                io.node.length_changed()
        if driver.length < length:
            raise RuntimeError(f"driver '{driver.name}' is {driver.length} bytes long after truncating to {length}")
