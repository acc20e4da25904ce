"""A machine's state, kept inside an image beside the disk.

Stands on the system *vmstate* of the reference document: neither counted nor parked as a request of the backend, for a
machine's state is saved while its disks are drained. Plain forms are in ``sync.py``.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

from blockio.backend.memory import readable_vector, writable_vector
from blockio.backend.requests import Requests

if TYPE_CHECKING:
    from blockio.buffers import BufferLike

__all__ = ["VmState"]


class VmState(Requests):
    """``co_save_vmstate`` and ``co_load_vmstate``."""

    async def co_save_vmstate(self, iov: BufferLike, pos: int) -> int:
        """Keep *iov* at byte *pos* of the image's area for it; returns how many bytes that is.

        With the write cache off it is durable afterwards. NoMedium; UnsupportedFeature without such an area.
        """
        if self._elsewhere():
            return await self._context.run(self.co_save_vmstate(iov, pos))
        from blockio.io.driver_calls import save_vmstate  # few keep a machine's state

        vector, at = readable_vector(iov), _position(pos)
        node = self._edge().node
        await save_vmstate(node, vector, at)
        if not self._enable_write_cache:
            await node.path.co_flush()
        return vector.nbytes

    async def co_load_vmstate(self, iov: BufferLike, pos: int) -> int:
        """Fill *iov* from byte *pos* of that area; returns how many bytes that is. Errors as ``co_save_vmstate``."""
        if self._elsewhere():
            return await self._context.run(self.co_load_vmstate(iov, pos))
        from blockio.io.driver_calls import load_vmstate  # as above

        vector, at = writable_vector(iov), _position(pos)
        await load_vmstate(self._edge().node, vector, at)
        return vector.nbytes


def _position(pos: int) -> int:
    at = index(pos)
    if at < 0:
        raise ValueError(f"a machine's state at byte {at}")
    return at
