"""``-s``: a temporary qcow2 overlay that takes the writes and is thrown away."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from blockio.backend import BlockBackend
from blockio.driver.gate import AllowAll
from blockio.img import create

if TYPE_CHECKING:
    from blockio.cli.io.opening import Opening

__all__ = ["open_on_snapshot"]


async def open_on_snapshot(opening: Opening, options: dict[str, Any]) -> BlockBackend:
    """Open the image read-only and an empty overlay on it, which has no name any more when this returns."""
    base = await BlockBackend.new_open(
        opening.filename, options=options, flags=opening.flags.with_(read_only=True), gate=AllowAll()
    )
    async with base:
        node = base.bs
        assert node is not None
        # It may grow as large as the disk: not into a file system in memory.
        handle, name = tempfile.mkstemp(prefix="blockio-io.", dir=os.environ.get("TMPDIR", "/var/tmp"))
        os.close(handle)
        try:
            await create(name, "qcow2", size=await base.co_getlength())
            return await BlockBackend.new_open(
                options={
                    "driver": "qcow2",
                    "file": {"driver": "file", "filename": name},
                    "backing": node.node_name,
                },
                flags=opening.flags.with_(cache_no_flush=True),
                gate=AllowAll(),
            )
        finally:
            os.unlink(name)
