"""Nodes: one driver, its children and its users (QEMU's BlockDriverState)."""

from __future__ import annotations

import asyncio
import errno
import warnings
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Any

from blockio.aio.context import AioContext, finish
from blockio.bitmaps.owner import DirtyBitmaps
from blockio.driver.base import BlockDriver, DriverKind, FilterDriver
from blockio.errors import BlockError, ReadOnly
from blockio.graph import drain, names
from blockio.graph.bitmaps import BitmapOwner
from blockio.graph.events import ImageCorrupted, Listener, NodeEvent, Reported, Warned, watchers
from blockio.graph.names import all_nodes, find_node
from blockio.graph.perms import Transaction, refresh, release_edge
from blockio.types import DetectZeroes, Limits, OpenFlags, Role

if TYPE_CHECKING:
    from blockio.driver.base import ChildOpener
    from blockio.graph.blockers import OpType
    from blockio.graph.edge import Edge
    from blockio.graph.path import EdgePath, PathFactory, RequestPath

__all__ = ["BlockNode", "NodeState", "all_nodes", "find_node"]


class NodeState(Enum):
    """A node's life; it only goes forward."""

    OPENING = "opening"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class BlockNode(BitmapOwner):
    """One node of the graph. It is the ``DriverHost`` of its driver and a ``ChildParent`` of the nodes below it.

    Made by ``graph.open.open_node``; lives while somebody holds a reference (``ref``, ``unref``; every edge holds
    one) and closes with the last. Everything is touched only in the thread of ``context``.

    Invariants: ``driver`` is None exactly from a fatal corruption or from the beginning of the end on: then all I/O
    is NoMedium. ``children[edge.name] is edge`` and ``edge.parent is self``; ``edge in parents`` and ``edge.node is
    self``. See ``graph.drain`` for ``quiesce_counter``.
    """

    def __init__(
        self,
        cls: type[BlockDriver],
        *,
        path_factory: PathFactory,
        name: str | None = None,
        filename: str = "",
        flags: OpenFlags | None = None,
        trust: Limits | None = None,
        options: dict[str, Any] | None = None,
        explicit_flags: frozenset[str] = frozenset(),
        detect_zeroes: DetectZeroes = DetectZeroes.OFF,
        probed: bool = False,
    ) -> None:
        """A node in the running loop's context, with one reference and nothing opened. OptionError for the name."""
        self.state = NodeState.CLOSED  # until the name is ours, there is nothing to close
        self.context = AioContext.current()
        self.node_name = names.claim(self, name)
        self.filename = filename
        self.flags = flags or OpenFlags()
        self.explicit_flags = explicit_flags
        """The flags its own options set; the others follow the parent it was opened for."""
        self.trust = trust or Limits()
        self.options: dict[str, Any] = options or {}
        """What the driver was opened with, as given: nested, without children and what is common to all nodes."""
        self.typed_options: Any = None
        """The same as the driver's ``Options``."""
        self.detect_zeroes = detect_zeroes
        self.copy_on_read = 0
        """How many users asked for copy-on-read."""
        self.probed = probed
        self.refcnt = 1
        self.children: dict[str, Edge] = {}
        self.parents: list[Edge] = []
        self.identities: frozenset[object] = frozenset()
        """What storage the node stands on, to find chains that bite their own tail; see ``graph.open``."""
        self.opened_as: str | None = None
        """The prefixed name (``nbd:…``) that a protocol node was opened by, where it was."""
        self.listeners: list[Listener] = []
        self.quiesce_counter = drain.drain_all_sections()
        self.settling: asyncio.Task[None] | None = None
        self.aio_notifiers: list[tuple[Callable[[AioContext], object], Callable[[], object]]] = []
        """Who is told when the node moves to another context; see ``graph.move``."""
        self._driver_quiesced = False
        self._corruption_signalled = False
        self.driver_class = cls
        self.driver: BlockDriver | None = cls(self)
        self._closing_driver: BlockDriver | None = None
        self._opened = False
        self.path: RequestPath = path_factory(self)
        self.dirty_bitmaps = DirtyBitmaps(self.path.refresh_lanes)
        self.counted: EdgePath | None = None
        """What edges bind in place of ``path``: the same, counted by somebody who wants to know."""
        self.op_blockers: dict[OpType, list[object]] = {}
        """Why which operations are refused; see ``graph.blockers``."""
        self.state = NodeState.OPENING

    def __repr__(self) -> str:
        return f"<BlockNode '{self.node_name}' {self.driver_class.name} {self.state.value}>"

    def __del__(self) -> None:
        if self.state in (NodeState.OPENING, NodeState.OPEN) and not self.parents:
            warnings.warn(f"{self!r} was never closed (unref)", ResourceWarning, source=self, stacklevel=2)

    # -- facts

    @property
    def name(self) -> str:
        """The node's name in the graph."""
        return self.node_name

    @property
    def length(self) -> int:
        """The node's length in bytes; 0 when the driver is gone."""
        return 0 if self.driver is None else self.driver.length

    @property
    def in_flight(self) -> int:
        """How many requests are under way in this node."""
        return self.path.in_flight

    @property
    def read_only(self) -> bool:
        """Whether the node may not be written."""
        return self.flags.read_only

    @property
    def primary(self) -> Edge | None:
        """The child that stores this node's data or metadata (QEMU's bdrv_primary_child)."""
        return next((edge for edge in self.children.values() if edge.role & Role.PRIMARY), None)

    @property
    def backing(self) -> Edge | None:
        """The COW child."""
        return next((edge for edge in self.children.values() if edge.role & Role.COW), None)

    @property
    def layer_below(self) -> Edge | None:
        """What shows where this node holds nothing itself: a filter's child, a format's backing file."""
        return self.primary if self.driver_class.kind is DriverKind.FILTER else self.backing

    def is_below(self, other: BlockNode) -> bool:
        """Whether this node is *other* or one of its descendants."""
        seen: set[BlockNode] = set()
        queue = [other]
        while queue:
            here = queue.pop()
            if here is self:
                return True
            if here not in seen:
                seen.add(here)
                queue += [edge.node for edge in here.children.values()]
        return False

    # -- life

    def ref(self) -> BlockNode:
        """Hold the node; pair with ``unref``. RuntimeError once it is closing."""
        if self.refcnt == 0:
            raise RuntimeError(f"node '{self.node_name}' is closed")
        self.refcnt += 1
        return self

    async def unref(self) -> None:
        """Give one reference back; the last one closes the node: drained, flushed, driver closed, children released.

        The first error of closing is raised (the others are notes on it), with everything released nevertheless.
        Cancelled: closing goes on to its end, then the cancellation does. RuntimeError inside one of the node's
        own requests.
        """
        if self.refcnt <= 0:
            raise RuntimeError(f"node '{self.node_name}' is closed")
        if self.refcnt == 1:
            drain.refuse_self_wait(self)
        self.refcnt -= 1
        if self.refcnt == 0:
            await finish(asyncio.ensure_future(self._close()))

    async def open_driver(self, options: Any, opener: ChildOpener) -> None:
        """Open the driver; whoever calls this calls ``unref`` when it raises or is cancelled."""
        driver = self.driver
        assert driver is not None
        self.typed_options = options
        await driver.open(options, opener)
        self._opened = True
        self.state = NodeState.OPEN
        self.path.refresh_limits()
        self.path.refresh_lanes()

    async def _close(self) -> None:
        was_open = self._opened
        self.state = NodeState.CLOSING
        errors: list[BaseException] = []
        driver = self._closing_driver or self.driver
        alive = self.driver is not None
        try:
            await _attempt(errors, drain.drained_begin(self))
            if was_open and driver is not None:
                if alive and not self.flags.read_only:
                    await _attempt(errors, self.path.co_flush())
                await _attempt(errors, driver.close())
            self.driver = None
            self.path.refresh_lanes()
            for edge in reversed(list(self.children.values())):
                release_edge(edge)
                await _attempt(errors, edge.node.unref())
        finally:
            names.release(self)
            self.state = NodeState.CLOSED
        if errors:
            first, *rest = errors
            for error in rest:
                first.add_note(f"and then: {error}")
            raise first

    # -- DriverHost

    def fall_back_read_only(self, message: str) -> None:
        """See ``DriverHost``."""
        if self.flags.read_only:
            return
        if not self.flags.auto_read_only:
            raise ReadOnly(message, errno.EACCES)
        self.flags = self.flags.with_(read_only=True)

    def length_changed(self) -> None:
        """The driver's length is a new one: tell the parents. The bitmaps follow."""
        if self.driver is not None:
            self.dirty_bitmaps.truncate(self.length)
        for edge in list(self.parents):
            edge.parent.resized(edge)

    def media_changed(self, load: bool) -> None:
        """The driver's medium was put in, or is gone: tell the parents (QEMU's bdrv_parent_cb_change_media)."""
        for edge in list(self.parents):
            edge.parent.change_media(edge, load)

    def limits_changed(self) -> None:
        """The driver's limits, a child's, or the set of children changed: merge anew, here and above."""
        queue = [self]
        while queue:
            node = queue.pop()
            if node.state is NodeState.OPEN:
                node.path.refresh_limits()
                queue += [edge.parent_node for edge in node.parents if edge.parent_node is not None]

    def permissions_changed(self) -> None:
        """The driver needs less of its children. What they cannot give back now they give back when they close."""
        with suppress(OSError), Transaction() as tran:
            refresh(tran, [self])

    def report(self, message: str) -> None:
        """One line for the person at the tool, as an event."""
        self.emit(Reported(self.node_name, message))

    def warn(self, message: str, hint: str = "") -> None:
        """Something that whoever uses the image should know, as an event."""
        self.emit(Warned(self.node_name, message, hint))

    def corrupted(self, message: str, *, offset: int = -1, size: int = -1, fatal: bool = True) -> None:
        """See ``DriverHost``. A second corruption that is not fatal is not reported again."""
        if self._corruption_signalled and not fatal:
            return
        self._corruption_signalled = True
        if fatal and self.driver is not None:
            self._closing_driver, self.driver = self.driver, None
            self.path.refresh_lanes()
        self.emit(ImageCorrupted(self.node_name, message, offset, size, fatal))

    def emit(self, event: NodeEvent) -> None:
        """Deliver *event* to this node's listeners."""
        for listener in list(self.listeners):
            listener(event)
        for watcher in watchers:
            watcher(self, event)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* with every event from now on; returns what stops that."""
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    # -- AioContext notifiers

    def add_aio_context_notifier(self, attached: Callable[[AioContext], object], detach: Callable[[], object]) -> None:
        """When the node moves: call *detach* before, in the old context, and *attached* with the new one, after."""
        self.aio_notifiers.append((attached, detach))

    def remove_aio_context_notifier(
        self, attached: Callable[[AioContext], object], detach: Callable[[], object]
    ) -> None:
        """Call them no more. ValueError where the pair was never added, or was removed."""
        try:
            self.aio_notifiers.remove((attached, detach))
        except ValueError:
            raise ValueError(f"node '{self.node_name}' has no such AioContext notifier") from None

    # -- drain

    def kick(self) -> None:
        """Something a drain may wait for has happened: a request count reached zero, or a poll changed its mind."""
        if drain._waiters:
            drain.kick(self.context)

    def quiesce(self) -> None:
        """Count one more section; with the first one the parents and the driver become quiet. See ``graph.drain``."""
        # A list and not recursion through ``drained_begin``: chains may be longer than Python likes to recurse.
        queue = [self]
        while queue:
            node = queue.pop()
            node.quiesce_counter += 1
            if node.quiesce_counter > 1:
                continue
            for edge in list(node.parents):
                if edge.quiesced_parent:
                    continue
                edge.quiesced_parent = True
                if edge.parent_node is not None:
                    queue.append(edge.parent_node)
                else:
                    edge.parent.drained_begin(edge)
            node._settle()

    def unquiesce(self) -> None:
        """Count one section less; with the last one the driver and the parents go on."""
        if self.quiesce_counter == 0:
            raise RuntimeError(f"node '{self.node_name}' is not drained")
        queue = [self]
        while queue:
            node = queue.pop()
            node.quiesce_counter -= 1
            if node.quiesce_counter:
                continue
            node._settle()
            for edge in list(node.parents):
                if not edge.quiesced_parent:
                    continue
                edge.quiesced_parent = False
                if edge.parent_node is not None:
                    queue.append(edge.parent_node)
                else:
                    edge.parent.drained_end(edge)

    def _settle(self) -> None:
        """Have the driver's drain hooks follow the counter. They may suspend, the counting may not: so in a task."""
        cls = self.driver_class
        if cls.drain_begin is BlockDriver.drain_begin and cls.drain_end is BlockDriver.drain_end:
            return
        if self.settling is None and self._opened:
            self.settling = self.context.loop.create_task(self._follow_counter())

    async def _follow_counter(self) -> None:
        try:
            while self.driver is not None and self._driver_quiesced != (self.quiesce_counter > 0):
                self._driver_quiesced = not self._driver_quiesced
                await (self.driver.drain_begin() if self._driver_quiesced else self.driver.drain_end())
        finally:
            self.settling = None
            self.kick()

    # -- ChildParent, for the nodes below

    def parent_desc(self) -> str:
        """``node 'n0'``."""
        return f"node '{self.node_name}'"

    def drained_begin(self, edge: Edge) -> None:
        """A child is drained: so is this node."""
        self.quiesce()

    def drained_poll(self, edge: Edge) -> bool:
        """Whether this node or anything above it is still at work."""
        return drain.is_busy(self)

    def drained_end(self, edge: Edge) -> None:
        """One child less is drained."""
        self.unquiesce()

    def resized(self, edge: Edge) -> None:
        """A filter is as long as what it filters; other drivers keep their own length."""
        driver = self.driver
        if self._opened and isinstance(driver, FilterDriver) and edge.role & Role.FILTERED and driver.follow_length():
            self.length_changed()

    def change_media(self, edge: Edge, load: bool) -> None:
        """What a filter, or a format that is just a window on its file, shows has changed as well."""
        if edge.role & Role.FILTERED:
            self.media_changed(load)

    def attached(self, edge: Edge) -> None:
        """A child is there: its limits count."""
        if self.state is NodeState.OPEN:
            self.limits_changed()
            self.path.refresh_lanes()

    def detached(self, edge: Edge) -> None:
        """A child is about to go; whoever detaches it refreshes what depended on it."""

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """See ``graph.move``."""
        from blockio.graph.move import check_move  # only moving needs it

        check_move(self, context, seen)

    def set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """See ``graph.move``."""
        from blockio.graph.move import carry_out_move

        carry_out_move(self, context, seen)

    def activate(self, edge: Edge) -> None:
        """Nothing: ``graph.activation`` visits each node, and what one holds of its children follows from its users."""

    def inactivate(self, edge: Edge) -> None:
        """Nothing, as above."""


async def _attempt(errors: list[BaseException], step: Awaitable[object]) -> None:
    """Await *step*; its error is kept in *errors*, so that the following steps run too."""
    try:
        await step
    except BaseException as error:  # closing goes on whatever one step does; the caller raises it
        errors.append(error)


def must_be_open(node: BlockNode) -> None:
    """RuntimeError for a node that is closed or closing, NoMedium for one whose driver is gone."""
    if node.state in (NodeState.CLOSING, NodeState.CLOSED):
        raise RuntimeError(f"node '{node.node_name}' is closed")
    if node.driver is None:
        raise BlockError(errno=errno.ENOMEDIUM)
