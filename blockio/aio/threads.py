"""WorkerPool: blocking calls in worker threads, for one context.

The bottom of the engine ladder: it serves where io_uring is missing or forbidden, and everywhere for calls that
io_uring does not know (opening, locking, ``lseek``, ioctls). Leaner than an executor: completions of many workers are
carried back by one wake-up of the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Final, TypeVar, TypeVarTuple

from blockio.aio import syscalls
from blockio.aio.context import AioContext

__all__ = ["MAX_WORKERS", "WorkerPool", "in_worker"]

MAX_WORKERS: Final = 64
"""How many threads one context starts at most, as QEMU does; more calls than that queue up."""

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


class _Job:
    __slots__ = ("args", "done", "error", "fn", "result", "tickets", "waiter")

    def __init__(self, fn: Callable[..., Any], args: tuple[Any, ...], waiter: asyncio.Future[None]) -> None:
        self.fn = fn
        self.args = args
        self.waiter = waiter
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.tickets = [None]
        """Whoever pops the one ticket decides: the worker runs the job, or a cancellation withdraws it."""

    def claim(self) -> bool:
        try:
            self.tickets.pop()
        except IndexError:
            return False
        return True


class WorkerPool:
    """Up to ``MAX_WORKERS`` threads, started when all others are busy. Shared by the files of one context.

    Invariant: ``_active`` counts the jobs handed out and not yet seen done; it and ``_threads`` are touched by the
    loop's thread only. ``_finished`` is filled by workers and emptied by ``_collect``, for which a wake-up is under way
    whenever ``_woken`` is set.
    """

    name = "threads"

    def __init__(self, context: AioContext) -> None:
        self._loop = context.loop
        self._label = context.name
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._finished: deque[_Job] = deque()
        self._woken = False
        self._threads: list[threading.Thread] = []
        self._active = 0

    def close(self) -> None:
        """Let the threads go. Idle ones leave at once and are seen off; busy ones leave when their job is done."""
        for _ in self._threads:
            self._queue.put(None)
        if not self._active:
            for thread in self._threads:
                thread.join()
        self._threads.clear()

    # -- running a call

    async def run(self, fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
        """``fn(*args)`` in a worker.

        Cancelled while no worker has begun: *fn* is never called. Later: the call is awaited to its end, because it
        may own the caller's memory, then CancelledError is raised and its result dropped.
        """
        job = _Job(fn, args, self._loop.create_future())
        self._active += 1
        if self._active > len(self._threads) < MAX_WORKERS:
            self._start_worker()
        self._queue.put(job)
        try:
            await job.waiter
        except asyncio.CancelledError:
            if not job.done and job.claim():
                self._active -= 1
                raise
            while not job.done:
                job.waiter = self._loop.create_future()
                try:
                    await job.waiter
                except asyncio.CancelledError:
                    continue
            raise
        if job.error is not None:
            try:
                raise job.error
            finally:
                job.error = None  # the traceback refers to this frame: do not leave a cycle behind
        result: _T = job.result
        return result

    def _start_worker(self) -> None:
        thread = threading.Thread(target=self._work, name=f"{self._label}-worker-{len(self._threads)}", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                self._active -= 1
                raise
            return  # no more threads to be had: those there are serve
        self._threads.append(thread)

    def _work(self) -> None:
        get = self._queue.get
        while (job := get()) is not None:
            if not job.claim():
                continue
            try:
                job.result = job.fn(*job.args)
            except BaseException as error:  # handed to whoever awaits the job
                job.error = error
            self._finished.append(job)
            del job
            # Set before it is looked at again in _collect, which clears it before it looks: no job is left lying.
            if not self._woken:
                self._woken = True
                try:
                    self._loop.call_soon_threadsafe(self._collect)
                except RuntimeError:
                    return  # the loop is closed, and nobody waits any more

    def _collect(self) -> None:
        self._woken = False
        finished = self._finished
        while finished:
            job = finished.popleft()
            job.done = True
            self._active -= 1
            if not job.waiter.done():
                job.waiter.set_result(None)

    # -- as an engine; each is one system call, which may transfer less than asked

    async def read(self, fd: int, offset: int, views: list[memoryview], _batch: int = 0) -> int:
        """One ``preadv``."""
        return await self.run(os.preadv, fd, views, offset)

    async def write(self, fd: int, offset: int, views: list[memoryview], rwf: int, _batch: int = 0) -> int:
        """One ``pwritev`` with RWF flags *rwf*."""
        return await self.run(os.pwritev, fd, views, offset, rwf)

    async def fdatasync(self, fd: int) -> None:
        """``fdatasync``."""
        await self.run(os.fdatasync, fd)

    async def fallocate(self, fd: int, mode: int, offset: int, nbytes: int) -> None:
        """``fallocate`` with FALLOC_FL flags *mode*."""
        await self.run(syscalls.fallocate, fd, mode, offset, nbytes)

    def plug(self) -> None:
        """Nothing to hold back: every call goes to its own worker."""

    def unplug(self) -> None:
        """See ``plug``."""


async def in_worker(fn: Callable[[*_Ts], _T], *args: *_Ts) -> _T:
    """``fn(*args)`` in a worker of the running loop's context, for callers that have no engine (yet)."""
    context = AioContext.current()
    pool = context.share(WorkerPool, lambda: WorkerPool(context))
    try:
        return await pool.run(fn, *args)
    finally:
        context.unshare(WorkerPool)
