"""Extended L2 entries: what a cluster's 32 subclusters are, how few of them a request touches, and lies about them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockio
from blockio import AllowAll
from blockio.buffers import IoVector
from blockio.errors import CorruptImage, ImageError, UnsupportedFeature
from blockio.img.mapping import map_node
from blockio.testing.memory import MemoryChild
from blockio.types import ExtentKind, OpenFlags, RequestFlags
from blockio_drivers.qcow2.entries import ExtendedEntries, InvalidEntry, Loss, Plan, entries_of
from blockio_drivers.qcow2.tables import ALL_ALLOCATED, ALL_ZERO, COMPRESSED, COPIED, Geometry, table_from_bytes
from tests.qcow2.engine import Disk, check_image, first_l2_table, new_image, open_disk, put, qemu_reads
from tests.support.qemu import assert_clean, qemu_img, qemu_img_json, qemu_io

K16 = 16384
SUB = 512
MAY_UNMAP = int(RequestFlags.MAY_UNMAP)
WORDS = st.integers(0, 2**64 - 1)


async def image(clusters: int = 20, **options: Any) -> MemoryChild:
    return await new_image(clusters * K16, cluster_size=K16, extended_l2=True, **options)


def entry_of(child: MemoryChild, cluster: int) -> tuple[int, int]:
    """The L2 entry and the bitmap of guest *cluster*, as they stand on disk."""
    at = first_l2_table(child)[1] + 16 * cluster
    return int.from_bytes(child.data[at : at + 8], "big"), int.from_bytes(child.data[at + 8 : at + 16], "big")


async def kinds(disk: Disk, nbytes: int = K16) -> str:
    """What each subcluster is: Data, Zero, Compressed or ``-``; in small letters where it has no place."""
    found = ""
    while len(found) * SUB < nbytes:
        kind, length, host, _ = await disk.driver.co_map(len(found) * SUB, nbytes - len(found) * SUB)
        letter = "-" if kind is ExtentKind.UNALLOCATED else kind.value[0].upper()
        found += (letter if host >= 0 else letter.lower()) * (length // SUB)
    return found


async def ask(disk: Disk, request: str, nbytes: int) -> None:
    """One request for *nbytes* from the second cluster on."""
    match request:
        case "read":
            await disk.read(K16, nbytes)
        case "write":
            await disk.write(K16, b"x" * nbytes)
        case "zero":
            await disk.zero(K16, nbytes)
        case _:
            await disk.discard(K16, nbytes)


# -- how much a request touches


async def test_a_small_write_copies_only_its_own_subclusters() -> None:
    base = MemoryChild(b"b" * 20 * K16)
    child = await image(backing_file="base.raw", backing_fmt="raw")
    async with open_disk(child, backing=base) as disk:
        await disk.write(5 * SUB + 100, b"x" * 600)
        assert await kinds(disk) == "-" * 5 + "DD" + "-" * 25
        child.log.clear()
        await disk.write(9 * SUB, b"y" * SUB)
        [written] = [call for call in child.log if call[0] == "write"]
        assert written[2] == SUB, "nothing is copied for a whole subcluster, and its cluster is there"
        assert await disk.read(0, K16) == (
            b"b" * (5 * SUB + 100) + b"x" * 600 + b"b" * (9 * SUB - 5 * SUB - 700) + b"y" * SUB + b"b" * 22 * SUB
        )
    assert entry_of(child, 0)[1] == 0b10_0110_0000
    check_image(child.data)


async def test_zero_writes_and_discards_of_single_subclusters() -> None:
    child = await image()
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * K16)
        await disk.zero(SUB, SUB)
        await disk.zero(2 * SUB, SUB, MAY_UNMAP)
        await disk.discard(4 * SUB, 2 * SUB)
        assert await kinds(disk) == "DZZDZZ" + "D" * 26
        host = (await disk.driver.co_map(0, 1)).host_offset
        await disk.write(SUB + 1, b"c")
        assert (await disk.driver.co_map(SUB, SUB)).host_offset == host + SUB, "zeroes keep their place"
        assert await disk.read(SUB, SUB) == b"\0c" + bytes(SUB - 2)
        await disk.discard(0, 20 * SUB)
        assert await kinds(disk) == "Z" * 20 + "D" * 12
        await disk.discard(20 * SUB, 12 * SUB)
        assert await kinds(disk) == "z" * 32, "without data there is no need of a cluster"
    assert entry_of(child, 0) == (0, ALL_ZERO)
    check_image(child.data)


async def test_a_part_of_a_subcluster_is_zeroed_by_whoever_can_write() -> None:
    child = await image()
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * K16)
        with pytest.raises(UnsupportedFeature):
            await disk.zero(100, SUB)
        await disk.zero(SUB, SUB)
        await disk.zero(SUB + 100, 50)
        assert await kinds(disk) == "DZ" + "D" * 30, "widened, where the rest is zero already"


async def test_facts() -> None:
    async with open_disk(await image()) as disk:
        limits = disk.driver.limits()
        assert (limits.pwrite_zeroes_alignment, limits.pdiscard_alignment) == (SUB, SUB)
        info = await disk.driver.co_get_info()
        assert (info.cluster_size, info.subcluster_size) == (K16, SUB)
        assert disk.driver.specific_info()["data"]["extended-l2"]


async def test_both_lanes_serve_subclusters() -> None:
    async with open_disk(await image()) as disk:
        await disk.write(SUB, b"a" * 3 * SUB)
        driver, got = disk.driver, bytearray(2 * SUB)
        assert driver.try_preadv(SUB + 10, [got], 2 * SUB)
        assert got == b"a" * 2 * SUB
        assert driver.try_pwritev(3 * SUB, [b"b" * SUB], SUB)
        assert not driver.try_preadv(0, [got], 2 * SUB), "the first is unallocated"
        assert not driver.try_pwritev(3 * SUB, [got], 2 * SUB), "and so is the last"
        assert await disk.read(0, 5 * SUB) == bytes(SUB) + b"a" * 2 * SUB + b"b" * SUB + bytes(SUB)


# -- as QEMU sees it


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("cluster", [K16, 65536, 2 << 20])
@pytest.mark.parametrize("backing", ["", "raw"])
async def test_maps_are_qemus(cluster: int, backing: str, tmp_path: Path) -> None:
    """The same requests by both give images that both tools map alike, down to the offsets in reserve."""
    rnd = random.Random(cluster)
    sub, size = cluster // 32, 6 * cluster
    path = tmp_path / "i.qcow2"
    options = f"extended_l2=on,cluster_size={cluster}"
    if backing:
        (tmp_path / "b.raw").write_bytes(rnd.randbytes(size // 2))
        options += ",backing_file=b.raw,backing_fmt=raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(size), cwd=tmp_path)
    commands = []
    for command in ("write", "write", "write -z", "write", "write -z", "write -z -u", "discard"):
        unit = cluster if command in {"write -z -u", "discard"} else sub  # QEMU discards whole clusters only
        offset = rnd.randrange(size // unit) * unit
        commands.append(f"{command} {offset} {min(rnd.randrange(1, 50) * unit, size - offset)}")
    qemu_io(path, *commands, format="qcow2", options=("-d", "unmap"))
    async with blockio.open(str(path), format="qcow2", read_only=True, gate=AllowAll()) as blk:
        assert blk.bs is not None
        ours = [
            (entry.start, entry.length, entry.present, entry.zero, entry.data, entry.offset)
            async for entry in map_node(blk.bs)
        ]
    fields = ("start", "length", "present", "zero", "data", "offset")
    assert ours == [tuple(entry.get(field) for field in fields) for entry in qemu_img_json("map", path)]


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("prealloc", ["metadata", "falloc", "full"])
async def test_what_is_preallocated_while_growing_is_in_reserve(prealloc: str, tmp_path: Path) -> None:
    path = tmp_path / "i.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=16k", path, "33k")
    async with blockio.open(str(path), format="qcow2", gate=AllowAll(), resize=True) as blk:
        await blk.co_truncate(200 << 10, exact=True, prealloc=blockio.PreallocMode(prealloc))
    assert_clean(path)
    last = qemu_img_json("map", path)[-1]
    assert (last["present"], last["zero"], last["data"]) == (False, True, False)
    assert last["start"] == 48 << 10
    assert last["offset"] % K16 == 0


# -- lies


@pytest.mark.parametrize(
    ("entry", "bitmap", "message"),
    [
        (COPIED | 0x20000, 0x1_0000_0001, "Invalid cluster entry found"),
        (COPIED | 0x20000, 0x8000_0000_8000_0000, "Invalid cluster entry found"),
        (0, 1, "Invalid cluster entry found"),
        (COPIED, 1 << 31, "Invalid cluster entry found"),
        (COPIED | 0x20200, ALL_ALLOCATED, "Cluster allocation offset 0x20200 unaligned"),
        (COPIED | 0x20200, 0, "Cluster allocation offset 0x20200 unaligned"),
    ],
)
async def test_what_cannot_be_is_corruption(entry: int, bitmap: int, message: str) -> None:
    """Read, written, zeroed or discarded; never taken for nothing. What lies before it is served."""
    for request in ("read", "write", "zero", "discard", "fast"):
        child = await image()
        async with open_disk(child) as disk:
            await disk.write(0, b"a" * K16)
        table = first_l2_table(child)[1]
        put(child, table + 16, entry)
        put(child, table + 24, bitmap)
        disk_flags = OpenFlags(read_only=request == "read", unmap=True)
        before = bytes(child.data)
        async with open_disk(child, flags=disk_flags) as disk:
            assert await disk.read(0, K16) == b"a" * K16
            if request == "fast":
                assert not disk.driver.try_preadv(K16, [bytearray(SUB)], SUB)
                assert not disk.driver.try_pwritev(K16, [bytearray(SUB)], SUB)
                assert disk.driver.try_map(K16, SUB) is None
                continue
            with pytest.raises(CorruptImage) as caught:
                await ask(disk, request, K16)
            assert caught.value.message == f"{message} (L2 offset: {table:#x}, L2 index: 0x1)"
            [told] = [event for event in disk.host.events if event[0] == "corrupted"]
            assert told == ("corrupted", caught.value.message, -1, -1, request != "read")
        child.data[79] = before[79]  # the corrupt bit
        assert child.data[: len(before)] == before, "nothing else was changed"


async def test_a_bitmap_of_a_compressed_cluster_is_not_looked_at() -> None:
    """As QEMU reads it; and what replaces the cluster does not take the bitmap over."""
    child = await image()
    async with open_disk(child) as disk:
        await disk.write(K16, b"a" * K16)
    table = first_l2_table(child)[1]
    put(child, table, COMPRESSED | (len(child.data) + 512))
    put(child, table + 8, ALL_ZERO)
    async with open_disk(child) as disk:
        assert await kinds(disk) == "C" * 32
        await disk.zero(0, K16)
        await disk.write(0, b"x" * SUB)
        assert await kinds(disk) == "D" + "Z" * 31


@pytest.mark.peer("qemu-img")
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6), st.integers(0, 2**32))
async def test_any_bitmap_is_read_or_refused(words: list[tuple[int, int]], seed: int) -> None:
    """Hostile tables: each request is served or raises a declared error, and QEMU agrees on what could be read."""
    rnd = random.Random(seed)
    child = await image(8)
    async with open_disk(child) as disk:
        await disk.write(0, rnd.randbytes(8 * K16))
    table = first_l2_table(child)[1]
    for cluster, (entry, bitmap) in enumerate(words):
        at = table + 16 * cluster
        shape = rnd.randrange(4)
        # Mostly plausible: a place that is there, and a bitmap that may be bent.
        plausible = COPIED | (0x14000 + rnd.randrange(8) * K16) if shape > 1 else 0
        put(child, at, plausible if shape else entry)
        put(child, at + 8, bitmap & ~(bitmap >> 32) if shape and rnd.randrange(20) else bitmap)
    sound = bytearray()
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        for cluster in range(8):
            try:
                sound += await disk.read(cluster * K16, K16)
            except ImageError:
                break
        else:
            assert qemu_reads(child.data) == sound
    async with open_disk(MemoryChild(child.data)) as disk:
        for _ in range(6):
            offset = rnd.randrange(8 * 32) * SUB
            try:
                if rnd.randrange(2):
                    await disk.write(offset, b"x" * min(rnd.randrange(1, 3 * K16), 8 * K16 - offset))
                else:
                    await disk.discard(offset, min(rnd.randrange(1, 64) * SUB, 8 * K16 - offset))
            except OSError:
                break


# -- the layout, entry by entry


class Model:
    """One cluster's subclusters, one letter each, beside its entry."""

    def __init__(self, entry: int, bitmap: int) -> None:
        zero = ("Z", "D", "-")
        self.letters = [
            zero[0] if bitmap >> (32 + sub) & 1 else zero[1] if bitmap >> sub & 1 else zero[2] for sub in range(32)
        ]
        self.entry = entry


