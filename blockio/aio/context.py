"""AioContext: one event loop in one thread; IOThread starts one.

A tree of nodes and its backends live in one context and are touched only from its thread. Other threads and loops
come in by two doors: ``schedule_bh`` (a bottom half: run this soon, do not tell me) and ``run`` (await this over
there, and come back with the result).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import Future as ThreadFuture
from types import TracebackType
from typing import Any, Final, Generic, Protocol, TypeVar, TypeVarTuple, cast

__all__ = ["AioContext", "Closeable", "IOThread", "finish", "on_new_stack"]

_ATTRIBUTE: Final = "_blockio_aio_context"

_T = TypeVar("_T")
_K = TypeVar("_K", bound="Closeable")
_Ts = TypeVarTuple("_Ts")


class Closeable(Protocol):
    """A resource that a context shares among its users; see ``AioContext.share``."""

    def close(self) -> None:
        """The last user is gone."""


async def finish(future: asyncio.Future[_T], cancel: Callable[[], object] | None = None) -> _T:
    """Await *future* to its end whatever happens to us; a cancellation goes on afterwards.

    For work that owns the caller's memory or locks until it is done. *cancel* is called at each cancellation and may
    hurry the work up. When we were cancelled the result, or error, of *future* is dropped and CancelledError raised.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if future.done() and cancelled is None and future.cancelled():
                raise
            cancelled = error
            if cancel is not None:
                cancel()
        except BaseException:  # it is raised below, from the future itself
            break
    if cancelled is not None:
        if not future.cancelled():
            future.exception()  # looked at, so that nobody reports it as forgotten
        raise cancelled
    return future.result()


async def on_new_stack(coro: Coroutine[Any, Any, _T]) -> _T:
    """Await *coro* in a task of its own, where the call stack begins anew: for what goes deeper than that is long.

    Cancelled: *coro* is, it is waited for, then the cancellation goes on.
    """
    task = asyncio.ensure_future(coro)
    return await finish(task, task.cancel)


class _Errand(Generic[_T]):
    """What ``AioContext.run`` sends to another loop: runs *coro* there and brings the answer back.

    Only that loop and the task hold it. A loop that is closed drops both, so the end of the errand without an answer
    tells that there will be none.
    """

    __slots__ = ("_answer", "_context", "_coro", "_done", "_here", "started")

    def __init__(
        self,
        coro: Coroutine[Any, Any, _T],
        context: AioContext,
        here: asyncio.AbstractEventLoop,
        answer: asyncio.Future[_T],
    ) -> None:
        self._coro = coro
        self._context = context
        self._here = here
        self._answer = answer
        self._done = False
        self.started: list[weakref.ref[asyncio.Task[_T]]] = []

    def __call__(self) -> None:
        """In the other loop."""
        task = self._context.loop.create_task(self._coro)
        self.started.append(weakref.ref(task))
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[_T]) -> None:
        self._done = True
        self._here.call_soon_threadsafe(_arrive, self._answer, task)

    def give_up(self) -> None:
        """Nothing was sent."""
        self._done = True
        self._coro.close()

    def __del__(self) -> None:
        if self._done:
            return
        if not self.started:
            self._coro.close()
        with contextlib.suppress(RuntimeError):  # our own loop is closed as well: nobody waits
            self._here.call_soon_threadsafe(_never, self._answer, f"the event loop of {self._context!r} was closed")


def _arrive(answer: asyncio.Future[_T], task: asyncio.Task[_T]) -> None:
    if task.cancelled():
        answer.cancel()
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


def _never(answer: asyncio.Future[Any], why: str) -> None:
    if not answer.done():
        answer.set_exception(RuntimeError(why))


