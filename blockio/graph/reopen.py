"""Reopening: the same nodes with other flags, all of them or none.

QEMU's bdrv_reopen_multiple: the subtree that was opened together changes together. Everybody prepares, while drained
and flushed; then permissions are recomputed with the new flags; then everybody commits. The first who cannot makes
all go back, and nothing has changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from blockio.aio.context import finish
from blockio.driver.base import BlockDriver, DriverKind, ReopenState
from blockio.driver.options import convert_options, flatten, nest
from blockio.errors import OptionError, ReadOnly, message_of
from blockio.graph import drain
from blockio.graph.describe import filename_of
from blockio.graph.flags import inherit
from blockio.graph.node import must_be_open
from blockio.graph.perms import Transaction, refresh

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode
    from blockio.types import OpenFlags

__all__ = ["changed_options", "reopen"]


async def reopen(node: BlockNode, *, options: Mapping[str, Any] | None = None, **changes: bool) -> None:
    """Change *node*'s ``OpenFlags`` to what *changes* say (``read_only=True``), and its children's as they follow.

    *options* are options of *node*'s driver that become others; see ``changed_options`` for what is refused.
    Drained meanwhile; a node that becomes read-only is flushed first. Raises what stands in the way (ReadOnly where
    somebody needs to write, what the driver says, ImageLocked), and then, as after a cancellation, nothing has
    changed; a cancellation that comes when all is certain and drivers finish their part goes on after that. A backing
    file stays read-only.
    """
    must_be_open(node)
    plan = _plan(node, node.flags.with_(**changes))
    own, typed = changed_options(node, options or {})
    plan = [(here, flags) for here, flags in plan if flags != here.flags or (here is node and own != node.options)]
    if not plan:
        return
    async with AsyncExitStack() as sections:
        for here, _ in plan:
            await sections.enter_async_context(drain.drained(here))
        for here, flags in plan:
            if flags.read_only and not here.flags.read_only:
                await here.path.co_flush()
        prepared: list[tuple[BlockNode, ReopenState]] = []
        try:
            for here, flags in plan:
                state = ReopenState(flags, typed if here is node else here.typed_options)
                assert here.driver is not None
                # To its end even if cancelled: a half-prepared driver can neither commit nor abort.
                await finish(asyncio.ensure_future(_prepare(here, state, prepared)))
            _carry_out(prepared)
        except BaseException:
            for here, state in reversed(prepared):
                if here.driver is not None:
                    here.driver.reopen_abort(state)
            await _finished(prepared)
            raise
        node.options, node.typed_options = own, typed
        node.filename = filename_of(node)
        for here, _ in plan:
            here.limits_changed()
            here.path.refresh_lanes()
        await _finished(prepared)


def changed_options(node: BlockNode, given: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
    """*node*'s options with *given* among them, as they were written and as the driver's ``Options``.

    OptionError for an option that is not the driver's or that it cannot change while it is open, unless it stays what
    it is, and for a value that is none.
    """
    cls = node.driver_class
    options = nest(cls.join_options(flatten(node.options), flatten(given)))
    for name in nest(flatten(given)):
        if name not in cls.Options.__struct_encode_fields__:
            raise OptionError(f"Cannot change the option '{name}'")
    typed = convert_options(cls.Options, options, cls.name)
    for field, name in zip(cls.Options.__struct_fields__, cls.Options.__struct_encode_fields__, strict=True):
        if name in cls.reopen_options or getattr(typed, field) == getattr(node.typed_options, field):
            continue
        raise OptionError(f"Cannot change the option '{name}'")
    return options, typed


async def _finished(prepared: list[tuple[BlockNode, ReopenState]]) -> None:
    """The outcome is certain: let the drivers do what needs I/O, those below first, and to the end if cancelled."""

    waiting = [node for node, _ in reversed(prepared) if node.driver_class.reopen_done is not BlockDriver.reopen_done]

    async def tell() -> None:
        for node in waiting:
            if node.driver is not None:
                try:
                    await node.driver.reopen_done()
                except OSError as error:
                    node.report(message_of(error))

    if waiting:
        await finish(asyncio.ensure_future(tell()))


async def _prepare(node: BlockNode, state: ReopenState, prepared: list[tuple[BlockNode, ReopenState]]) -> None:
    assert node.driver is not None
    await node.driver.reopen_prepare(state)
    prepared.append((node, state))


def _carry_out(prepared: list[tuple[BlockNode, ReopenState]]) -> None:
    """Flags, permissions, drivers: in one go, without an await. Raises with everything as it was but the drivers."""
    with Transaction() as tran:
        for node, state in prepared:
            old = node.flags

            def undo(node: BlockNode = node, old: OpenFlags = old) -> None:
                node.flags = old

            node.flags = state.flags
            tran.add(abort=undo)
        try:
            refresh(tran, [node for node, _ in prepared])
        except ReadOnly as error:
            top = prepared[0][0]
            raise ReadOnly(f"Read-only block node '{top.node_name}' cannot support read-write users") from error
        # Before the permissions are committed: what a driver lets go of then belongs to its new descriptor.
        for node, state in prepared:
            assert node.driver is not None
            node.driver.reopen_commit(state)


def _plan(node: BlockNode, flags: OpenFlags) -> list[tuple[BlockNode, OpenFlags]]:
    """*node* and what was opened for it, parents first, with what their flags become."""
    if flags.force_share and not flags.read_only:
        raise OptionError("force-share=on can only be used with read-only images")
    plan = [(node, flags)]
    is_format = node.driver_class.kind is DriverKind.FORMAT
    for edge in node.children.values():
        if not edge.inherits:
            continue
        child = edge.node
        before = inherit(node.flags, edge.role, parent_is_format=is_format)
        after = inherit(flags, edge.role, parent_is_format=is_format)
        changed = {
            name: getattr(after, name)
            for name in before.__struct_fields__
            if getattr(before, name) != getattr(after, name) and name not in child.explicit_flags
        }
        must_be_open(child)
        plan += _plan(child, child.flags.with_(**changed))
    return plan
