"""Memory for requests: aligned for what is below, and registered with who moves the bytes.

Stands on the system *buffers* of the reference document.
"""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from blockio.backend.core import BackendCore
from blockio.buffers import aligned_buffer

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.graph.node import BlockNode

__all__ = ["Buffers"]


class Buffers(BackendCore):
    """``blockalign`` and its careful twin, ``register_buf`` and ``unregister_buf``.

    Invariant: ``_registered`` maps the ``id`` of each registered buffer to the view that drivers know it by, and to the
    nodes that were told of it.
    """

    _registered: dict[int, tuple[Buffer, memoryview, list[BlockNode]]] | None = None

    def blockalign(self, nbytes: int) -> memoryview:
        """*nbytes* zero bytes, placed as the root likes its memory best (a page while empty). MemoryError if not."""
        alignment = mmap.PAGESIZE if self._root is None else self._root.limits.opt_mem_alignment
        return aligned_buffer(nbytes, max(1, min(alignment, mmap.PAGESIZE)))

    def try_blockalign(self, nbytes: int) -> memoryview | None:
        """As ``blockalign``, but None where there is no memory for it."""
        try:
            return self.blockalign(nbytes)
        except (MemoryError, OSError, OverflowError):  # mmap says it with any of them
            return None

    def register_buf(self, memory: Buffer) -> bool:
        """Many requests will use *memory*, whole or in parts: let the nodes below the root know.

        True where at least one of them gains by that: io_uring then keeps it pinned (it counts against
        RLIMIT_MEMLOCK). False changes nothing. Pair with ``unregister_buf``. ValueError for what is registered already.
        """
        self._must_be_home("register_buf", "await blk.context.run(...) something that calls it")
        registered = self._registered = self._registered or {}
        if id(memory) in registered:
            raise ValueError("this memory is registered already; unregister_buf() first")
        view = memoryview(memory).cast("B")
        nodes = self._nodes()
        gained = False
        for node in nodes:
            gained = (node.driver is not None and node.driver.register_buf(view)) or gained
        registered[id(memory)] = (memory, view, nodes)
        return gained

    def unregister_buf(self, memory: Buffer) -> None:
        """No request will use *memory* any more, and none does. ValueError where it was not registered."""
        self._must_be_home("unregister_buf", "await blk.context.run(...) something that calls it")
        known = (self._registered or {}).pop(id(memory), None)
        if known is None:
            raise ValueError("this memory was never registered, or is no longer")
        _, view, nodes = known
        for node in nodes:
            if node.driver is not None:
                node.driver.unregister_buf(view)

    def _nodes(self) -> list[BlockNode]:
        """The root and all below it, each once."""
        found: dict[BlockNode, None] = {}
        queue = [] if self.bs is None else [self.bs]
        while queue:
            node = queue.pop()
            if node not in found:
                found[node] = None
                queue += [edge.node for edge in node.children.values()]
        return list(found)
