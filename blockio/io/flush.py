"""Flushes (QEMU's bdrv_co_flush): one at a time for a node, and no more to the disk than was written since the last."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.driver.debug import tell
from blockio.io import wall
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.io.node_io import NodeIO

__all__ = ["flush"]


async def flush(io: NodeIO) -> None:
    """Make every write that completed before this call durable, in the node and in the children it may write.

    One runs at a time; later ones wait in their order, and find the disk part done when nothing was written since.
    When it fails or is cancelled, nothing is taken for durable and the next flush does all of it again.
    """
    if io.node.read_only:
        return
    generation = io.write_gen
    turn = io.flushes.enter(0, 1, serialising=True)
    try:
        await io.flushes.wait(turn)
        primary = io.node.primary
        if primary is not None:
            await tell(primary, "flush_to_os")
        driver = io.driver()
        await wall.called(driver, "co_flush_to_os", driver.co_flush_to_os())
        to_disk = not io.node.flags.cache_no_flush
        if to_disk and io.flushed_gen != generation:
            if primary is not None:
                await tell(primary, "flush_to_disk")
            driver = io.driver()
            await wall.called(driver, "co_flush_to_disk", driver.co_flush_to_disk())
        await _flush_children(io)
        if to_disk:  # else a reopen with flushes must not find them done
            io.flushed_gen = generation
    finally:
        io.flushes.leave(turn)


async def _flush_children(io: NodeIO) -> None:
    """Flush all children that can have been written; the first error is raised when all were asked."""
    first: OSError | None = None
    for edge in list(io.node.children.values()):
        if edge.perm & (Perm.WRITE | Perm.WRITE_UNCHANGED):
            try:
                await edge.co_flush()
            except OSError as error:
                first = first or error
    if first is not None:
        raise first
