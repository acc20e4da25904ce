"""Events: what a backend tells those who watch it, as typed values.

Two ways to watch, of one backend (``blk.events()``, ``blk.listen``) or of all (``all_events``, ``listen_to_all``): an
async stream, and plain callbacks. Neither ever holds up the sender: a stream keeps a bounded number of events, drops
the oldest when its reader is too slow, and tells it how many.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import TYPE_CHECKING, Final, TypeAlias

import msgspec

from blockio.backend.core import BackendCore
from blockio.graph.events import ImageCorrupted, NodeEvent, watchers
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.graph.node import BlockNode

__all__ = [
    "EVENTS_KEPT",
    "BlockEvent",
    "BlockIoError",
    "DeviceTrayMoved",
    "ErrorAction",
    "ErrorReported",
    "EventSource",
    "EventStream",
    "EventsDropped",
    "IoOperation",
    "all_events",
    "listen_to_all",
]

EVENTS_KEPT: Final = 256
"""How many events a stream keeps for its reader unless told otherwise."""


class IoOperation(StrEnum):
    """QMP's IoOperationType."""

    READ = "read"
    WRITE = "write"


class ErrorAction(StrEnum):
    """What is done about a failed request (QMP's BlockErrorAction)."""

    IGNORE = "ignore"
    """The guest is told that all went well."""
    REPORT = "report"
    """The guest is told of the error."""
    STOP = "stop"
    """The machine stops; when it goes on the request is tried again."""


class BlockIoError(msgspec.Struct, frozen=True):
    """A request of the guest's failed (QMP's BLOCK_IO_ERROR)."""

    device: str
    """The backend's name, or ``""``."""
    node_name: str | None
    """The root node's, or None while empty."""
    operation: IoOperation
    action: ErrorAction
    nospace: bool | None
    """Whether there was no space left; None while the I/O status is not tracked."""
    reason: str
    """``strerror`` of it."""


class DeviceTrayMoved(msgspec.Struct, frozen=True):
    """A device's tray was opened or closed (QMP's DEVICE_TRAY_MOVED)."""

    device: str
    id: str
    """The attached device's."""
    tray_open: bool


class ErrorReported(msgspec.Struct, frozen=True):
    """Something failed that no caller is there to hear of; one line for the operator."""

    device: str
    message: str


class EventsDropped(msgspec.Struct, frozen=True):
    """The reader of a stream was too slow: *count* events that came before the next one are lost."""

    count: int


BlockEvent: TypeAlias = BlockIoError | DeviceTrayMoved | ErrorReported | ImageCorrupted
"""What a backend may tell; ImageCorrupted comes from a node below it (QMP's BLOCK_IMAGE_CORRUPTED)."""
Listener: TypeAlias = Callable[[BlockEvent], object]


class EventStream:
    """``async for event in stream``: events from the stream's making on, in their order, until its backend is gone.

    At most *limit* events are kept; then the oldest is dropped, and the next thing read is ``EventsDropped``. One
    reader, in any loop; a cancelled read loses nothing. A stream nobody holds any more costs nothing; ``close`` ends it
    earlier.
    """

    def __init__(self, limit: int = EVENTS_KEPT) -> None:
        """Not for callers: see ``blk.events()``. ValueError for a limit below 1."""
        if limit < 1:
            raise ValueError("a stream keeps at least one event")
        self._limit = limit
        self._lock = threading.Lock()
        self._kept: deque[BlockEvent] = deque()
        self._lost = 0
        self._dropped = 0
        self._closed = False
        self._reader: asyncio.Future[None] | None = None

    @property
    def dropped(self) -> int:
        """How many events this stream has lost so far."""
        return self._dropped

    def post(self, event: BlockEvent) -> None:
        """One more event. From any thread; never waits for the reader."""
        with self._lock:
            if self._closed:
                return
            if len(self._kept) >= self._limit:
                self._kept.popleft()
                self._lost += 1
                self._dropped += 1
            self._kept.append(event)
            self._wake()

    def close(self) -> None:
        """No more events; those kept can still be read."""
        with self._lock:
            self._closed = True
            self._wake()

    def _wake(self) -> None:
        reader, self._reader = self._reader, None
        if reader is None:
            return
        loop = reader.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(_arouse, reader)

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> BlockEvent | EventsDropped:
        while True:
            with self._lock:
                if self._lost:
                    lost, self._lost = self._lost, 0
                    return EventsDropped(lost)
                if self._kept:
                    return self._kept.popleft()
                if self._closed:
                    raise StopAsyncIteration
                if self._reader is not None and not self._reader.done():
                    raise RuntimeError("this stream has a reader already; make one for each with events()")
                reader = self._reader = asyncio.get_running_loop().create_future()
            try:
                await reader
            finally:
                with self._lock:
                    if self._reader is reader:
                        self._reader = None

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


