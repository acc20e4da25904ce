"""The crash scenarios: everything qcow2 does that changes metadata."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from blockio.driver.base import CheckFix
from blockio.testing.crash import CrashState, explore_crashes, record
from blockio.testing.guest import SECTOR, Guest
from blockio.testing.rig import Disks, StackRig
from blockio.testing.wrapping import Wrap
from blockio.types import PreallocMode, RequestFlags
from tests.qcow2.amend_work import VERSIONS, WIDTHS, Amends, lengthen
from tests.qcow2.crash import MakeImage, Scenario
from tests.qcow2.engine import Disk, Qcow2Rig, new_image, new_image_with_data_file, open_disk
from tests.qcow2.rebase_work import BACKING, RebaseRig, rebases
from tests.qcow2.snapshot_work import SnapshotRig, snapshots_at_work
from tests.support.qemu import qemu_img

__all__ = [
    "SCENARIOS",
    "SMALL",
    "Packed",
    "Requests",
    "Resizes",
    "SideBySide",
    "crashed",
    "fresh",
    "only_open",
    "overlay",
]

MAY_UNMAP: Final = int(RequestFlags.MAY_UNMAP)


# -- images


def fresh(clusters: int, cluster: int, **options: Any) -> MakeImage:
    """A new image of so many clusters, in a file that is longer: free clusters hold what was in them before."""

    async def make(rnd: random.Random) -> Mapping[str, bytearray]:
        image = await new_image(clusters * cluster, cluster_size=cluster, **options)
        return {"file": image.data + rnd.randbytes(rnd.choice((0, 10, 30)) * cluster)}

    return make


def overlay(clusters: int, cluster: int, **options: Any) -> MakeImage:
    """A new image over a backing file that is half as long."""

    async def make(rnd: random.Random) -> Mapping[str, bytes | bytearray]:
        size = clusters * cluster
        image = await new_image(size, cluster_size=cluster, backing_file="base.raw", backing_fmt="raw", **options)
        return {"file": image.data, "backing": rnd.randbytes(size // 2)}

    return make


def _named_overlay(cluster: int, **options: Any) -> MakeImage:
    """An overlay of 64 KiB over the first of ``BACKING``, which is shorter."""

    async def make(_rnd: random.Random) -> Mapping[str, bytearray]:
        name = next(iter(BACKING))
        image = await new_image(65536, cluster_size=cluster, backing_file=name, backing_fmt="raw", **options)
        return {"file": image.data}

    return make


def apart(clusters: int, cluster: int, *, below: bool = False, **options: Any) -> MakeImage:
    """A new image with a data file, in which there is anything unless it is raw; *below*: and half a backing file."""

    async def make(rnd: random.Random) -> Mapping[str, bytes | bytearray]:
        size = clusters * cluster
        if below:
            options.update(backing_file="base.raw", backing_fmt="raw")
        image, data = await new_image_with_data_file(size, cluster_size=cluster, **options)
        if not options.get("data_file_raw") and rnd.random() < 0.5:
            data.data[:] = rnd.randbytes(rnd.randrange(2 * size))
        backing = {"backing": rnd.randbytes(size // 2)} if below else {}
        return {"file": image.data, "data-file": data.data, **backing}

    return make


class InStep(Qcow2Rig):
    """Whenever somebody looks, the raw data file reads as the disk does."""

    @asynccontextmanager
    async def open(self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False) -> AsyncIterator[Disk]:
        async with super().open(disks, wrap=wrap, read_only=read_only) as disk:
            if read_only:
                content = await disk.read(0, disk.length)
                assert disks["data-file"][: disk.length].ljust(disk.length, b"\0") == content, "out of step"
            yield disk


def crashed(clusters: int, cluster: int, **options: Any) -> MakeImage:
    """What some crash left of an image: leaks, or with lazy refcounts a dirty image."""

    async def make(rnd: random.Random) -> Mapping[str, bytearray]:
        seed = rnd.getrandbits(32)
        image = await new_image(clusters * cluster, cluster_size=cluster, **options)
        run = await record(
            Qcow2Rig(), {"file": image.data}, lambda guest: Requests(cluster)(random.Random(seed), guest), seed=seed
        )
        states: list[CrashState] = []

        async def keep(state: CrashState) -> None:
            states.append(state)

        await explore_crashes(run.journal, keep, states=40, seed=seed)
        return rnd.choice(states).disks

    return make


def shared(clusters: int, cluster: int, **options: Any) -> MakeImage:
    """An image with two snapshots of QEMU's, whose clusters and tables the active disk shares."""

    async def make(rnd: random.Random) -> Mapping[str, bytearray]:
        image = await new_image(clusters * cluster, cluster_size=cluster, **options)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "image.qcow2"
            for name in ("one", "two"):
                async with open_disk(image) as disk:
                    for _ in range(4):
                        await disk.write(rnd.randrange(clusters - 3) * cluster, rnd.randbytes(3 * cluster))
                path.write_bytes(image.data)
                qemu_img("snapshot", "-c", name, path)
                image.data[:] = path.read_bytes()
        return {"file": image.data}

    return make


