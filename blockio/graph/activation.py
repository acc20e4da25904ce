"""Inactive nodes: images that are, for a while, another process's to write (migration with shared storage).

QEMU's bdrv_inactivate and bdrv_activate (in older releases bdrv_invalidate_cache). An inactive node has written back
everything, holds no permission to write, and does not trust what it has in memory. Nodes go to sleep from the top down
and wake up from the bottom up:

* no node is inactive while a node above it is active (a node that several others use goes with the last of them);
* a node's users have given their permissions up before ``flags.inactive`` is set, and take them back only after it
  was cleared;
* either all that was asked for happened or nothing: what fails is undone before it is raised.
"""

from __future__ import annotations

import asyncio
import errno
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING

from blockio.aio.context import finish
from blockio.errors import BlockError, NoMedium
from blockio.graph import drain
from blockio.graph.perms import Transaction, cumulative, refresh
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = ["activate_node", "inactivate_node"]


async def inactivate_node(node: BlockNode) -> None:
    """Put *node* to sleep, and below it whatever no active node uses. Does nothing where it sleeps already.

    Drained meanwhile. Raises what a user of the nodes says (EPERM: it needs to write), NoMedium for a node whose driver
    is gone, any error of writing back, and BlockError (EBUSY) where a node above *node* is active; everything is active
    then. Cancelled: it goes on to its end first. RuntimeError inside a request.
    """
    if node.flags.inactive:
        return
    above = next((edge.parent_node for edge in node.parents if _is_active(edge.parent_node)), None)
    if above is not None:
        raise BlockError(
            f"Node '{node.node_name}' is used by the active node '{above.node_name}'; inactivate that one", errno.EBUSY
        )
    async with drain.drained(node):
        await finish(asyncio.ensure_future(_inactivate(node)))


async def activate_node(node: BlockNode) -> None:
    """Wake *node* and everything below it up. Does nothing where all of it is awake.

    Drained meanwhile. Raises PermissionConflict or ImageLocked where somebody else uses the image, NoMedium, and what a
    driver that reads its metadata anew says; what slept sleeps on then. Cancelled: it goes on to its end first.
    """
    async with drain.drained(node):
        await finish(asyncio.ensure_future(_activate(node)))


async def _inactivate(top: BlockNode) -> None:
    asleep: list[BlockNode] = []
    try:
        queue = [top]
        while queue:
            node = queue.pop(0)
            # A node that is still in use by another comes again with the last of its users.
            if node.flags.inactive or any(_is_active(edge.parent_node) for edge in node.parents):
                continue
            asleep.append(node)
            await _put_to_sleep(node)
            queue += [edge.node for edge in node.children.values()]
    except BaseException as error:
        for node in reversed(asleep):
            try:
                await _wake(node)
            except OSError as worse:
                error.add_note(f"and node '{node.node_name}' could not be woken again: {worse}")
        raise


async def _put_to_sleep(node: BlockNode) -> None:
    driver = node.driver
    if driver is None:
        raise NoMedium
    if not node.flags.read_only:
        await node.path.co_flush()
    async with AsyncExitStack() as sections:
        # Users of a node further down are not above the node that was asked for, so nobody has quieted them yet.
        await sections.enter_async_context(drain.drained(node))
        await driver.inactivate()
        for edge in list(node.parents):
            edge.parent.inactivate(edge)
        held, _ = cumulative(node)
        if held & (Perm.WRITE | Perm.WRITE_UNCHANGED):
            user = next(edge for edge in node.parents if edge.perm & (Perm.WRITE | Perm.WRITE_UNCHANGED))
            raise BlockError(f"Node '{node.node_name}' is in use by {user.parent.parent_desc()}", errno.EPERM)
        node.flags = node.flags.with_(inactive=True)
        with (
            suppress(OSError),
            Transaction() as tran,
        ):  # needs become fewer: what cannot be let go of now is let go later
            refresh(tran, [node])
        node.path.refresh_lanes()


async def _activate(top: BlockNode) -> None:
    order: list[BlockNode] = []
    _bottom_up(top, order)
    awake: list[BlockNode] = []
    try:
        for node in order:
            if node.flags.inactive:
                awake.append(node)
            await _wake(node)
    except BaseException as error:
        for node in reversed(awake):
            try:
                if not node.flags.inactive:
                    await _put_to_sleep(node)
            except OSError as worse:
                error.add_note(f"and node '{node.node_name}' could not be put to sleep again: {worse}")
        raise


async def _wake(node: BlockNode) -> None:
    """*node*, whose children are awake, and its users. Where it raises, the node sleeps."""
    driver = node.driver
    if driver is None:
        raise NoMedium
    told = []
    was_asleep = node.flags.inactive
    try:
        if was_asleep:
            node.flags = node.flags.with_(inactive=False)
            with Transaction() as tran:
                refresh(tran, [node])
            await driver.invalidate_cache()
            length = driver.length
            await node.path.co_getlength()
            if driver.length != length:
                node.length_changed()
        for edge in list(node.parents):
            edge.parent.activate(edge)
            told.append(edge)
    except BaseException:
        if was_asleep:
            for edge in reversed(told):
                edge.parent.inactivate(edge)
            node.flags = node.flags.with_(inactive=True)
            with suppress(OSError), Transaction() as tran:
                refresh(tran, [node])
        raise
    finally:
        node.path.refresh_lanes()


def _bottom_up(top: BlockNode, order: list[BlockNode]) -> None:
    """*top* and all below it, each after its children; with a stack, because chains may be long."""
    seen = {top}
    stack = [(top, iter(list(top.children.values())))]
    while stack:
        node, edges = stack[-1]
        for edge in edges:
            if edge.node not in seen:
                seen.add(edge.node)
                stack.append((edge.node, iter(list(edge.node.children.values()))))
                break
        else:
            order.append(node)
            stack.pop()


def _is_active(node: BlockNode | None) -> bool:
    return node is not None and not node.flags.inactive