ENTRIES = entries_of(Geometry.make(14, extended_l2=True))
SOUND = st.lists(
    st.tuples(st.sampled_from((0, 1, 2, 3)), st.integers(0, ALL_ALLOCATED), st.integers(0, ALL_ALLOCATED)),
    min_size=3,
    max_size=3,
)


def sound_table(shapes: list[tuple[int, int, int]]) -> list[int]:
    words = []
    for cluster, (shape, zero, data) in enumerate(shapes):
        host = 0x100000 + cluster * K16
        entry = (0, host | COPIED, host, host + 64 * K16 | COPIED)[shape]
        words += [entry, zero << 32 | (data & ~zero if entry else 0)]
    return words


@given(SOUND, st.integers(0, 95), st.integers(1, 96))
async def test_runs_and_plans_subcluster_by_subcluster(shapes: list[tuple[int, int, int]], at: int, count: int) -> None:
    """Each method says of a range what looking at one subcluster after another says."""
    assert isinstance(ENTRIES, ExtendedEntries)
    words = sound_table(shapes)
    table = table_from_bytes(b"".join(word.to_bytes(8, "big") for word in words))
    models = [Model(words[2 * cluster], words[2 * cluster + 1]) for cluster in range(3)]
    stop = min(at + count, 96)

    def letter(sub: int) -> str:
        return models[sub >> 5].letters[sub & 31]

    def host(sub: int) -> int:
        place = words[sub >> 5 << 1] & ~COPIED
        return place + (sub & 31) * SUB if place else -1

    def follows(sub: int) -> bool:
        return host(sub) == (host(at) + (sub - at) * SUB if host(at) >= 0 else -1)

    def reach(same: Any) -> int:
        after = at
        while after < stop and same(after):
            after += 1
        return after - at

    kind, length, place = ENTRIES.run(table, at, stop)
    assert ("-" if kind is ExtentKind.UNALLOCATED else kind.value[0].upper(), place) == (letter(at), host(at))
    assert length == reach(lambda sub: letter(sub) == letter(at) and follows(sub))

    def ours(sub: int) -> bool:
        return bool(words[sub >> 5 << 1] & COPIED)

    in_place = ENTRIES.in_place(table, at, stop)
    assert in_place.reach == reach(lambda sub: letter(sub) == "D" and ours(sub) and follows(sub))
    if in_place.reach:
        assert in_place.host == host(at)
        return
    plan = ENTRIES.plan(table, at, stop)
    if plan.room:
        assert plan == Plan(
            host(at & -32), reach(lambda sub: letter(sub) != "D" and ours(sub) and follows(sub)), at, at + plan.reach
        )
    else:
        assert plan.reach == reach(lambda sub: not ours(sub))
    before = [letter(sub) for sub in range(96)]
    freed = ENTRIES.enter(table, plan, plan.room or 0x900000)
    assert freed == ([] if plan.room else [words[c << 1] for c in range(plan.start >> 5, ((plan.end - 1) >> 5) + 1)])
    after = [letter_ for c in range(3) for letter_ in Model(table[2 * c], table[2 * c + 1]).letters]
    assert after[plan.start : plan.end] == ["D"] * (plan.end - plan.start)
    assert (after[: plan.start], after[plan.end :]) == (before[: plan.start], before[plan.end :])
    if not plan.room:
        moved = range(plan.start & -32, ((plan.end - 1) | 31) + 1)
        assert "D" not in {before[sub] for sub in moved if not plan.start <= sub < plan.end}, "no data is left behind"


