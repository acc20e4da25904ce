"""ioctls: a device's own requests, passed through.

Stands on the system *ioctl* of the reference document. They are counted and parked like reads, and not throttled.
"""

from __future__ import annotations

from operator import index
from typing import TYPE_CHECKING

from blockio.backend.requests import Requests

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Ioctl"]


class Ioctl(Requests):
    """``ioctl`` as a coroutine; the other forms are in ``aio.py`` and ``sync.py``."""

    async def co_ioctl(self, request: int, buf: Buffer | int = 0) -> int:
        """The device's answer to *request*, a number; *buf* is its argument, filled in place where it is memory.

        NoMedium; UnsupportedFeature (ENOTSUP) where the driver has no such thing; else what the device says. Cancelled:
        the call is waited for, it owns *buf*.
        """
        number = index(request)
        return await self._enter(lambda: self._do_ioctl(number, buf))

    async def _do_ioctl(self, request: int, buf: Buffer | int) -> int:
        from blockio.io.driver_calls import ioctl  # few have a device

        return await ioctl(self._edge().node, request, buf)
