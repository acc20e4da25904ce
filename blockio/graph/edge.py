"""Edges: how a parent holds a node (QEMU's BdrvChild)."""

from __future__ import annotations

import errno
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from blockio.aio.flight import no_flight
from blockio.driver.debug import DebugDriver
from blockio.errors import BlockError, NoMedium, UnsupportedFeature
from blockio.types import Capability, Perm, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.hauling import Haul
    from blockio.driver.child import Child
    from blockio.driver.debug import DebugListener
    from blockio.graph.node import BlockNode
    from blockio.graph.path import ChildParent
    from blockio.types import BlockLimits

__all__ = ["Edge"]

_WRITES = Perm.WRITE | Perm.WRITE_UNCHANGED


class Edge:
    """One parent's hold on one node; the one implementation of ``Child``.

    The request methods are attributes: the node's own ``path`` methods, bound when the edge is attached and whenever
    it leads elsewhere or may do something else, so that a request pays nothing for passing through. A method that
    the edge's permissions do not allow is bound to a refusal: that costs the hot path nothing either, and no bytes
    are written by a parent that did not ask for WRITE.

    Invariant: while ``attached``, the edge is in ``node.parents`` (once) and holds one reference on ``node``; if the
    parent is a node, it is ``parent.children[name]``. ``perm`` and ``shared`` are what the last successful
    permission transaction granted. See ``graph.drain`` for ``quiesced_parent``.
    """

    __slots__ = (
        "attached",
        "co_block_status",
        "co_flush",
        "co_get_info",
        "co_getlength",
        "co_pdiscard",
        "co_preadv",
        "co_pwrite_zeroes",
        "co_pwritev",
        "co_truncate",
        "debug_event",
        "frozen",
        "inherits",
        "name",
        "named_by_image",
        "node",
        "parent",
        "parent_node",
        "path",
        "perm",
        "quiesced_parent",
        "role",
        "shared",
        "start_preadv",
        "start_pwritev",
        "try_preadv",
        "try_pwritev",
    )

    def __init__(
        self,
        parent: ChildParent,
        node: BlockNode,
        name: str,
        role: Role,
        perm: Perm,
        shared: Perm,
        *,
        parent_node: BlockNode | None = None,
    ) -> None:
        """Not attached yet; ``graph.mutate.attach_child`` makes edges that are.

        *parent_node* is *parent* where that is a node.
        """
        self.parent = parent
        self.parent_node = parent_node
        self.node = node
        self.name = name
        self.role = role
        self.perm = perm
        self.shared = shared
        self.attached = False
        self.quiesced_parent = False
        self.frozen = False
        """The edge must keep leading where it leads; see ``graph.frozen``."""
        self.inherits = False
        """The child was opened for this parent and follows it when it is reopened."""
        self.named_by_image = False
        """The image names this child; whoever opens the image again gets it without saying so."""
        self.bind()

    def __repr__(self) -> str:
        return f"<Edge {self.parent.parent_desc()} -> {self.name} -> '{self.node.node_name}'>"

    def describe(self) -> str:
        """For messages: ``node 'n0' (uses node 'f0' as 'file' child)``."""
        return f"{self.parent.parent_desc()} (uses node '{self.node.node_name}' as '{self.name}' child)"

    # -- facts

    @property
    def node_name(self) -> str:
        """The child node's name."""
        return self.node.node_name

    @property
    def filename(self) -> str:
        """The child node's name for people."""
        return self.node.filename

    @property
    def length(self) -> int:
        """The child's length in bytes as last known; 0 when its driver is gone."""
        driver = self.node.driver
        return 0 if driver is None else driver.length

    @property
    def limits(self) -> BlockLimits:
        """What the child node takes in one request."""
        return self.node.path.limits

    @property
    def read_only(self) -> bool:
        """Whether the child node is read-only."""
        return self.node.flags.read_only

    @property
    def driver_name(self) -> str:
        """The child node's driver."""
        return self.node.driver_class.name

    @property
    def can_compress(self) -> bool:
        """Whether the child node's driver takes compressed writes."""
        driver = self.node.driver
        return driver is not None and driver.capabilities.write_compressed is not Capability.NONE

    def has_zero_init(self) -> bool:
        """Whether the child node, if it is new, reads as zeroes."""
        driver = self.node.driver
        return driver is not None and driver.has_zero_init()

    # -- requests

    def bind(self) -> None:
        """Take over the node's request methods; to be called when ``node``, ``perm`` or ``attached`` changed."""
        path = self.node.counted or self.node.path
        self.path = path if self.attached else None
        """What the methods are bound to; None while they are not."""
        self.co_preadv = path.co_preadv
        self.co_pwritev = path.co_pwritev
        self.co_pwrite_zeroes = path.co_pwrite_zeroes
        self.co_pdiscard = path.co_pdiscard
        self.co_flush = path.co_flush
        self.co_truncate = path.co_truncate
        self.co_getlength = path.co_getlength
        self.co_block_status = path.co_block_status
        self.co_get_info = path.co_get_info
        self.try_preadv = path.try_preadv
        self.try_pwritev = path.try_pwritev
        self.start_preadv = path.start_preadv
        self.start_pwritev = path.start_pwritev
        self.debug_event: DebugListener | None = None
        if not self.attached:
            for name in _REQUESTS:
                setattr(self, name, self._gone)
            self.try_preadv = self.try_pwritev = _no_fast_lane
            self.start_preadv = self.start_pwritev = no_flight
            return
        driver = self.node.driver
        if isinstance(driver, DebugDriver):
            self.debug_event = driver.co_debug_event
        if not self.perm & _WRITES:
            for name in _WRITE_REQUESTS:
                setattr(self, name, self._may_not_write)
            self.try_pwritev = _no_fast_lane
            self.start_pwritev = no_flight
        if not self.perm & Perm.RESIZE:
            self.co_truncate = self._may_not_resize

    async def co_copy_range_to(
        self, offset: int, target: Child, target_offset: int, nbytes: int, haul: Haul | None = None
    ) -> None:
        """Copy to another edge inside the storage, or by *haul*.

        UnsupportedFeature where that cannot be, or *target* is not one of this graph's.
        """
        if not isinstance(target, Edge):
            raise UnsupportedFeature
        if not self.attached:
            await self._gone()
        if not target.perm & _WRITES:
            await target._may_not_write()
        await self.node.path.co_copy_range_to(offset, target, target_offset, nbytes, haul)

    async def _gone(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise NoMedium

    async def _may_not_write(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise BlockError(f"{self.describe()} without permission 'write'", errno.EPERM)

    def _may_not_resize(self, *_args: Any, **_kwargs: Any) -> Coroutine[Any, Any, NoReturn]:
        return self._no_resize()

    async def _no_resize(self) -> NoReturn:
        raise BlockError(f"{self.describe()} without permission 'resize'", errno.EPERM)


def _no_fast_lane(offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
    return False


_WRITE_REQUESTS = ("co_pwritev", "co_pwrite_zeroes", "co_pdiscard")
_REQUESTS = (
    *_WRITE_REQUESTS,
    "co_preadv",
    "co_flush",
    "co_truncate",
    "co_getlength",
    "co_block_status",
    "co_get_info",
)
