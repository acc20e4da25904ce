"""Giving all images of the process away, and taking them back (QEMU's bdrv_inactivate_all, bdrv_invalidate_cache_all).

The last step of a migration on its source and the first one on its target; see ``migration.py`` for one backend.
"""

from __future__ import annotations

import contextlib

from blockio.backend.iteration import top_nodes
from blockio.graph.activation import activate_node, inactivate_node

__all__ = ["activate_all", "inactivate_all"]


async def inactivate_all() -> None:
    """Inactivate every node of the process: all is written back, no permission is held, others may have the images.

    Raises as ``blk.inactivate_root``; everything is active again then.
    """
    try:
        async with contextlib.aclosing(top_nodes()) as nodes:
            async for node in nodes:
                if not any(edge.parent_node for edge in node.parents):  # else it goes with what is above it
                    await node.context.run(inactivate_node(node))
    except BaseException as error:
        try:
            await activate_all()
        except OSError as worse:
            error.add_note(f"and not everything could be activated again: {worse}")
        raise


async def activate_all() -> None:
    """Activate every node of the process. Raises as ``blk.invalidate_cache``, at the first that stays inactive."""
    async with contextlib.aclosing(top_nodes()) as nodes:
        async for node in nodes:
            await node.context.run(activate_node(node))
