"""A guest whose disk gets another backing file again and again, and a stack that opens what the header names."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any, Final

from blockio.backend import BlockBackend
from blockio.backend.rebase import rebase
from blockio.testing.driver import MemoryDisk
from blockio.testing.guest import BackendDisk, Guest, GuestDisk
from blockio.testing.rig import Disks, StackRig
from blockio.testing.wrapping import Wrap
from blockio_drivers.qcow2.header import Header

__all__ = ["BACKING", "RebaseRig", "rebases"]

_SIZE: Final = 40 << 10
_OLD: Final = random.Random(1).randbytes(_SIZE)

BACKING: Final[dict[str, bytes]] = {
    "base.raw": _OLD,
    "another-name-of-the-same.raw": _OLD,
    "n" * 700: _OLD[: 9 << 10] + bytes(3 << 10) + _OLD[12 << 10 : 20 << 10],
    "other.raw": b"other" * 20000,
}
"""What there is to stand on. The disk stays the same whichever it is."""


class RebaseRig:
    """A qcow2 image over the one of ``BACKING`` that it names."""

    @asynccontextmanager
    async def open(
        self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False
    ) -> AsyncIterator[GuestDisk]:
        name = Header.decode(bytes(disks["file"][:65536])).backing_file
        with ExitStack() as stack:
            backing = None if name is None else _raw(stack, name)

            def chain(options: Any) -> dict[str, Any]:
                return {"driver": "qcow2", "file": options["file"], "backing": backing}

            async with StackRig(chain).open(disks, wrap=wrap, read_only=read_only) as disk:
                yield disk


def _raw(stack: ExitStack, name: str) -> dict[str, Any]:
    options = stack.enter_context(MemoryDisk(bytearray(BACKING[name]))).options()
    return {"driver": "raw", "file": options}


async def rebases(rnd: random.Random, guest: Guest, rounds: int = 3) -> None:
    """A few writes, then the next backing file; or none."""
    assert isinstance(guest.disk, BackendDisk)
    node = guest.disk.blk.bs
    assert node is not None
    for _ in range(rounds):
        for _ in range(3):
            sector = rnd.randrange(guest.length // 512 - 4)
            await guest.write(sector * 512, rnd.randbytes(rnd.randrange(1, 5) * 512))
        if rnd.random() < 0.5:
            await guest.flush()
        name = rnd.choice((None, *BACKING))
        if name is None:
            await guest.do(rebase(node, None, None, None))
            continue
        with ExitStack() as stack:
            new = await BlockBackend.new_open(options=_raw(stack, name))
            async with new:
                assert new.bs is not None
                await guest.do(rebase(node, new.bs, name, rnd.choice(("raw", "a-long-one"))))
            # The disk in memory goes, the node stays below: it knows what it has.
