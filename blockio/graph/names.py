"""The process-wide table of nodes and the rules of their names.

The table holds nodes weakly: it finds them but does not keep them alive. One short lock guards it, because nodes
of different contexts live in different threads; it is never held across an await or a call into a driver.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from blockio.errors import OptionError

if TYPE_CHECKING:
    from blockio.graph.node import BlockNode

__all__ = [
    "all_nodes",
    "claim",
    "find_node",
    "monitor_disown",
    "monitor_own",
    "monitor_owned",
    "name_guards",
    "release",
]

MAX_NAME_BYTES: Final = 31
"""QEMU keeps a node name in 32 bytes, the last of them zero."""

name_guards: Final[list[Callable[[str], None]]] = []
"""Called with each name a caller gives; one raises OptionError where its own things have that name already."""

_lock: Final = threading.Lock()
_nodes: Final[weakref.WeakValueDictionary[str, BlockNode]] = weakref.WeakValueDictionary()
_owned: Final[dict[str, BlockNode]] = {}
"""The nodes that the monitor holds, in the order it got them."""
_counter: Final = itertools.count()


def find_node(name: str) -> BlockNode | None:
    """The node called *name*, from any thread."""
    with _lock:
        return _nodes.get(name)


def all_nodes() -> list[BlockNode]:
    """Every node that is not closed, in the order they were made, from any thread."""
    with _lock:
        return list(_nodes.values())


def claim(node: BlockNode, name: str | None) -> str:
    """Enter *node* under *name*, or under a generated ``#block123``, and return the name.

    OptionError where *name* is malformed or taken.
    """
    if name is None:
        with _lock:
            # A generated name begins with ``#``, which no caller's may; so the counter alone makes it unique.
            generated = f"#block{next(_counter):03d}"
            _nodes[generated] = node
            return generated
    _check(name)
    for guard in name_guards:
        guard(name)
    with _lock:
        if name in _nodes:
            raise OptionError(f"Duplicate nodes with node-name='{name}'")
        _nodes[name] = node
        return name


def release(node: BlockNode) -> None:
    """Take *node* out of the table; nothing happens where it is not in it."""
    with _lock:
        if _nodes.get(node.node_name) is node:
            del _nodes[node.node_name]


def monitor_own(node: BlockNode) -> None:
    """Let the monitor hold *node*, with a reference of its own, until ``monitor_disown`` (``blockdev-add``).

    ValueError where it does already, RuntimeError for a closed node.
    """
    with _lock:
        if node.node_name in _owned:
            raise ValueError(f"the monitor holds node '{node.node_name}' already")
        node.ref()
        _owned[node.node_name] = node


async def monitor_disown(node: BlockNode) -> None:
    """Give the monitor's reference on *node* back, which may close it. ValueError where it holds none."""
    with _lock:
        if _owned.get(node.node_name) is not node:
            raise ValueError(f"the monitor does not hold node '{node.node_name}'; monitor_own() lets it")
        del _owned[node.node_name]
    await node.unref()


def monitor_owned() -> list[BlockNode]:
    """The nodes that the monitor holds, from any thread (``bdrv_next_monitor_owned``)."""
    with _lock:
        return list(_owned.values())


def _check(name: str) -> None:
    """QEMU's id_wellformed: a letter, then letters, digits, ``-``, ``.`` and ``_``; ASCII only."""
    rest = name[1:].replace("-", "").replace(".", "").replace("_", "")
    if not (name.isascii() and name[:1].isalpha() and (not rest or rest.isalnum())):
        raise OptionError(f"Invalid node-name: '{name}'")
    if len(name) > MAX_NAME_BYTES:
        raise OptionError("Node name too long")
