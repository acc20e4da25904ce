"""A guest whose image is amended again and again: versions up and down, refcounts wide and narrow, lazy or not."""

from __future__ import annotations

import errno
import random
from contextlib import suppress
from typing import Any, Final

from blockio.driver.snapshots import SnapshotInfo
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.testing.guest import Guest
from blockio_drivers.qcow2.options import Qcow2AmendOptions
from tests.qcow2.engine import Disk
from tests.qcow2.snapshot_work import digest

__all__ = ["VERSIONS", "WIDTHS", "Amends", "amend", "lengthen"]

VERSIONS: Final = ({"compat": "0.10"}, {"compat": "1.1"})
WIDTHS: Final = tuple({"compat": "1.1", "refcount_bits": bits} for bits in (1, 2, 4, 8, 16, 32, 64))


async def amend(disk: Disk, *, force: bool = False, **options: Any) -> None:
    """As the framework amends a disk."""

    async def resize(length: int) -> None:
        await disk.truncate(length)

    await disk.driver.co_amend(Qcow2AmendOptions(**options), force=force, resize=resize)


class Amends:
    """Some requests, then one of *choices*, so many times; *snapshots* are taken on the way."""

    def __init__(
        self, cluster: int, choices: tuple[dict[str, Any], ...], *, rounds: int = 4, snapshots: int = 0
    ) -> None:
        self.cluster = cluster
        self.choices = choices
        self.rounds = rounds
        self.snapshots = snapshots

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        disk = guest.disk
        assert isinstance(disk, Disk)
        for number in range(self.rounds):
            for _ in range(4):
                await self._request(rnd, guest)
            if number < self.snapshots:
                failures = guest.failures
                content = await guest.read(0, guest.length)
                if guest.failures == failures:
                    await _snapshot(guest, disk, content)
                await self._request(rnd, guest)
            if rnd.random() < 0.5:
                await guest.flush()
            with suppress(OptionError, UnsupportedFeature):  # counts that have no room, what version 2 has not
                await guest.do(amend(disk, **rnd.choice(self.choices)))
        await self._request(rnd, guest)

    async def _request(self, rnd: random.Random, guest: Guest) -> None:
        clusters = guest.length // self.cluster
        count = rnd.randrange(1, 4)
        offset = rnd.randrange(clusters - count) * self.cluster
        kind = rnd.randrange(4)
        if kind < 2:
            await guest.write(offset, rnd.randbytes(count * self.cluster))
        elif kind == 2:
            with suppress(UnsupportedFeature):  # version 2 over a backing file
                await guest.zero(offset, count * self.cluster, rnd.choice((0, 4)))
        else:
            with suppress(UnsupportedFeature):
                await guest.discard(offset, count * self.cluster)


async def _snapshot(guest: Guest, disk: Disk, content: bytes) -> None:
    """Keep *content*, unless refcounts have no room for it."""
    try:
        await guest.do(disk.driver.co_snapshot_create(SnapshotInfo(name=digest(content))))
    except BlockError as error:
        if error.errno != errno.EINVAL:
            raise


async def lengthen(rnd: random.Random, guest: Guest) -> None:
    """A new size, together with another version and width: each is one step."""
    disk = guest.disk
    assert isinstance(disk, Disk)
    size = guest.length
    steps: tuple[tuple[int, dict[str, Any]], ...] = (
        (size * 2, {"compat": "1.1", "refcount_bits": 64, "lazy_refcounts": True}),
        (size, {"refcount_bits": 16, "lazy_refcounts": False, "compat": "0.10"}),
    )
    for length, options in steps:
        await guest.write(rnd.randrange(size // 512 - 8) * 512, rnd.randbytes(4096))
        with guest.promises.resizing(length):
            await amend(disk, size=length, **options)
    await guest.flush()
