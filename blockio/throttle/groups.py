"""Throttle groups: members share limits and take turns.

A member is whatever sends requests: a backend, a ``throttle`` node. It belongs to one context, and members of one group
may belong to different ones, on different threads. A request asks its member to ``intercept`` it and goes on when that
returns. Those that have to wait do so in their member's line; when the limits allow one more, the next member in the
round lets its first one go, each direction with a round of its own.

Two directions may share a bucket; each then lets one request go when its own timer comes, so that neither starves.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from asyncio.events import _get_running_loop
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from blockio.aio.clock import LoopClock
from blockio.throttle.buckets import Direction, ThrottleConfig, ThrottleState

if TYPE_CHECKING:
    from collections.abc import Callable

    from blockio.aio.clock import Clock, Timer
    from blockio.aio.context import AioContext

__all__ = ["ThrottleGroup", "ThrottleMember", "find_group", "group_named"]


class _ThreadsClock(LoopClock):
    """The time that all threads agree on, and timers of whichever loop asks."""

    def now(self) -> float:
        """The system's monotonic time."""
        return time.monotonic()


_groups: Final[weakref.WeakValueDictionary[str, ThrottleGroup]] = weakref.WeakValueDictionary()
_groups_lock: Final = threading.Lock()


def find_group(name: str) -> ThrottleGroup | None:
    """The group of that name, or None. A group is found as long as somebody holds it; its members do."""
    with _groups_lock:
        return _groups.get(name)


def group_named(name: str) -> ThrottleGroup:
    """The group of that name, made without limits where there is none (``throttle_group_incref``)."""
    if not name:
        raise ValueError("a throttle group's name cannot be empty")
    with _groups_lock:
        group = _groups.get(name)
        if group is None:
            group = ThrottleGroup()
            group.name = name
            _groups[name] = group
        return group


class _Waiter:
    """One request in its member's line, and after it was released until it runs."""

    __slots__ = ("direction", "future", "nbytes", "released")

    def __init__(self, loop: asyncio.AbstractEventLoop, direction: Direction, nbytes: int) -> None:
        self.direction = direction
        self.nbytes = nbytes
        self.released = False
        self.future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _Turn:
    """A member's right to be the next in one direction, with the timer that says when. Over when replaced."""

    __slots__ = ("direction", "due", "group", "member", "timer")

    def __init__(self, group: ThrottleGroup, member: ThrottleMember, direction: Direction, due: float) -> None:
        self.group = group
        self.member = member
        self.direction = direction
        self.due = due
        self.timer: Timer | None = None

    def set_timer(self) -> None:
        """In the member's thread, with the group's lock."""
        clock = self.group._clock
        self.timer = clock.call_later(max(self.due - clock.now(), 0.0), self.come)

    def arrive(self) -> None:
        """The hop to the member's thread is done."""
        with self.group._lock:
            if self.group._turns[self.direction] is self:
                self.set_timer()

    def come(self) -> None:
        """The time has come."""
        self.timer = None  # it knows us: a cycle would keep the group, and its name, until the collector comes
        self.group._turn_came(self)

    def withdraw(self) -> None:
        """The timer shall not come; with the group's lock. One that comes all the same finds the turn replaced."""
        timer, self.timer = self.timer, None
        if timer is not None:
            self.member._call(timer.cancel)


