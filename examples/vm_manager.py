"""An async VM manager in miniature: several machines, each with a disk on an IOThread of its own.

What a manager of real machines needs of a block layer happens here in a few seconds:

* the machines write at once, on their own threads, and share one throttle group;
* the disk of one gets a live snapshot: drained, an overlay becomes its root, and it goes on;
* the storage of another runs full: the write that failed stops that machine alone, the operator makes room and lets
  it go on, and the write is done again;
* what each disk does is printed live, and Ctrl-C ends all of it cleanly.

    python examples/vm_manager.py [FOLDER] [--machines N] [--writes N]
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import sys
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

import blockio
from blockio import BlockBackend, BlockError, BlockIoError, ErrorAction, IOThread, MachineState, RunState
from blockio.buffers import IoVector
from blockio.driver.base import FilterDriver
from blockio.driver.registry import register, unregister
from blockio.graph.mutate import replace_child
from blockio.graph.open import open_node
from blockio.img import create
from blockio.io.node_io import NodeIO
from blockio.throttle import ThrottleConfig, ThrottleGroup
from blockio.types import RequestFlags

DISK: Final = 16 << 20
BLOCK: Final = 4096
SLOTS: Final = 64
"""How many blocks a guest writes in turn, over and over."""


class Storage(FilterDriver):
    """Storage that can run full: between a format and its file. Growing files are what fills it in real life."""

    name = "example-storage"
    full: Final[set[str]] = set()
    """The nodes that have no room."""

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """ENOSPC while it is full."""
        if self.host.node_name in self.full:
            raise BlockError(errno=errno.ENOSPC)
        await super().co_pwritev(offset, iov, flags)

    def try_pwritev(self, offset: int, bufs: Any, nbytes: int) -> bool:
        """Not past the check."""
        return self.host.node_name not in self.full and super().try_pwritev(offset, bufs, nbytes)


class Machine:
    """One machine: a guest that writes, its disk, its thread. What is async here runs in that thread."""

    def __init__(self, name: str, thread: IOThread, writes: int) -> None:
        self.name = name
        self.context = thread.context
        self.writes = writes
        self.run_state = RunState()
        self.blk: BlockBackend
        self.written = 0
        self.snapshots = 0
        self._changed = asyncio.Condition()

    async def plug_in(self, image: Path, group: ThrottleGroup) -> None:
        """Open *image* and make it this machine's disk."""
        file = {"driver": "file", "filename": str(image)}
        storage = {"driver": Storage.name, "node-name": f"{self.name}-storage", "file": file}
        self.blk = await BlockBackend.new_open(options={"driver": "qcow2", "file": storage})
        self.blk.monitor_add_blk(self.name)
        self.blk.set_run_state(self.run_state)
        self.blk.set_on_error("report", "enospc")
        self.blk.iostatus_enable()
        self.blk.stats.set_timing(True)
        self.blk.throttle.io_limits_enable(group)
        self.run_state.add_change_handler(lambda _running, _state: self.context.schedule_bh(self._wake))

    async def unplug(self) -> None:
        """Close the disk."""
        self.blk.monitor_remove_blk()
        await self.blk.close()

    def _wake(self) -> None:
        self._tell = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, ready: Callable[[], bool]) -> None:
        """Wait until *ready*, which depends on what the guest has written and on the run state."""
        async with self._changed:
            await self._changed.wait_for(ready)

    def stopped(self) -> bool:
        """Whether an error has stopped it."""
        return self.run_state.check(MachineState.IO_ERROR)

    # -- the guest

    async def boot(self) -> None:
        """Write block after block, then see whether all is there."""
        while self.written < self.writes:
            await self.device(lambda: self.blk.co_pwritev(self.place(self.written), self.block(self.written)))
            self.written += 1
            await self._notify()
        memory = bytearray(BLOCK)
        for number in range(max(0, self.writes - SLOTS), self.writes):
            await self.blk.co_preadv(self.place(number), memory)
            if memory != self.block(number):
                raise SystemExit(f"{self.name}: write {number} is lost")
        await self.blk.co_flush()

    def place(self, number: int) -> int:
        """Where write *number* goes: a cluster of its own, so that the image grows at first."""
        return number % SLOTS * (DISK // SLOTS)

    def block(self, number: int) -> bytes:
        """What it writes."""
        return f"{self.name} {number} ".encode().ljust(32) * (BLOCK // 32)

    async def device(self, write: Callable[[], Awaitable[None]]) -> None:
        """What a disk controller does: ask the policy about an error, and try again when the machine goes on."""
        while True:
            await self.until(lambda: self.run_state.running)
            try:
                await write()
            except BlockError as error:
                action = self.blk.get_error_action(is_read=False, error=error.errno or errno.EIO)
                self.blk.error_action(action, is_read=False, error=error.errno or errno.EIO)
                if action is ErrorAction.REPORT:
                    raise
                if action is ErrorAction.IGNORE:
                    return
            else:
                return

    # -- the manager's wishes

    async def snapshot(self, folder: Path) -> None:
        """What is on the disk now stays as it is; from here on the guest writes into an overlay."""
        below = self.blk.bs
        assert below is not None
        self.snapshots += 1
        overlay = folder / f"{self.name}.{self.snapshots}.qcow2"
        base = folder / f"{self.name}.qcow2"
        await create(
            str(overlay), "qcow2", size=DISK, backing_file=str(base), backing_format="qcow2", open_backing=False
        )
        file = {"driver": "file", "filename": str(overlay)}
        options = {"driver": "qcow2", "file": file, "backing": below.node_name}
        async with self.blk.drained():
            node = await open_node(options=options, path_factory=NodeIO)
            try:
                assert self.blk.root is not None
                await replace_child(self.blk.root, node)
            finally:
                await node.unref()


class Manager:
    """Looks after the machines, from the main loop."""

    def __init__(self, folder: Path, console: Console) -> None:
        self.folder = folder
        self.console = console
        self.group = ThrottleGroup(config=ThrottleConfig.of(iops_total=2000, iops_total_max=4000))
        self.machines: dict[str, Machine] = {}

    async def run(self, count: int, writes: int) -> None:
        """Start *count* machines, look after them until each has written *writes* blocks, and end."""
        async with AsyncExitStack() as stack:
            for number in range(count):
                name = f"vm{number}"
                thread = await stack.enter_async_context(IOThread(name))
                image = self.folder / f"{name}.qcow2"
                await create(str(image), "qcow2", size=DISK)
                machine = self.machines[name] = Machine(name, thread, writes)
                await machine.context.run(machine.plug_in(image, self.group))
                stack.push_async_callback(self.unplug, machine)
            with Live(console=self.console, auto_refresh=False, transient=True) as live:
                async with asyncio.TaskGroup() as tasks:
                    helpers = [
                        tasks.create_task(self.operate()),
                        tasks.create_task(self.break_storage("vm1", writes // 3)),
                        tasks.create_task(self.show(live)),
                    ]
                    tasks.create_task(self.take_snapshot("vm0", writes // 2))
                    async with asyncio.TaskGroup() as guests:
                        for machine in self.machines.values():
                            guests.create_task(machine.context.run(machine.boot()))
                    for helper in helpers:
                        helper.cancel()
            self.console.print(await self.table())
            self.console.print(f"{count} machines wrote {count * writes} blocks, and all are there")

    async def unplug(self, machine: Machine) -> None:
        """The machine's end, in its own thread."""
        await machine.context.run(machine.unplug())

    async def operate(self) -> None:
        """The operator: hears of every stop, makes room, lets the machine go on."""
        async with blockio.all_events() as events:
            async for event in events:
                if isinstance(event, BlockIoError) and event.action is ErrorAction.STOP:
                    machine = self.machines[event.device]
                    self.console.print(f"{event.device}: {event.operation} failed, {event.reason}: stopping")
                    await machine.context.run(machine.until(machine.stopped))
                    self.console.print(f"{event.device}: stopped ({machine.run_state.state}); making room")
                    Storage.full.discard(f"{event.device}-storage")
                    machine.context.schedule_bh(machine.blk.iostatus_reset)
                    machine.run_state.set(MachineState.RUNNING)
                    self.console.print(f"{event.device}: goes on")

    async def break_storage(self, name: str, after: int) -> None:
        """The storage of machine *name* is full when it has written *after* blocks."""
        machine = self.machines[name]
        await machine.context.run(machine.until(lambda: machine.written >= after))
        Storage.full.add(f"{name}-storage")

    async def take_snapshot(self, name: str, after: int) -> None:
        """Machine *name* gets a snapshot when it has written *after* blocks."""
        machine = self.machines[name]
        await machine.context.run(machine.until(lambda: machine.written >= after))
        await machine.context.run(machine.snapshot(self.folder))
        self.console.print(f"{name}: snapshot taken at write {machine.written}, it goes on in {machine.name}.1.qcow2")

    async def show(self, live: Live) -> None:
        """Print what the disks do, over and over."""
        while True:
            live.update(await self.table(), refresh=True)
            await asyncio.sleep(0.2)

    async def table(self) -> Table:
        """The machines and their disks as they are now."""
        table = Table("machine", "state", "written", "mean latency", "waiting", "failed", title="Disks")
        for machine in self.machines.values():
            table.add_row(*await machine.context.run(self.row(machine)))
        return table

    async def row(self, machine: Machine) -> tuple[str, ...]:
        """One line, asked for in the machine's own thread."""
        stats = machine.blk.stats.snapshot(machine.name).write
        latency = f"{(stats.mean_latency_ns or 0) / 1000:.0f} µs"
        state = f"{machine.run_state.state}"
        return machine.name, state, f"{stats.operations}", latency, f"{machine.blk.throttle.waiting}", f"{stats.failed}"


def main() -> int:
    """130 after Ctrl-C, as a shell expects."""
    parser = argparse.ArgumentParser(description="an async VM manager in miniature")
    parser.add_argument("folder", nargs="?", type=Path, help="where the disks are made; a temporary one by default")
    parser.add_argument("--machines", type=int, default=3)
    parser.add_argument("--writes", type=int, default=1000, help="how many blocks each machine writes")
    arguments = parser.parse_args()
    if arguments.machines < 2 or arguments.writes < 3:
        parser.error("two machines and three writes are the least that has something to show")
    register(Storage)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            manager = Manager(arguments.folder or Path(scratch), Console())
            asyncio.run(manager.run(arguments.machines, arguments.writes))
    except KeyboardInterrupt:
        print("interrupted: the machines are stopped and their disks closed")
        return 130
    finally:
        unregister(Storage)
    return 0


if __name__ == "__main__":
    sys.exit(main())