class AioContext:
    """One running event loop and its thread. ``AioContext.current()`` is the only way to one: one per loop.

    Lives as long as its loop. Comparable and hashable by identity.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        """Not for callers: ``current()`` makes it."""
        self.loop = loop
        self.name = name
        self.thread_id = threading.get_ident()
        self._shared: dict[type[Any], tuple[Any, int]] = {}

    def __repr__(self) -> str:
        return f"<AioContext {self.name!r}>"

    @classmethod
    def current(cls) -> AioContext:
        """The running loop's context, created on first use. RuntimeError where no loop runs."""
        loop = asyncio.get_running_loop()
        context: AioContext | None = getattr(loop, _ATTRIBUTE, None)
        if context is None:
            # An attribute and not a weak table: the context refers to its loop, so a table would keep both alive.
            context = cls(loop, threading.current_thread().name)
            setattr(loop, _ATTRIBUTE, context)
        elif context.thread_id != threading.get_ident():
            context.thread_id = threading.get_ident()  # a stopped loop was started again in another thread
        return context

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in this context's thread."""
        return self.thread_id == threading.get_ident()

    def call_soon(self, fn: Callable[[*_Ts], object], *args: *_Ts) -> asyncio.Handle:
        """Call ``fn(*args)`` in the next turn of the loop; only from the context's own thread."""
        return self.loop.call_soon(fn, *args)

    def schedule_bh(self, fn: Callable[[*_Ts], object], *args: *_Ts) -> None:
        """A bottom half: call ``fn(*args)`` in the context's thread soon. From any thread.

        Bottom halves of one thread run in the order they were scheduled. RuntimeError where the loop is closed.
        """
        self.loop.call_soon_threadsafe(fn, *args)

    async def run(self, coro: Coroutine[Any, Any, _T]) -> _T:
        """Run *coro* in this context and come back with what it returns or raises.

        In the context itself it is simply awaited. From another loop a cancellation cancels *coro* over there, waits
        until it has ended, then goes on. RuntimeError (and *coro* closed) where the loop is closed, before *coro* began
        or under it.
        """
        here = asyncio.get_running_loop()
        if here is self.loop:
            return await coro
        answer: asyncio.Future[_T] = here.create_future()
        errand = _Errand(coro, self, here, answer)
        started = errand.started
        try:
            self.loop.call_soon_threadsafe(errand)
        except RuntimeError:
            errand.give_up()
            raise
        del errand  # the other loop has it; where that loop is closed with it, nobody has, and it says so

        def cancel() -> None:
            # Bottom halves keep their order: the errand has begun when this is called.
            def reach() -> None:
                task = started[0]() if started else None
                if task is not None:
                    task.cancel()

            with contextlib.suppress(RuntimeError):  # closed: the errand answers
                self.loop.call_soon_threadsafe(reach)

        return await finish(answer, cancel)

    def share(self, kind: type[_K], make: Callable[[], _K]) -> _K:
        """The context's one *kind* (a ring, a pool of workers), made on first use. Pair with ``unshare``."""
        shared, users = self._shared.get(kind, (None, 0))
        if shared is None:
            shared = make()
        self._shared[kind] = (shared, users + 1)
        return cast("_K", shared)

    def shared(self, kind: type[_K]) -> _K | None:
        """The context's one *kind*, if anyone has a share in it."""
        return cast("_K | None", self._shared.get(kind, (None, 0))[0])

    def unshare(self, kind: type[Closeable]) -> None:
        """One user less; the last one closes it."""
        shared, users = self._shared[kind]
        if users > 1:
            self._shared[kind] = (shared, users - 1)
            return
        del self._shared[kind]
        shared.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed, else the stock loop."""
    try:
        import uvloop  # a wheel of its own, and only threads with a loop need it
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


class _Body:
    """What the thread of an IOThread works on; it knows nothing of the IOThread, so that one can be forgotten."""

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop_factory = loop_factory
        self.started: ThreadFuture[AioContext] = ThreadFuture()
        self.stopped: ThreadFuture[None] = ThreadFuture()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.leave: asyncio.Event | None = None

    def main(self) -> None:
        """The thread's life: make a loop, run until asked to leave, cancel what is left, close."""
        try:
            with asyncio.Runner(loop_factory=self.loop_factory) as runner:
                runner.run(self._live())
        except BaseException as error:  # handed to whoever waits, in the other thread
            if self.started.done():
                self.stopped.set_exception(error)
            else:
                self.started.set_exception(error)
                self.stopped.set_result(None)
        else:
            self.stopped.set_result(None)

    async def _live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.leave = asyncio.Event()
        self.started.set_result(AioContext.current())
        await self.leave.wait()

    def ask_to_leave(self) -> None:
        """From any thread, any number of times."""
        if self.loop is not None and self.leave is not None and not self.stopped.done():
            try:
                self.loop.call_soon_threadsafe(self.leave.set)
            except RuntimeError:  # closed between the look and the call: it has left
                return


class IOThread:
    """A thread with an event loop of its own, uvloop's where installed. ``with`` or ``async with``; once.

    ``context`` is its AioContext while it runs. Leaving cancels the tasks still running there, waits for them, closes
    the loop and joins the thread. An error at the start (no more threads, a broken loop factory) is raised by
    ``start``. One that is forgotten instead of stopped is stopped with a ResourceWarning.
    """

    def __init__(
        self, name: str = "iothread", *, loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    ) -> None:
        self.name = name
        self._body = _Body(loop_factory or _new_loop)
        self._thread = threading.Thread(target=self._body.main, name=name, daemon=True)
        self._begun = False
        self._context: AioContext | None = None

    @property
    def context(self) -> AioContext:
        """The context of the thread's loop. RuntimeError while it does not run."""
        if self._context is None:
            raise RuntimeError(f"IOThread '{self.name}' is not running")
        return self._context

    def _begin(self) -> None:
        if self._begun:
            raise RuntimeError(f"IOThread '{self.name}' was already started")
        self._thread.start()
        self._begun = True

    def start(self) -> None:
        """Start the thread and wait until its loop runs. For code outside any loop."""
        self._begin()
        self._context = self._body.started.result()

    def stop(self) -> None:
        """Stop the loop and join the thread; does nothing where it does not run."""
        if not self._begun:
            return
        if self._thread is threading.current_thread():
            raise RuntimeError(f"IOThread '{self.name}' cannot wait for its own end")
        self._context = None
        self._body.ask_to_leave()
        self._thread.join()
        self._body.stopped.result()

    def __enter__(self) -> IOThread:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    async def __aenter__(self) -> IOThread:
        self._begin()
        # Cancelled meanwhile: the thread is up when finish() raises, and is taken down again.
        try:
            self._context = await finish(asyncio.wrap_future(self._body.started))
        except BaseException:
            self._body.ask_to_leave()
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._context = None
        self._body.ask_to_leave()
        await self._end()

    async def _end(self) -> None:
        try:
            await finish(asyncio.wrap_future(self._body.stopped))
        finally:
            self._thread.join()  # its last act was to say that it stopped

    def __del__(self) -> None:
        if self._begun and self._thread.is_alive():
            warnings.warn(f"IOThread '{self.name}' was never stopped", ResourceWarning, source=self, stacklevel=2)
            self._body.ask_to_leave()