@given(SOUND, st.integers(0, 95), st.integers(1, 96), st.sampled_from(Loss), st.booleans())
async def test_losses_subcluster_by_subcluster(
    shapes: list[tuple[int, int, int]], at: int, count: int, how: Loss, below: bool
) -> None:
    words = sound_table(shapes)
    if how is Loss.CROP:
        at, count = at & -32, 32
    stop = min(at + count, 96)
    table = table_from_bytes(b"".join(word.to_bytes(8, "big") for word in words))
    freed = ENTRIES.lose(table, at, stop, how, below=below)
    assert (freed is None) == (list(table) == words)
    for cluster in range(3):
        old, new = (Model(*source[2 * cluster : 2 * cluster + 2]) for source in (words, list(table)))
        for sub in range(32):
            if at <= cluster * 32 + sub < stop:
                nothing = how is Loss.CROP or (how is Loss.DISCARD and not below and not old.entry)
                assert new.letters[sub] == ("Z" if not nothing else "-" if how is Loss.CROP else old.letters[sub])
            else:
                assert new.letters[sub] == old.letters[sub]
        assert new.entry in {0, old.entry}
        assert new.entry or "D" not in new.letters
        assert (old.entry in (freed or [])) == bool(old.entry and not new.entry)
        if how is Loss.RESERVE:
            assert new.entry == old.entry


