"""A throttled backend moves between threads: what waits goes through, and the limits are waiting over there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from blockio.aio.context import AioContext, IOThread
from blockio.backend import BlockBackend
from blockio.testing.driver import MemoryDisk
from blockio.throttle import ThrottleConfig, ThrottleGroup

SLOW = ThrottleConfig.of(iops_total=1)
"""One request goes; the next would have to wait for the better part of a second."""


async def until(ready: Callable[[], bool]) -> None:
    """Whatever happens on the other thread."""
    while not ready():  # noqa: ASYNC110  # there is no event for what other threads do
        await asyncio.sleep(0)


@pytest.mark.both_loops
@pytest.mark.parametrize("layer", ["backend", "filter"])
async def test_there_and_back(layer: str) -> None:
    group = ThrottleGroup("moving", SLOW)
    here = AioContext.current()
    async with IOThread() as thread:
        with MemoryDisk(fast=False) as disk:
            options = disk.options()
            if layer == "filter":
                options = {"driver": "throttle", "throttle-group": "moving", "file": options}
            async with await BlockBackend.new_open(options=options) as blk:
                if layer == "backend":
                    blk.throttle.io_limits_enable(group)
                (member,) = group.members
                await blk.co_pwritev(0, b"0")
                for number, context in enumerate((thread.context, here, thread.context), 1):
                    waiting = asyncio.create_task(blk.co_pwritev(number, b"x"))
                    await until(lambda: member.waiting == 1)
                    assert not waiting.done()
                    await blk.set_aio_context(context)
                    await waiting
                    assert group.members == (member,)
                    assert member.context is context
                    # And the limits hold in the new thread, until they are lifted from this one.
                    held = asyncio.create_task(blk.co_pwritev(number, b"y"))
                    await until(lambda: member.waiting == 1)
                    assert disk.data[number] == ord("x")
                    group.set_config(ThrottleConfig())
                    await held
                    assert disk.data[number] == ord("y")
                    group.set_config(SLOW)
                    await blk.co_pwritev(0, b"0")
                assert member.waiting == 0
    assert group.members == ()
    assert group._turns == [None, None]
    group.delete()


async def test_a_move_that_is_cancelled_leaves_it_throttled_where_it_was() -> None:
    group = ThrottleGroup(config=SLOW)
    here = AioContext.current()
    async with IOThread() as thread:
        with MemoryDisk(fast=False) as disk:
            async with await BlockBackend.new_open(options=disk.options()) as blk:
                blk.throttle.io_limits_enable(group)
                (member,) = group.members
                disk.stall()
                slow = asyncio.create_task(blk.co_pwritev(0, b"0"))
                await until(lambda: disk.waiting == 1)
                move = asyncio.create_task(blk.set_aio_context(thread.context))
                await asyncio.sleep(0)
                move.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await move
                disk.go()
                await slow
                assert member.context is blk.context is here
                held = asyncio.create_task(blk.co_pwritev(0, b"1"))
                await until(lambda: member.waiting == 1)
                await blk.drain()
                await held
                assert blk.in_flight == 0
    assert group.members == ()
