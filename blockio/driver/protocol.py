"""Drivers that move bytes themselves."""

from __future__ import annotations

from typing import Any

from blockio.driver.block import BlockDriver, DriverKind
from blockio.errors import UnsupportedFeature
from blockio.types import BlockStatus, StatusFlags

__all__ = ["ProtocolDriver"]


class ProtocolDriver(BlockDriver):
    """A driver that moves bytes itself."""

    kind = DriverKind.PROTOCOL

    @classmethod
    async def co_create_file(cls, filename: str, options: Any) -> None:
        """Make a new file or device area by that name, as ``qemu-img create -f raw`` would."""
        raise UnsupportedFeature(f"Driver '{cls.name}' does not support image creation")

    @classmethod
    async def co_file_exists(cls, filename: str) -> bool:
        """Whether something has that name already. A driver that cannot tell says yes, and nothing is ever removed."""
        return True

    @classmethod
    async def co_delete_file(cls, filename: str) -> None:
        """Remove what ``co_create_file`` made, because making an image of it failed. UnsupportedFeature: it stays."""
        raise UnsupportedFeature(f"Driver '{cls.name}' does not support image deletion")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """Without better knowledge all is data, where it stands."""
        flags = StatusFlags.DATA | StatusFlags.ALLOCATED | StatusFlags.OFFSET_VALID
        return BlockStatus(flags, nbytes, offset, self.host.node_name)