class ThrottleGroup:
    """Limits that its members share. Made by the caller, from any thread; usable from all of them.

    A *name*, which must be free, lets drivers and backends find it. *clock* is for tests: all members then live on the
    clock's one thread. ``set_config`` changes the limits at any time, also while requests wait.

    Invariants, all under ``_lock``, which is held for short arithmetic only:

    * ``_pending[d]`` has exactly the members with waiting requests in direction d, in the order of their turns.
    * ``_turns[d]`` is not None exactly while ``_pending[d]`` is not empty, and is its first member's. A timer for it is
      running in that member's loop, or is about to be set there.
    * Every released request is accounted, unless it was cancelled before it ran.
    """

    def __init__(
        self, name: str | None = None, config: ThrottleConfig | None = None, *, clock: Clock | None = None
    ) -> None:
        """ValueError where there is a group of that name, or the name is empty."""
        self.name = name
        self._lock = threading.Lock()
        self._clock: Clock = _ThreadsClock() if clock is None else clock
        self._config = ThrottleConfig() if config is None else config
        self._state = ThrottleState(self._config, self._clock.now())
        self.limited = self._state.limited
        """Whether any request can have to wait now; read only, and plain because the fast lane asks."""
        self._members: dict[ThrottleMember, None] = {}
        # Ordered ones: a dict's first key takes long to find once many before it are gone.
        self._pending: tuple[OrderedDict[ThrottleMember, None], ...] = tuple(OrderedDict() for _ in Direction)
        self._turns: list[_Turn | None] = [None for _ in Direction]
        if name is not None:
            if not name:
                raise ValueError("a throttle group's name cannot be empty")
            with _groups_lock:
                if name in _groups:
                    raise ValueError(f"there is a throttle group '{name}' already")
                _groups[name] = self

    def __repr__(self) -> str:
        return f"<ThrottleGroup {self.name or 'without a name'}, {len(self._members)} members>"

    @property
    def config(self) -> ThrottleConfig:
        """The limits (``throttle_group_get_config``)."""
        return self._config

    @property
    def members(self) -> tuple[ThrottleMember, ...]:
        """Who shares it, in the order of joining."""
        with self._lock:
            return tuple(self._members)

    def set_config(self, config: ThrottleConfig) -> None:
        """Other limits from now on, with empty buckets; who waits, waits by the new ones (``throttle_group_config``).

        From any thread.
        """
        if not isinstance(config, ThrottleConfig):
            raise TypeError(f"limits are a ThrottleConfig, not {config!r}")
        with self._lock:
            self._config = config
            self._state = ThrottleState(config, self._clock.now())
            self.limited = self._state.limited
            for direction in Direction:
                self._serve_anew(direction)

    def delete(self) -> None:
        """Give the name back at once, and not when the last who holds the group lets go. RuntimeError with members."""
        if self.members:
            raise RuntimeError(f"throttle group '{self.name}' is in use, it cannot be deleted")
        with _groups_lock:
            if self.name is not None and _groups.get(self.name) is self:
                del _groups[self.name]
        self.name = None

    # -- what members ask; the lock is taken here

    def _join(self, member: ThrottleMember) -> None:
        with self._lock:
            self._members[member] = None

    def _leave(self, member: ThrottleMember) -> None:
        with self._lock:
            self._let_all_go(member)
            del self._members[member]

    def _enter(self, member: ThrottleMember, direction: Direction, nbytes: int) -> _Waiter | None:
        """None where the request may go at once."""
        with self._lock:
            now = self._clock.now()
            if member._off or (self._turns[direction] is None and self._state.wait(direction, now) <= 0):
                self._state.account(direction, nbytes, now)
                return None
            waiter = _Waiter(member.context.loop, direction, nbytes)
            member._waiting[direction][waiter] = None
            self._pending[direction].setdefault(member)
            if self._turns[direction] is None:
                self._serve(direction)
            return waiter

    def _cancelled(self, member: ThrottleMember, waiter: _Waiter) -> None:
        """The request goes nowhere, whether it was released or not: it leaves no count and no turn behind."""
        direction = waiter.direction
        with self._lock:
            if waiter.released:
                self._state.take_back(direction, waiter.nbytes, self._clock.now())
                for other in Direction:  # what it gave back may be another's
                    self._serve_anew(other)
                return
            waiting = member._waiting[direction]
            del waiting[waiter]
            if not waiting:
                del self._pending[direction][member]
                turn = self._turns[direction]
                if turn is not None and turn.member is member:
                    self._serve_anew(direction)

    def _set_off(self, member: ThrottleMember, off: bool) -> None:
        with self._lock:
            member._off = off
            if off:
                self._let_all_go(member)

    def _turn_came(self, turn: _Turn) -> None:
        direction = turn.direction
        with self._lock:
            if self._turns[direction] is not turn:
                return
            self._turns[direction] = None
            # Without a second look at the buckets: the other direction may have used what this one waited for, and
            # would do so again. Timers that come early, or late, cost nothing either: buckets keep exact accounts.
            self._release(turn.member, direction)
            self._serve(direction)

    # -- with the lock held

    def _serve(self, direction: Direction) -> None:
        """Nobody has the turn: let go who may, give the turn to the next."""
        pending = self._pending[direction]
        while pending:
            member = next(iter(pending))
            now = self._clock.now()
            wait = self._state.wait(direction, now)
            if wait <= 0:
                self._release(member, direction)
                continue
            turn = _Turn(self, member, direction, now + wait)
            self._turns[direction] = turn
            if member.at_home():
                turn.set_timer()
                return
            if member._call(turn.arrive):
                return
            self._turns[direction] = None  # its loop was closed under it: nobody is there to wait any more
            member._waiting[direction].clear()
            del pending[member]

    def _serve_anew(self, direction: Direction) -> None:
        """Whose turn it is, or when, may be another matter now."""
        turn = self._turns[direction]
        if turn is not None:
            self._turns[direction] = None
            turn.withdraw()
            self._serve(direction)

    def _release(self, member: ThrottleMember, direction: Direction) -> None:
        """The first of *member* goes; then it is the next one's turn."""
        waiting = member._waiting[direction]
        waiter, _ = waiting.popitem(last=False)
        pending = self._pending[direction]
        if waiting:
            pending.move_to_end(member)
        else:
            del pending[member]
        waiter.released = True
        self._state.account(direction, waiter.nbytes, self._clock.now())
        member._call(waiter.wake)

    def _let_all_go(self, member: ThrottleMember) -> None:
        for direction in Direction:
            if not member._waiting[direction]:
                continue
            while member._waiting[direction]:
                self._release(member, direction)
            turn = self._turns[direction]
            if turn is not None and turn.member is member:
                self._serve_anew(direction)


