"""A qcow2 image as a guest finds it, through a backend of its own."""

from __future__ import annotations

from pathlib import Path

from blockio.backend import BlockBackend
from blockio.driver.gate import AllowAll

__all__ = ["content", "opened"]


async def opened(path: Path) -> BlockBackend:
    """The image at *path* and all that it stands on; close it."""
    return await BlockBackend.new_open(str(path), options={"driver": "qcow2"}, gate=AllowAll())


async def content(path: Path) -> bytes:
    """What a guest reads of it, from end to end."""
    async with await opened(path) as blk:
        data = bytearray(await blk.co_getlength())
        await blk.co_preadv(0, data)
        return bytes(data)