def test_a_part_of_a_compressed_cluster_is_not_lost_alone() -> None:
    table = table_from_bytes((COMPRESSED | 0x5000).to_bytes(8, "big") + bytes(8))
    for how in (Loss.RESERVE, Loss.ZERO, Loss.DISCARD):
        with pytest.raises(UnsupportedFeature):
            ENTRIES.lose(table, 0, 31, how, below=False)
    assert ENTRIES.lose(table, 0, 32, Loss.RESERVE, below=False) == [COMPRESSED | 0x5000]
    assert list(table) == [0, ALL_ZERO]


def test_a_corrupt_entry_at_the_end_changes_nothing_before_it() -> None:
    words = [COPIED | 0x100000, ALL_ALLOCATED, 0, 1]
    table = table_from_bytes(b"".join(word.to_bytes(8, "big") for word in words))
    with pytest.raises(InvalidEntry) as caught:
        ENTRIES.lose(table, 0, 64, Loss.ZERO, below=False)
    assert caught.value.at == 32
    assert list(table) == words
    assert ENTRIES.run(table, 0, 64).reach == 32, "what lies before it is told"


async def test_read_across_kinds_in_one_request() -> None:
    base = MemoryChild(b"b" * 20 * K16)
    child = await image(backing_file="base.raw", backing_fmt="raw")
    async with open_disk(child, backing=base) as disk:
        for sub in range(0, 32, 3):
            await disk.write(sub * SUB, b"d" * SUB)
            await disk.zero((sub + 1) % 32 * SUB, SUB)
        data = bytearray(K16)
        await disk.driver.file.co_preadv(0, IoVector.of(data))
        assert await kinds(disk) == ("DZ-" * 11)[:32]
        assert await disk.read(0, K16) == ((b"d" * SUB + bytes(SUB) + b"b" * SUB) * 11)[:K16]
