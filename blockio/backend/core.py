"""What all systems of a BlockBackend share: the root, the counts, the queue of parked requests.

The reference document describes a BlockBackend in some thirty systems. Each lives in a file beside this one, as
a class that stands on ``BackendCore`` and adds methods; ``backend.py`` puts them together. Only this file holds
state that more than one system changes.
"""

from __future__ import annotations

import asyncio
import weakref
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING

from blockio.aio.context import AioContext
from blockio.backend.accounting import Accounting, Counters
from blockio.backend.lanes import Lane, Lanes, fast_lane
from blockio.backend.memory import readable_vector, writable_vector
from blockio.backend.parking import Moved, Parking, Place, holds
from blockio.errors import NoMedium
from blockio.graph.drain import RequestScope
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.flight import Start
    from blockio.backend.accounting import TryTransfer
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode
    from blockio.throttle.groups import ThrottleMember

__all__ = ["BackendCore", "Entered"]


class BackendCore:
    """The state of a BlockBackend.

    Invariants:

    * Everything here is touched only in the thread of ``_context``; see ``in_own_loop``.
    * ``_in_flight`` counts the requests that entered and did not leave; a parked request is not in flight. Whoever
      brings it to zero wakes those who drain. Requests that end in NoMedium are counted like all others.
    * While ``_quiesce`` > 0 no request goes on to the root, unless ``_queuing`` is off. Parked requests go on in the
      order of their arrival: while any is left in ``_parking``, newcomers park behind it.
    * ``_fast_read`` and ``_fast_write`` are set exactly while nothing forbids the fast lane: a root, no drain, nobody
      parked, no throttle group (and for writes: the permission, and the write cache on). They refuse what does not fit.
      ``_start_read`` and ``_start_write`` likewise, and only for a medium that cannot go. Nor are those set that
      ``_lanes`` leaves out.
    * ``_first_read`` is ``_fast_read``, or None while that declines whatever comes; ``_first_write`` likewise.
    * ``_reads`` and ``_writes`` are the counters of ``stats``, one look-up nearer.
    """

    # Slots here, none in the systems: an object with more attributes than CPython shares keys for (30) loses the
    # specialised access to them, which the fast lane lives on.
    __slots__ = (
        "_allow_write_beyond_eof",
        "_closed",
        "_context",
        "_enable_write_cache",
        "_fast_read",
        "_fast_write",
        "_first_read",
        "_first_write",
        "_idle_waiters",
        "_in_flight",
        "_lanes",
        "_loop",
        "_name",
        "_parking",
        "_perm",
        "_queuing",
        "_quiesce",
        "_reads",
        "_root",
        "_shared",
        "_start_read",
        "_start_write",
        "_throttled",
        "_writes",
        "stats",
    )

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        self._context = AioContext.current() if context is None else context
        self._loop = self._context.loop
        self._perm = perm
        self._shared = shared
        self._name = ""
        self._closed = False
        self._root: Edge | None = None
        self._fast_read: Lane | None = None
        self._fast_write: Lane | None = None
        self._first_read: Lane | None = None
        self._first_write: Lane | None = None
        self._start_read: Start | None = None
        self._start_write: Start | None = None
        self._lanes: Lanes = "auto"
        self._enable_write_cache = True
        self._allow_write_beyond_eof = False
        self._in_flight = 0
        self._quiesce = 0
        self._queuing = True
        self._parking = Parking()
        self._idle_waiters: list[asyncio.Future[None]] = []
        self._throttled: ThrottleMember | None = None
        self.stats = Accounting()
        """What was asked of this backend and how it went (``blk_get_stats``)."""
        # Weak, so that a forgotten backend is noticed at once and not by the collector.
        bind_lanes = weakref.WeakMethod(self._bind_lanes)
        self.stats.lanes_changed = lambda: (bind := bind_lanes()) is not None and bind()
        self._reads = self.stats.read
        self._writes = self.stats.write

    # -- facts

    @property
    def context(self) -> AioContext:
        """The event loop and thread this backend and its nodes live in (``blk_get_aio_context``)."""
        return self._context

    @property
    def in_flight(self) -> int:
        """How many requests have entered and not left; parked ones are not counted."""
        return self._in_flight

    @property
    def root(self) -> Edge | None:
        """The edge to the root node, or None while empty (``blk_root``)."""
        return self._root

    @property
    def bs(self) -> BlockNode | None:
        """The root node, or None while empty (``blk_bs``)."""
        return None if self._root is None else self._root.node

    @property
    def closed(self) -> bool:
        """Whether its last reference was given back: it cannot be used any more."""
        return self._closed

    def is_inserted(self) -> bool:
        """Whether there is a root node with a working driver (``blk_is_inserted``)."""
        root = self._root
        return root is not None and root.attached and root.node.driver is not None

    def is_available(self) -> bool:
        """Whether requests can be served at all; where not they fail with NoMedium (``blk_is_available``)."""
        return self.is_inserted()

    def _edge(self, message: str = "") -> Edge:
        """The root, for a request; RuntimeError after ``close``, NoMedium where none is available."""
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        root = self._root
        if root is None or not self.is_available():
            raise NoMedium(message)
        return root

    def _describe(self) -> str:
        return f"block backend '{self._name}'" if self._name else "block backend"

    # -- threads

    def in_own_loop(self) -> bool:
        """Whether the caller runs in this backend's loop."""
        return asyncio.events._get_running_loop() is self._context.loop

    def _elsewhere(self) -> bool:
        """Whether the caller must hop. The fast lane asks for the thread only: the loop costs a system call.

        That is as good, because a thread runs one loop at a time; a loop that came back in another thread is noticed
        here, by the first request that takes the slow lane for it.
        """
        context = self._context  # read once: another thread may be moving us right now
        if asyncio.events._get_running_loop() is not context.loop:
            return True
        if not context.is_current:
            context.thread_id = get_ident()
        return False

    def _must_be_home(self, what: str, instead: str) -> None:
        if not self.in_own_loop():
            raise RuntimeError(f"{what} belongs into the backend's own event loop; {instead}")

    # -- the lanes

    @property
    def lanes(self) -> Lanes:
        """Which of the short ways requests may take; see ``set_lanes``."""
        return self._lanes

    def set_lanes(self, lanes: Lanes) -> None:
        """Let requests take *lanes* only, from the next one on: for who measures or compares them.

        ``auto``: all of them, as fits; ``fast`` and ``started``: that one, else the slow lane; ``slow``: no short way.
        What requests do is the same. ValueError for any other name; RuntimeError outside the backend's own loop.
        """
        if lanes not in {"auto", "fast", "started", "slow"}:
            raise ValueError(f"no lane is called {lanes!r}")
        self._must_be_home("set_lanes", "call it through blk.context.schedule_bh")
        self._lanes = lanes
        self._bind_lanes()

    def _bind_lanes(self) -> None:
        """Something that decides over the fast lane changed."""
        root = self._root
        if root is None or not root.attached or self._quiesce or self._parking or self._throttled:
            self._close_lanes()
            return
        self._fast_read = fast_lane(
            self._guarded(root.try_preadv),
            writable_vector,
            self._reads,
            self.stats,
            self._context,
            writes=False,
        )
        if self._perm & Perm.WRITE and self._enable_write_cache:
            self._fast_write = fast_lane(
                self._guarded(root.try_pwritev),
                readable_vector,
                self._writes,
                self.stats,
                self._context,
                writes=True,
            )
        else:
            self._fast_write = None
        self._start_read = self._start_write = None
        if self._guarded(root.try_preadv) is root.try_preadv:  # nothing is asked before each request
            self._start_read = root.start_preadv
            if self._fast_write is not None:
                self._start_write = root.start_pwritev
        if self._lanes in {"started", "slow"}:
            self._fast_read = self._fast_write = None
        if self._lanes in {"fast", "slow"}:
            self._start_read = self._start_write = None
        self._first_read, self._first_write = self._fast_read, self._fast_write

    def _close_lanes(self) -> None:
        self._fast_read = self._fast_write = self._first_read = self._first_write = None
        self._start_read = self._start_write = None

    def _guarded(self, lane: TryTransfer) -> TryTransfer:
        """*lane*, behind what must be asked before each request."""
        return lane

    # -- counting

    def inc_in_flight(self) -> None:
        """A request entered (``blk_inc_in_flight``). Pair with ``dec_in_flight``."""
        self._in_flight += 1

    def dec_in_flight(self) -> None:
        """A request left (``blk_dec_in_flight``); the last one wakes whoever drains."""
        self._in_flight -= 1
        if not self._in_flight:
            self._idle()

    def _idle(self) -> None:
        """Nothing is in flight any more: wake whoever drains."""
        if self._root is not None:
            self._root.node.kick()
        if self._idle_waiters:
            waiters, self._idle_waiters = self._idle_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def _wait_idle(self) -> None:
        """Until nothing is in flight. Requests without a medium are counted here and nowhere else."""
        while self._in_flight:
            if self._elsewhere():  # it moved while we waited
                await self._context.run(self._wait_idle())
                return
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._idle_waiters.append(waiter)
            await waiter

    # -- parking

    def _must_park(self) -> bool:
        """Whether a request that arrives now has to wait: while drained, and behind those who arrived before it."""
        return self._queuing and (self._quiesce > 0 or len(self._parking) > 0)

    def _park(self) -> Place:
        """A place in the line, for a request that is in flight and is not so while parked; see ``_unpark``."""
        place = self._parking.take()
        self.dec_in_flight()
        return place

    async def _unpark(self, place: Place) -> None:
        """Wait at *place*; afterwards the request is in flight again, even if cancelled.

        RuntimeError, with the place given up, where the section it waits for is its own task's.
        But not if the backend went to another loop meanwhile: then this raises Moved, and the request, which keeps its
        place, has to go on there. Cancelled then, it is nowhere any more.
        """
        parking = self._parking
        try:
            if holds(self):
                parking.give_up(place)
                raise RuntimeError(
                    f"a request of {self._describe()} awaited inside the task's own drained section would never end; "
                    "await it when the section is over, or make it in a task of its own"
                )
            await parking.wait(place)
        except asyncio.CancelledError as error:
            if parking.left:
                self._forsake(place)
                raise Moved(place) from error
            raise
        finally:
            if not parking.left:
                self._left_parking(place)

    def _forsake(self, place: Place) -> None:
        """From any thread: the request that keeps *place* will not come. May be called again, and when it came."""
        self._context.schedule_bh(self._forsake_here, place, self._context)

    def _forsake_here(self, place: Place, context: AioContext) -> None:
        if context is not self._context:
            self._forsake(place)
        elif self._parking.holds(place):
            self._parking.give_up(place)
            if self._parking.is_released(place):
                self.dec_in_flight()
            if not self._quiesce:
                self._release()

    def _unpark_unseen(self, place: Place) -> None:
        """The request at *place* ended before it began to wait there."""
        self._parking.give_up(place)
        self._left_parking(place)

    def _left_parking(self, place: Place) -> None:
        if not self._parking.is_released(place):
            self.inc_in_flight()
        if not self._quiesce:
            self._release()

    def _release(self) -> None:
        """Let the parked requests go on. They are in flight from here on, so that the next drain waits for them."""
        self._in_flight += self._parking.release()
        self._bind_lanes()

    def _switch(self, context: AioContext) -> None:
        """Live in *context* from here on. In the thread of the old one, drained, as the last thing done there."""
        self._close_lanes()
        self._parking = self._parking.leave_for_another_loop()
        self._loop = context.loop
        self._context = context
        if self._throttled is not None:
            self._throttled.move(context)

    async def _wait_while_drained(self) -> None:
        """``blk_wait_while_drained``, for a request that is in flight."""
        if self._must_park():
            await self._unpark(self._park())

    def _quiesce_begin(self) -> None:
        self._quiesce += 1
        if self._quiesce == 1:
            self._bind_lanes()
            if self._throttled is not None:
                self._throttled.limits_off()

    def _quiesce_end(self) -> None:
        if self._quiesce == 0:
            raise RuntimeError(f"{self._describe()} is not drained")
        self._quiesce -= 1
        if self._quiesce == 0:
            if self._throttled is not None:
                self._throttled.limits_on()
            try:
                self._resuming()
            finally:
                self._release()

    def _resuming(self) -> None:
        """The last section has ended and nothing goes on yet; for systems that tell somebody."""


class Entered(RequestScope):
    """``with Entered(blk):`` around a request: it is in flight, and a drain inside it is a mistake.

    With *counters* the request is counted there when it ends, as one of *nbytes*. With *parked* it comes from another
    loop with a place in the line, and is in flight when it leaves that.
    """

    __slots__ = ("_began", "_counters", "_nbytes", "_parked")
    owner: BackendCore

    def __init__(
        self, owner: BackendCore, counters: Counters | None = None, nbytes: int = 0, *, parked: bool = False
    ) -> None:
        super().__init__(owner)
        self._counters = counters
        self._nbytes = nbytes
        self._parked = parked

    def __enter__(self) -> RequestScope:
        if not self._parked:
            self.owner.inc_in_flight()
        self._began = self.owner.stats.begin()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        super().__exit__(kind, error, tb)
        if isinstance(error, Moved):
            return  # it is parked in another loop, not in flight here
        if self._counters is not None:
            self.owner.stats.ended(self._counters, self._nbytes, self._began, error)
        self.owner.dec_in_flight()
