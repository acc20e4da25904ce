"""AioContext and IOThread: one context a loop, bottom halves, hopping over and back, and how a thread ends."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from blockio.aio.context import AioContext, IOThread, finish


@pytest.mark.both_loops
async def test_one_context_for_each_loop() -> None:
    context = AioContext.current()
    assert AioContext.current() is context
    assert context.loop is asyncio.get_running_loop()
    assert context.thread_id == threading.get_ident()
    assert context.is_current
    async with IOThread("t0") as thread:
        assert thread.context is not context
        assert thread.context.name == "t0"
        assert not thread.context.is_current


def test_no_context_without_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        AioContext.current()


@pytest.mark.both_loops
async def test_bottom_halves_keep_their_order() -> None:
    seen: list[int] = []
    done = asyncio.Event()
    here = AioContext.current()
    async with IOThread() as thread:
        for number in range(5):
            thread.context.schedule_bh(seen.append, number)
        thread.context.schedule_bh(here.schedule_bh, done.set)
        await done.wait()
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.both_loops
async def test_a_coroutine_hops_over_and_back() -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")
    var.set("taken along")

    async def there() -> tuple[AioContext, str]:
        await asyncio.sleep(0)
        return AioContext.current(), var.get()

    async def fails() -> None:
        raise LookupError("over there")

    async with IOThread() as thread:
        assert await thread.context.run(there()) == (thread.context, "taken along")
        with pytest.raises(LookupError, match="over there"):
            await thread.context.run(fails())
    here = AioContext.current()
    assert (await here.run(there()))[0] is here


@pytest.mark.both_loops
async def test_cancelling_a_hop_waits_for_the_other_side() -> None:
    here = AioContext.current()
    started = asyncio.Event()
    order: list[str] = []

    async def there() -> None:
        here.schedule_bh(started.set)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            order.append("the other side ended")

    async with IOThread() as thread:
        hop = asyncio.create_task(thread.context.run(there()))
        await started.wait()
        hop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hop
        order.append("we ended")
        assert order == ["the other side ended", "we ended"]
        assert await thread.context.run(asyncio.sleep(0, "usable")) == "usable"


async def test_a_hop_whose_other_side_cancels_itself() -> None:
    async def there() -> None:
        raise asyncio.CancelledError

    async with IOThread() as thread:
        with pytest.raises(asyncio.CancelledError):
            await thread.context.run(there())


async def test_a_hop_to_a_closed_loop() -> None:
    async with IOThread() as thread:
        context = thread.context
    coro: Coroutine[Any, Any, None] = asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="closed"):
        await context.run(coro)


@pytest.mark.both_loops
async def test_stopping_cancels_what_still_runs_there() -> None:
    here = AioContext.current()
    started = asyncio.Event()

    async def there() -> None:
        here.schedule_bh(started.set)
        await asyncio.get_running_loop().create_future()

    async with IOThread() as thread:
        hop = asyncio.create_task(thread.context.run(there()))
        await started.wait()
    with pytest.raises(asyncio.CancelledError):
        await hop


def test_a_thread_for_code_without_a_loop() -> None:
    with IOThread("plain") as thread:
        done = threading.Event()
        thread.context.schedule_bh(done.set)
        assert done.wait(10)
    with pytest.raises(RuntimeError, match="not running"):
        _ = thread.context
    with pytest.raises(RuntimeError, match="already started"):
        thread.start()
    thread.stop()


def _broken_loop() -> asyncio.AbstractEventLoop:
    raise OSError(24, "Too many open files")


async def test_an_error_at_the_start_surfaces() -> None:
    with pytest.raises(OSError, match="Too many open files"):
        async with IOThread(loop_factory=_broken_loop):
            raise AssertionError("not reached")


def test_an_error_at_the_start_surfaces_without_a_loop() -> None:
    thread = IOThread(loop_factory=_broken_loop)
    with pytest.raises(OSError, match="Too many open files"):
        thread.start()
    thread.stop()


async def test_cancelled_while_starting() -> None:
    async def use() -> None:
        async with IOThread():
            raise AssertionError("not reached")

    task = asyncio.create_task(use())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_forgotten_thread_says_so_and_ends() -> None:
    thread = IOThread("lost")
    thread.start()
    worker = next(t for t in threading.enumerate() if t.name == "lost")
    holder = [thread]
    del thread
    with pytest.warns(ResourceWarning, match="'lost' was never stopped"):
        holder.clear()
    gc.collect()
    worker.join(10)
    assert not worker.is_alive()


async def test_finish_waits_out_cancellations_and_passes_results_on() -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()
    task = asyncio.create_task(finish(future))
    for _ in range(2):
        await asyncio.sleep(0)
        task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    future.set_result(1)
    with pytest.raises(asyncio.CancelledError):
        await task
    done: asyncio.Future[int] = loop.create_future()
    done.set_result(2)
    assert await finish(done) == 2


class _Shared:
    def __init__(self) -> None:
        self.closings = 0

    def close(self) -> None:
        self.closings += 1


async def test_a_shared_resource_lives_as_long_as_its_users() -> None:
    context = AioContext.current()
    first = context.share(_Shared, _Shared)
    assert context.share(_Shared, _Shared) is first
    context.unshare(_Shared)
    assert first.closings == 0
    context.unshare(_Shared)
    assert first.closings == 1
    assert context.share(_Shared, _Shared) is not first
    context.unshare(_Shared)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
async def test_a_loop_that_is_closed_before_an_errand_begins(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Nobody is left waiting for ever, and the coroutine is closed."""
    loop = new_loop()
    context = await asyncio.to_thread(loop.run_until_complete, _current())

    async def never() -> None:
        raise AssertionError("it ran")

    errand = asyncio.create_task(context.run(never()))
    await asyncio.sleep(0)
    loop.close()
    with pytest.raises(RuntimeError, match="was closed"):
        await errand
    with pytest.raises(RuntimeError, match="closed"):
        await context.run(never())


async def _current() -> AioContext:
    return AioContext.current()
