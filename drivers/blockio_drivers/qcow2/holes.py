"""Whether an image's data clusters may be holes of its file, because only metadata was preallocated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.types import INT_MAX, StatusFlags

if TYPE_CHECKING:
    from blockio_drivers.qcow2.allocator import Allocator
    from blockio_drivers.qcow2.image import Image

__all__ = ["data_may_be_hole"]

_PATIENCE: Final = 4096
"""How many extents of the file are looked at before the answer is a careful yes."""


async def data_may_be_hole(image: Image, allocator: Allocator) -> bool:
    """QEMU's guess: clearly more clusters are in use than the file has data for.

    Clearly means a ninth more, and at least two. Costs a look through the refcounts and the file's extents.
    """
    used = await allocator.used()
    enough = min(used * 9 // 10, used - 2) << image.geometry.cluster_bits
    length = await image.file.co_getlength()
    offset = data = 0
    for _ in range(_PATIENCE):
        if data > enough:
            return False
        if offset >= length:
            return True
        status = await image.file.co_block_status(offset, min(length - offset, INT_MAX & -512))
        if status.flags & StatusFlags.DATA:
            data += status.length
        offset += status.length
    return True