def _arouse(reader: asyncio.Future[None]) -> None:
    if not reader.done():
        reader.set_result(None)


class _Feed:
    """Who watches one source. Streams are held weakly: a reader that breaks out of its loop need not say so."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: list[Listener] = []
        self._streams: weakref.WeakSet[EventStream] = weakref.WeakSet()

    def stream(self, limit: int) -> EventStream:
        stream = EventStream(limit)
        with self._lock:
            self._streams.add(stream)
        return stream

    def listen(self, listener: Listener) -> Callable[[], None]:
        with self._lock:
            self._listeners.append(listener)

        def stop() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return stop

    def watchers(self) -> tuple[list[Listener], list[EventStream]]:
        with self._lock:
            return list(self._listeners), list(self._streams)

    def emit(self, event: BlockEvent, loop: asyncio.AbstractEventLoop, source: str) -> None:
        listeners, streams = self.watchers()
        for listener in listeners:
            try:
                listener(event)
            except Exception as error:  # whoever watches must not change what happens
                loop.call_exception_handler(
                    {"message": f"A listener to the events of {source} failed", "exception": error}
                )
        for stream in streams:
            stream.post(event)

    def end(self) -> None:
        for stream in self.watchers()[1]:
            stream.close()


_everything: Final = _Feed()


def all_events(*, limit: int = EVENTS_KEPT) -> EventStream:
    """A stream of the events of all backends, from this call on; see ``EventStream``."""
    return _everything.stream(limit)


def listen_to_all(listener: Listener) -> Callable[[], None]:
    """Call *listener* with each event of every backend, in that backend's thread; returns what stops that."""
    return _everything.listen(listener)


class EventSource(BackendCore):
    """``events()``, ``listen`` and ``emit`` of one backend."""

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """Nobody watches."""
        super().__init__(perm, shared, context)
        self._feed: _Feed | None = None  # made by the first who watches: most backends have none

    def _watched(self) -> _Feed:
        if self._feed is None:
            self._feed = _Feed()
        return self._feed

    def events(self, *, limit: int = EVENTS_KEPT) -> EventStream:
        """A stream of this backend's events, from this call on until it is closed; see ``EventStream``."""
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        return self._watched().stream(limit)

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call *listener* with each event, in the backend's thread, before what caused it goes on.

        Returns what stops that. An error it raises is the loop's to report; it must not block.
        """
        return self._watched().listen(listener)

    def emit(self, event: BlockEvent) -> None:
        """Tell everybody; the callbacks first. Never raises and never waits."""
        self._emit_here(event)
        _everything.emit(event, self._loop, self._describe())

    def _emit_here(self, event: BlockEvent) -> None:
        """Tell those who watch this backend only."""
        if self._feed is not None:
            self._feed.emit(event, self._loop, self._describe())

    def _end_events(self) -> None:
        if self._feed is not None:
            self._feed.end()


def _pass_on(node: BlockNode, event: NodeEvent) -> None:
    """A node found its image corrupt: tell who watches the backends above it, and who watches all of them, once."""
    if not isinstance(event, ImageCorrupted):
        return
    seen: set[object] = {node}
    queue = [node]
    while queue:
        here = queue.pop()
        for edge in here.parents:
            above = edge.parent
            if above in seen:
                continue
            seen.add(above)
            if edge.parent_node is not None:
                queue.append(edge.parent_node)
            elif isinstance(above, EventSource):
                above._emit_here(event)
    _everything.emit(event, node.context.loop, f"node '{node.node_name}'")


watchers.append(_pass_on)