class ThrottleMember:
    """Who sends requests, one at most in a group at a time (QEMU's ThrottleGroupMember).

    All methods belong into the thread of ``context``. Invariant: ``_waiting[d]`` has the waiting requests of direction
    d in the order of their arrival, all of them futures of the context's loop; it is empty outside a group.
    """

    __slots__ = ("_group", "_off", "_offs", "_waiting", "context")

    def __init__(self, context: AioContext) -> None:
        self.context = context
        self._group: ThrottleGroup | None = None
        self._off = False
        self._offs = 0
        self._waiting: tuple[OrderedDict[_Waiter, None], ...] = tuple(OrderedDict() for _ in Direction)

    @property
    def group(self) -> ThrottleGroup | None:
        """The group it is in, or None."""
        return self._group

    @property
    def waiting(self) -> int:
        """How many of its requests wait for their turn."""
        return sum(len(waiting) for waiting in self._waiting)

    def join(self, group: ThrottleGroup) -> None:
        """Share *group*'s limits from now on (``throttle_group_register_tgm``). RuntimeError where in a group."""
        if self._group is not None:
            raise RuntimeError(f"in {self._group!r} already; leave() it first")
        group._join(self)
        self._group = group

    def leave(self) -> None:
        """Be in no group (``throttle_group_unregister_tgm``); requests that still wait go on. RuntimeError in none."""
        group = self._group
        if group is None:
            raise RuntimeError("in no throttle group")
        group._leave(self)
        self._group = None

    def limits_off(self) -> None:
        """No request waits until ``limits_on`` is called as often; those that do go on. Their use is still counted."""
        self._offs += 1
        if self._offs == 1:
            self._set_off(True)

    def limits_on(self) -> None:
        """The end of one ``limits_off``. RuntimeError where there was none."""
        if self._offs == 0:
            raise RuntimeError("limits_on without limits_off")
        self._offs -= 1
        if self._offs == 0:
            self._set_off(False)

    def move(self, context: AioContext) -> None:
        """Belong to *context* from now on. RuntimeError while requests wait: drain first."""
        if self.waiting:
            raise RuntimeError(f"{self.waiting} requests wait for their turn in {self.context!r}; drain them first")
        self.context = context

    async def intercept(self, direction: Direction, nbytes: int) -> None:
        """Wait until the limits allow a request of *nbytes* bytes (``throttle_group_co_io_limits_intercept``).

        Requests of one direction go on in the order of their arrival. Cancelled, it was never there.
        """
        group = self._group
        if group is None or not group.limited:
            return
        waiter = group._enter(self, direction, nbytes)
        if waiter is None:
            return
        try:
            await waiter.future
        except asyncio.CancelledError:
            group._cancelled(self, waiter)
            raise

    def at_home(self) -> bool:
        """Whether the caller runs in this member's loop."""
        return _get_running_loop() is self.context.loop

    def _set_off(self, off: bool) -> None:
        if self._group is None:
            self._off = off
        else:
            self._group._set_off(self, off)

    def _call(self, fn: Callable[[], object]) -> bool:
        """Call *fn* in this member's loop, at once if that is here; False where that loop is closed."""
        if self.at_home():
            fn()
            return True
        with contextlib.suppress(RuntimeError):
            self.context.schedule_bh(fn)
            return True
        return False