def full_refcount_table(**options: Any) -> MakeImage:
    """64-bit refcounts in 512-byte clusters: one cluster of refcount table counts 2 MiB, and almost all of that."""
    made: list[bytes] = []

    async def make(_rnd: random.Random) -> Mapping[str, bytes]:
        if not made:
            image = await new_image(3 << 20, cluster_size=512, refcount_bits=64, **options)
            async with open_disk(image) as disk:
                for start in range(0, 1940 << 10, 97 << 10):
                    await disk.write(start, b"a" * (97 << 10))
            made.append(bytes(image.data))
        return {"file": made[0]}

    return make


# -- work


async def one_request(rnd: random.Random, guest: Guest, cluster: int) -> None:
    """A write, zeroes, a discard or a flush, somewhere."""
    size = guest.length
    offset = rnd.randrange(size // SECTOR) * SECTOR
    nbytes = min(rnd.randrange(1, 6) * rnd.choice((SECTOR, cluster)), size - offset)
    aligned = offset // cluster * cluster
    whole = min(-(-nbytes // cluster) * cluster, size - aligned)
    action = rnd.randrange(10)
    if action < 5:
        await guest.write(offset, rnd.randbytes(nbytes))
    elif action < 6:
        await guest.zero(aligned, whole, rnd.choice((0, MAY_UNMAP)))
    elif action < 8:
        await guest.discard(aligned, whole)
    else:
        await guest.flush()


class Requests:
    """So many requests, one after another."""

    def __init__(self, cluster: int, count: int = 25) -> None:
        self.cluster = cluster
        self.count = count

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        for _ in range(self.count):
            await one_request(rnd, guest, self.cluster)


class Anywhere(Requests):
    """Requests as guests of a graph may send them: at any byte, of any length."""

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        for _ in range(self.count):
            offset = rnd.randrange(guest.length)
            nbytes = min(rnd.choice((1, 100, 700, 3000)), guest.length - offset)
            action = rnd.randrange(8)
            if action < 4:
                await guest.write(offset, rnd.randbytes(nbytes))
            elif action < 6:
                await guest.zero(offset, nbytes, rnd.choice((0, MAY_UNMAP)))
            elif action < 7:
                await one_request(rnd, guest, self.cluster)
            else:
                await guest.flush()


def graph(disks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """qcow2 over its disk, as nodes."""
    return {"driver": "qcow2", "file": disks["file"], "l2-cache-size": 1024}


def chain(disks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """An overlay whose backing file is raw."""
    return {"driver": "qcow2", "file": disks["file"], "backing": {"driver": "raw", "file": disks["backing"]}}


def two_files(disks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """qcow2 over its disk and its data file."""
    return {"driver": "qcow2", **disks, "l2-cache-size": 1024}


class Packed(Requests):
    """Most of what is written can be compressed, in clusters that are often let go of."""

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        cluster = self.cluster
        for _ in range(self.count):
            if rnd.random() < 0.5:
                await one_request(rnd, guest, cluster)
                continue
            count = rnd.randrange(1, 9)
            offset = rnd.randrange(guest.length // cluster - count) * cluster
            if rnd.random() < 0.7:
                await guest.discard(offset, count * cluster)
            await guest.write(offset, b"".join(_compressible(rnd, cluster) for _ in range(count)))


def _compressible(rnd: random.Random, nbytes: int) -> bytes:
    part = rnd.randbytes(rnd.randrange(1, nbytes // 2))
    return (part * (nbytes // len(part) + 1))[:nbytes]


class PackedSideBySide(Packed):
    """Four of them at once, also in each other's clusters."""

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        work = Packed(self.cluster, self.count // 4)
        await asyncio.gather(*(work(random.Random(rnd.getrandbits(32)), guest) for _ in range(4)))


class SideBySide(Requests):
    """Four guests at once, also in each other's clusters."""

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        async def one(seed: int) -> None:
            await Requests(self.cluster, self.count // 4)(random.Random(seed), guest)

        await asyncio.gather(*(one(rnd.getrandbits(32)) for _ in range(4)))


class Resizes(Requests):
    """Longer, so that the L1 table moves, and shorter, so that refcount blocks go and the file is cut.

    ``growth``: how many times as long, one of these.
    """

    def __init__(
        self, cluster: int, prealloc: PreallocMode, count: int = 4, *, growth: tuple[int, ...] = (2, 7, 20)
    ) -> None:
        super().__init__(cluster, count)
        self.prealloc = prealloc
        self.growth = growth

    async def __call__(self, rnd: random.Random, guest: Guest) -> None:
        size = guest.length
        await super().__call__(rnd, guest)
        await guest.flush()
        longer = size * rnd.choice(self.growth) // self.cluster * self.cluster
        longer = max(longer, guest.disk.length)  # after a failure it may be longer than is sure
        await guest.truncate(longer + rnd.choice((0, SECTOR)), self.prealloc)
        await super().__call__(rnd, guest)
        await guest.truncate(rnd.choice((size // (2 * SECTOR) * SECTOR or SECTOR, size, SECTOR)))
        await super().__call__(rnd, guest)
        await guest.flush()


async def grow_refcount_table(_rnd: random.Random, guest: Guest) -> None:
    """Until the image has a larger table."""
    at = 1940 << 10
    image = qcow2_of(guest).driver._image
    while image.header.refcount_table_clusters == 1 and at < guest.length - 8192:
        await guest.write(at, b"b" * 8192)
        at += 8192
    await guest.flush()
    await guest.write(at, b"c" * 4096)


async def keep_bitmaps(rnd: random.Random, guest: Guest) -> None:
    """Bitmaps come, are written to, are stored when the image is closed; one goes."""
    disk = qcow2_of(guest)
    bitmaps = disk.host.dirty_bitmaps
    for name in ("a", "b"):
        if bitmaps.find(name) is None:
            bitmaps.create(disk.length, 4096, name).persistent = True
    for _ in range(8):
        offset = rnd.randrange(disk.length // SECTOR) * SECTOR
        await guest.write(offset, rnd.randbytes(min(2 * SECTOR, disk.length - offset)))
        bitmaps.mark(offset, 2 * SECTOR)
    await guest.flush()


async def check_and_repair(rnd: random.Random, guest: Guest) -> None:
    """Leaks are mended, or everything; none is left."""
    driver = qcow2_of(guest).driver
    await guest.do(driver.co_check(rnd.choice((CheckFix.LEAKS, CheckFix.ALL))))
    result = await driver.co_check(CheckFix.NONE)
    assert not result.leaks
    assert not result.corruptions


async def only_open(_rnd: random.Random, _guest: Guest) -> None:
    """Opening and closing repair a dirty image."""


def qcow2_of(guest: Guest) -> Disk:
    """The guest's disk, as what it is here."""
    assert isinstance(guest.disk, Disk)
    return guest.disk


def by_name(scenarios: Iterable[Scenario]) -> dict[str, Scenario]:
    """No two may share a name: one would never be looked at."""
    found: dict[str, Scenario] = {}
    for scenario in scenarios:
        assert scenario.name not in found, scenario.name
        found[scenario.name] = scenario
    return found


SMALL: Final[dict[str, Any]] = {"l2_cache_size": 1024}

SCENARIOS: Final = by_name(
    (
        Scenario("512-byte clusters", 700, fresh(150, 512), Requests(512), Qcow2Rig(**SMALL)),
        Scenario("64-bit refcounts", 700, fresh(150, 512, refcount_bits=64), Requests(512)),
        Scenario("1-bit refcounts", 700, fresh(100, 1024, refcount_bits=1), Requests(1024)),
        Scenario("version 2", 700, fresh(100, 512, compat="0.10"), Requests(512)),
        Scenario("4 KiB clusters", 600, fresh(40, 4096, refcount_bits=32), Requests(4096)),
        Scenario("64 KiB clusters", 300, fresh(10, 65536), Requests(65536, 15)),
        Scenario("many tables", 600, fresh(1000, 512), Requests(512, 30), Qcow2Rig(**SMALL)),
        Scenario("subclusters", 600, fresh(8, 16384, extended_l2=True), Requests(512)),
        Scenario("subclusters, side by side", 600, fresh(8, 16384, extended_l2=True), SideBySide(512, 28), turns=3),
        Scenario("subclusters of an overlay", 500, overlay(8, 16384, extended_l2=True), Requests(512)),
        Scenario("overlay", 700, overlay(100, 512), Requests(512)),
        Scenario("overlay of 4 KiB", 600, overlay(30, 4096), Requests(4096)),
        Scenario(
            "lazy refcounts",
            700,
            fresh(100, 512, lazy_refcounts=True),
            Requests(512),
            repairs=True,
        ),
        Scenario("side by side", 800, fresh(80, 512), SideBySide(512, 28), Qcow2Rig(**SMALL), turns=3),
        Scenario("side by side, wide", 600, fresh(80, 512, refcount_bits=64), SideBySide(512, 28), turns=3),
        Scenario(
            "subclusters amid faults", 300, fresh(8, 16384, extended_l2=True), Requests(512, 20), faults=True, run=80
        ),
        Scenario("through the graph", 500, fresh(100, 512), Anywhere(512, 20), StackRig(graph), turns=2),
        Scenario("a chain through the graph", 500, overlay(60, 512), Anywhere(512, 20), StackRig(chain)),
        Scenario("snapshots below", 600, shared(60, 512), Requests(512)),
        Scenario("snapshots below, 64 bits", 600, shared(60, 1024, refcount_bits=64), Requests(1024)),
        Scenario("bitmaps", 600, fresh(100, 512), keep_bitmaps),
        Scenario("a failing disk", 800, fresh(100, 512), Requests(512, 20), Qcow2Rig(**SMALL), faults=True, run=80),
        *(
            Scenario(
                f"resize, {prealloc.value}, {'lazy' if lazy else bits}",
                500 if prealloc is PreallocMode.OFF else 350,
                fresh(100, 512, refcount_bits=bits, lazy_refcounts=lazy),
                Resizes(512, prealloc),
                repairs=lazy,
            )
            for prealloc, bits, lazy in (
                (PreallocMode.OFF, 16, False),
                (PreallocMode.OFF, 64, True),
                (PreallocMode.METADATA, 64, False),
                (PreallocMode.FULL, 16, False),
            )
        ),
        Scenario("snapshots", 600, fresh(60, 512), snapshots_at_work, SnapshotRig()),
        Scenario("snapshots, wide", 200, fresh(300, 1024, refcount_bits=64), snapshots_at_work, SnapshotRig()),
        Scenario(
            "snapshots of subclusters",
            100,
            fresh(3, 16384, extended_l2=True),
            snapshots_at_work,
            SnapshotRig(),
        ),
        Scenario("snapshots, version 2", 200, fresh(60, 512, compat="0.10"), snapshots_at_work, SnapshotRig()),
        Scenario("snapshots, overlay", 200, overlay(60, 512), snapshots_at_work, SnapshotRig(overlap_check="all")),
        Scenario(
            "snapshots, lazy",
            200,
            fresh(60, 512, lazy_refcounts=True, refcount_bits=8),
            snapshots_at_work,
            SnapshotRig(),
            repairs=True,
        ),
        Scenario("resize of subclusters", 300, fresh(2, 16384, extended_l2=True), Resizes(512, PreallocMode.METADATA)),
        Scenario("compressed", 500, fresh(60, 4096), Packed(4096), Qcow2Rig(packing=True, **SMALL)),
        Scenario(
            "compressed, 1 bit", 400, fresh(60, 2048, refcount_bits=1), Packed(2048), Qcow2Rig(packing=True), turns=2
        ),
        Scenario(
            "compressed, 2 bits, side by side",
            500,
            fresh(60, 2048, refcount_bits=2, compression_type="zstd"),
            PackedSideBySide(2048, 28),
            Qcow2Rig(packing=True),
            turns=2,
        ),
        Scenario(
            "compressed, lazy",
            300,
            fresh(60, 2048, lazy_refcounts=True),
            Packed(2048),
            Qcow2Rig(packing=True),
            repairs=True,
        ),
        *(
            Scenario(f"rebase, {words}", 110, _named_overlay(cluster, **options), rebases, RebaseRig(), faults=faulty)
            for words, cluster, options, faulty in (
                ("8 KiB clusters", 8192, {}, False),
                ("version 2", 4096, {"compat": "0.10"}, False),
                ("subclusters", 16384, {"extended_l2": True}, False),
                ("amid faults", 8192, {}, True),
            )
        ),
        Scenario("amend, versions", 200, fresh(60, 512), Amends(512, VERSIONS), SnapshotRig()),
        Scenario("amend, versions, overlay", 150, overlay(60, 512), Amends(512, VERSIONS), SnapshotRig()),
        Scenario("amend, versions, snapshots", 200, fresh(60, 512), Amends(512, VERSIONS, snapshots=2), SnapshotRig()),
        Scenario(
            "amend, versions, large clusters",
            100,
            overlay(12, 8192),
            Amends(8192, VERSIONS, snapshots=1),
            SnapshotRig(),
        ),
        Scenario("amend, widths", 200, fresh(100, 512), Amends(512, WIDTHS), SnapshotRig()),
        Scenario("amend, widths, snapshots", 150, fresh(60, 1024), Amends(1024, WIDTHS, snapshots=2), SnapshotRig()),
        Scenario("amend, all at once", 150, fresh(60, 512, compat="0.10"), lengthen, repairs=True),
        Scenario(
            "amend amid faults",
            150,
            fresh(60, 512),
            Amends(512, (*VERSIONS, *WIDTHS[::3]), snapshots=1),
            SnapshotRig(),
            faults=True,
            run=80,
        ),
        Scenario("data file", 250, apart(100, 512), Requests(512), Qcow2Rig(**SMALL)),
        Scenario("data file, side by side", 250, apart(80, 512), SideBySide(512, 28), Qcow2Rig(**SMALL), turns=3),
        Scenario("data file of an overlay", 160, apart(60, 512, below=True), Requests(512)),
        Scenario("data file, lazy", 110, apart(60, 512, lazy_refcounts=True), Requests(512), repairs=True),
        Scenario("data file, subclusters", 160, apart(8, 16384, extended_l2=True), SideBySide(512, 28), turns=3),
        Scenario("data file, resize", 160, apart(100, 512), Resizes(512, PreallocMode.OFF)),
        Scenario("data file, resize, full", 110, apart(100, 512), Resizes(512, PreallocMode.FULL)),
        Scenario("data file through the graph", 110, apart(100, 512), Anywhere(512, 20), StackRig(two_files), turns=2),
        Scenario("raw data file", 250, apart(100, 512, data_file_raw=True), Requests(512), InStep(**SMALL)),
        Scenario(
            "raw data file, side by side",
            250,
            apart(80, 512, data_file_raw=True),
            SideBySide(512, 28),
            InStep(),
            turns=3,
        ),
        Scenario(
            "raw data file, subclusters",
            160,
            apart(8, 16384, extended_l2=True, data_file_raw=True),
            SideBySide(512, 28),
            InStep(),
            turns=3,
        ),
        Scenario(
            "raw data file amid faults",
            160,
            apart(100, 512, data_file_raw=True),
            Requests(512, 20),
            InStep(),
            faults=True,
            run=80,
        ),
        Scenario(
            "raw data file, resize",
            160,
            apart(100, 512, data_file_raw=True),
            Resizes(512, PreallocMode.OFF),
            InStep(),
        ),
        Scenario("growing refcount table", 150, full_refcount_table(), grow_refcount_table),
        Scenario("repair on opening", 400, crashed(100, 512, lazy_refcounts=True), only_open, repairs=True, run=80),
        Scenario("repair of leaks", 300, crashed(100, 512, refcount_bits=8), check_and_repair, run=80),
    )
)
