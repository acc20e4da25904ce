"""Rigs: driver stacks that can be set up again and again over disks in memory.

The explorers of crashes and faults build a stack hundreds of times; a ``Rig`` is how. ``StackRig`` opens any stack
through the graph from its options. A rig of your own may open a driver without a graph, which takes less time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from blockio.backend.backend import BlockBackend
from blockio.driver.gate import AllowAll
from blockio.testing.driver import MemoryDisk
from blockio.testing.guest import SECTOR, Allowed, BackendDisk, Guest, GuestDisk, Workload
from blockio.testing.wrapping import Wrap, wrapped
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.driver.gate import OpenGate

__all__ = ["Disks", "Rig", "StackRig", "no_errors", "sound", "still_works", "writable"]

Disks: TypeAlias = Mapping[str, bytearray]
"""The contents of the disks below a stack, by name. The stack changes them in place."""


class Rig(Protocol):
    """A stack over disks in memory."""

    def open(
        self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False
    ) -> AbstractAsyncContextManager[GuestDisk]:
        """The stack, opened; closed at the end. With *wrap* it gets each disk's child wrapped."""


class StackRig:
    """A stack that is opened from options, through the graph.

    *stack* is given the options of each disk by its name and answers with those of the whole. *gate* decides over what
    images refer to (everything is allowed unless told); *flags* are ``unmap`` alone unless told.
    """

    def __init__(
        self,
        stack: Callable[[Mapping[str, Mapping[str, Any]]], Mapping[str, Any]],
        *,
        gate: OpenGate | None = None,
        flags: OpenFlags | None = None,
    ) -> None:
        self.stack = stack
        self.gate = gate or AllowAll()
        self.flags = flags or OpenFlags(unmap=True)

    @asynccontextmanager
    async def open(
        self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False
    ) -> AsyncIterator[GuestDisk]:
        """See ``Rig``. The first error of opening or closing is raised."""
        with ExitStack() as stack:
            options: dict[str, Mapping[str, Any]] = {}
            for name, data in disks.items():
                options[name] = stack.enter_context(MemoryDisk(data)).options()
                if wrap is not None:
                    options[name] = stack.enter_context(wrapped(wrap, name, options[name]))
            blk = await BlockBackend.new_open(
                options=self.stack(options),
                flags=self.flags.with_(read_only=read_only),
                gate=self.gate,
                resize=not read_only,
            )
            async with blk:
                yield BackendDisk(blk)


async def no_errors(disk: GuestDisk, *, leaks: bool = True) -> None:
    """The format's own check, where there is one, finds no error and no corruption, and leaks only if *leaks*."""
    found = await disk.check()
    if found is not None:
        assert not found.check_errors, f"the check itself failed: {found}"
        assert not found.corruptions, f"corrupt: {found}"
        assert leaks or not found.leaks, f"leaks: {found}"


async def sound(rig: Rig, disks: Disks, allowed: Allowed, *, leaks: bool = True, repairs: bool = False) -> None:
    """*disks* open read-only, the check finds no errors, and what is read is *allowed*.

    With *repairs* the format may need a writable open before its check finds it sound (lazy refcounts): it gets one,
    which must change nothing that is read.
    """
    async with rig.open(disks, read_only=True) as disk:
        content = await disk.read(0, disk.length)
        if not repairs:
            await no_errors(disk, leaks=leaks)
    allowed.judge(content)
    if repairs:
        async with rig.open(disks) as disk:
            await no_errors(disk, leaks=leaks)
            assert await disk.read(0, disk.length) == content, "the repair changed what is read"


async def writable(rig: Rig, disks: Disks, *, leaks: bool = True) -> None:
    """*disks* can be written to: what is written is there, nothing else changes, the check still finds no errors."""
    async with rig.open(disks) as disk:
        content = await disk.read(0, disk.length)
        offset = len(content) // 2 // SECTOR * SECTOR
        new = bytes(range(1, 129)) * (min(2 * SECTOR, len(content) - offset) // 128)
        await disk.write(offset, new)
        await disk.flush()
        wanted = content[:offset] + new + content[offset + len(new) :]
        assert await disk.read(0, disk.length) == wanted, "a write changed something else"
        await no_errors(disk, leaks=leaks)


async def still_works(disk: GuestDisk, guest: Guest, workload: Workload) -> None:
    """After a trouble that is over: nothing is held, *guest* finds what it may, and *workload* goes well."""
    disk.at_rest()
    await guest.verify()
    guest.forgiving = False
    await workload(guest)
    await guest.verify()
    await guest.flush()
    disk.at_rest()
