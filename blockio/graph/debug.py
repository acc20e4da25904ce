"""Breakpoints: requests that wait where a person wants them to (QEMU's bdrv_debug_breakpoint and its kin).

They are asked of the first node with ``DebugDriver`` on the way down the primary children. UnsupportedFeature (ENOTSUP)
where there is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.driver.debug import DebugDriver
from blockio.errors import UnsupportedFeature

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = ["debug_breakpoint", "debug_is_suspended", "debug_remove_breakpoint", "debug_resume", "debug_wait"]


def _hooks(node: BlockNode) -> DebugDriver:
    here: BlockNode | None = node
    while here is not None:
        if isinstance(here.driver, DebugDriver):
            return here.driver
        edge = here.primary
        here = None if edge is None else edge.node
    raise UnsupportedFeature


def debug_breakpoint(node: BlockNode, event: str, tag: str) -> None:
    """Suspend the next request that *event* happens to, as *tag*. BlockError ENOENT for an event there is not."""
    _hooks(node).debug_breakpoint(event, tag)


def debug_remove_breakpoint(node: BlockNode, tag: str) -> None:
    """Forget the breakpoints called *tag* (BlockError ENOENT: there are none), let requests go on that have it."""
    _hooks(node).debug_remove_breakpoint(tag)


def debug_resume(node: BlockNode, tag: str) -> None:
    """Let one request go on that is suspended as *tag*. BlockError ENOENT where none is."""
    _hooks(node).debug_resume(tag)


def debug_is_suspended(node: BlockNode, tag: str) -> bool:
    """Whether a request is suspended as *tag*; False too where nothing can suspend one."""
    try:
        return _hooks(node).debug_is_suspended(tag)
    except UnsupportedFeature:
        return False


async def debug_wait(node: BlockNode, tag: str) -> None:
    """Return when a request is suspended as *tag*."""
    await _hooks(node).co_debug_wait(tag)
