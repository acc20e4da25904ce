"""Requests, drains, moves, resizes, media changes, throttle changes and cancellations, all at once, with a seed.

Workers on three threads write, zero, read back, flush and cancel, each on blocks of its own. Meanwhile one operator
moves the backend from thread to thread, takes the medium out and puts it in again, joins and leaves a throttle group;
the other drains and resizes. At the end the counts are zero and the data is what was written.

``make stress`` does ten thousand moves and ten thousand drains, or ``STRESS_STEPS``, with a seed of its own.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import AsyncExitStack, suppress
from typing import Final

import pytest

from blockio.aio.context import AioContext, IOThread
from blockio.backend import BlockBackend
from blockio.errors import NoMedium
from blockio.graph.node import BlockNode
from blockio.testing.driver import MemoryDisk
from blockio.throttle import ThrottleConfig, ThrottleGroup

STEPS: Final = int(os.environ.get("STRESS_STEPS", "200"))
SEED: Final = int(os.environ.get("STRESS_SEED", "1"))
BLOCK: Final = 512
BLOCKS: Final = 8
WORKERS: Final = 9
USED: Final = WORKERS * BLOCKS * BLOCK


class SlowDisk(MemoryDisk):
    """Its requests take some turns of the loop, and it remembers when the last flush and each write came."""

    def __init__(self, length: int, seed: int) -> None:
        super().__init__(length, fast=False)
        self.dice = random.Random(seed)
        self.arrived = 0
        self.last_flush = 0
        self.last_write: dict[int, int] = {}

    async def arrive(self, operation: str, offset: int, nbytes: int) -> None:
        """Nothing is kept in ``log``: there are too many."""
        for _ in range(self.dice.randrange(3)):
            await asyncio.sleep(0)
        self.arrived += 1
        if operation == "flush":
            self.last_flush = self.arrived
        elif operation in ("write", "zero"):
            self.last_write[offset] = self.arrived


class Worker:
    """One writer with blocks of its own. ``may_hold`` says for each what it may hold: one thing, if nothing failed."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.dice = random.Random(f"{world.seed}/{number}")
        self.may_hold: list[set[bytes]] = [{bytes(BLOCK)} for _ in range(BLOCKS)]
        self.acknowledged = 0
        """When the last write that was acknowledged had come to the disk."""
        self.ended: Counter[str] = Counter()

    def offset(self, block: int) -> int:
        return (self.number * BLOCKS + block) * BLOCK

    async def live(self) -> None:
        """Until the operators are done; every request ends, and in one of the ways a request may."""
        while not self.world.over:
            await self.step()

    async def step(self) -> None:
        blk, dice = self.world.blk, self.dice
        block = dice.randrange(BLOCKS)
        try:
            match dice.randrange(10):
                case 0 | 1 | 2 | 3:
                    await self.write(block, dice.randbytes(8) * (BLOCK // 8))
                case 4:
                    await self.write(block, bytes(BLOCK))
                case 5:
                    await self.cancelled(block)
                case 6:
                    await self.flush()
                case _:
                    await self.check(block)
        except NoMedium:
            self.ended["no medium"] += 1
        assert blk.in_flight >= 0

    async def write(self, block: int, data: bytes) -> None:
        before = self.may_hold[block]
        self.may_hold[block] = {*before, data}
        if any(data):
            await self.world.blk.co_pwritev(self.offset(block), data)
        else:
            await self.world.blk.co_pwrite_zeroes(self.offset(block), BLOCK)
        self.may_hold[block] = {data}
        self.acknowledged = self.world.disk.last_write[self.offset(block)]
        self.ended["written"] += 1

    async def cancelled(self, block: int) -> None:
        data = self.dice.randbytes(8) * (BLOCK // 8)
        task = asyncio.ensure_future(self.write(block, data))
        for _ in range(self.dice.randrange(12)):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            self.ended["cancelled"] += 1

    async def flush(self) -> None:
        before = self.acknowledged
        await self.world.blk.co_flush()
        assert self.world.disk.last_flush > before or not before, "a flush was answered before it came to the disk"
        self.ended["flushed"] += 1

    async def check(self, block: int) -> None:
        memory = bytearray(BLOCK)
        await self.world.blk.co_preadv(self.offset(block), memory)
        assert bytes(memory) in self.may_hold[block], f"worker {self.number}, block {block}"
        self.may_hold[block] = {bytes(memory)}
        self.ended["read"] += 1


class World:
    """The backend, its disk, and who works on it."""

    def __init__(self, blk: BlockBackend, disk: SlowDisk, seed: int, contexts: list[AioContext]) -> None:
        self.blk = blk
        self.disk = disk
        self.seed = seed
        self.contexts = contexts
        self.group = ThrottleGroup(config=ThrottleConfig.of(iops_total=100_000))
        self.over = False
        self.moves = 0
        self.drains = 0

    async def run(self, steps: int) -> list[Worker]:
        """*steps* moves and as many drains."""
        workers = [Worker(self, number) for number in range(WORKERS)]
        async with asyncio.TaskGroup() as tasks:
            for worker in workers:
                context = self.contexts[worker.number % len(self.contexts)]
                tasks.create_task(context.run(worker.live()))
            async with asyncio.TaskGroup() as operators:
                operators.create_task(self.move_about(steps))
                operators.create_task(self.drain_and_resize(steps))
            self.over = True
        return workers

    async def move_about(self, steps: int) -> None:
        """The only one who moves, so that it knows where the backend is."""
        dice, blk = random.Random(f"{self.seed}/moves"), self.blk
        for step in range(steps):
            target = dice.choice([context for context in self.contexts if context is not blk.context])
            await blk.set_aio_context(target)
            assert blk.context is target
            self.moves += 1
            if step % 10 == 3:
                await target.run(self.change_throttling(dice))
            if step % 20 == 7:
                await target.run(self.change_medium(dice))

    async def change_throttling(self, dice: random.Random) -> None:
        throttle = self.blk.throttle
        if throttle.group is None:
            throttle.io_limits_enable(self.group)
        elif dice.randrange(3):
            throttle.set_io_limits(ThrottleConfig.of(iops_total=dice.choice((20_000, 100_000)), bps_write=10**9))
        else:
            await throttle.io_limits_disable()

    async def change_medium(self, dice: random.Random) -> None:
        node = self.blk.bs
        assert node is not None
        node.ref()
        await self.blk.remove_bs()
        for _ in range(dice.randrange(10)):
            await asyncio.sleep(0)
        await self.blk.insert_bs(node)
        await node.unref()

    async def drain_and_resize(self, steps: int) -> None:
        dice, blk = random.Random(f"{self.seed}/drains"), self.blk
        for step in range(steps):
            async with blk.drained():
                assert blk.in_flight == 0
                if step % 5 == 0:
                    async with blk.drained():
                        await asyncio.sleep(0)
                assert blk.in_flight == 0
            self.drains += 1
            if step % 10 == 5:
                with suppress(NoMedium):
                    await blk.co_truncate(USED + dice.randrange(100) * BLOCK)


async def whole_run(seed: int, steps: int) -> tuple[World, list[Worker]]:
    async with AsyncExitStack() as stack:
        loop_factory = type(asyncio.get_running_loop())
        threads = [await stack.enter_async_context(IOThread(f"io{n}", loop_factory=loop_factory)) for n in range(2)]
        home = AioContext.current()
        disk = SlowDisk(USED, seed)
        with disk:
            blk = await BlockBackend.new_open(options=disk.options(), resize=True)
            node = blk.bs
            assert isinstance(node, BlockNode)
            world = World(blk, disk, seed, [home, *(thread.context for thread in threads)])
            tasks = [await context.run(_tasks()) for context in world.contexts]
            workers = await world.run(steps)
            await blk.set_aio_context(home)
            assert blk.in_flight == 0
            assert node.in_flight == 0
            assert node.quiesce_counter == 0
            assert not blk.quiesced
            assert not blk._parking
            if blk.throttle.group is not None:
                assert blk.throttle.waiting == 0
                await blk.throttle.io_limits_disable()
            assert world.group.members == ()
            assert world.group._turns == [None, None]
            assert [await context.run(_tasks()) for context in world.contexts] == tasks
            for worker in workers:
                for block in range(BLOCKS):
                    await worker.check(block)
            await blk.close()
    return world, workers


async def _tasks() -> int:
    return len(asyncio.all_tasks())


@pytest.mark.both_loops
async def test_everything_at_once_while_it_moves() -> None:
    asyncio.get_running_loop().set_debug(False)  # where each callback came from costs ten times the callback
    world, workers = await asyncio.wait_for(whole_run(SEED, STEPS), 30 + STEPS / 10)
    assert (world.moves, world.drains) == (STEPS, STEPS)
    ended = sum((worker.ended for worker in workers), Counter[str]())
    print(f"seed {SEED}: {STEPS} moves and drains; requests that ended: {dict(ended)}")
    assert all(ended[how] for how in ("written", "cancelled", "flushed", "read"))
