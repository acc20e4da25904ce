"""Checking: the same findings, words and counts as qemu-img check."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from blockio.errors import BlockError, CorruptImage, LimitExceeded
from blockio.testing.memory import MemoryChild
from blockio.types import Limits
from blockio_drivers.qcow2 import check_l2
from blockio_drivers.qcow2.check import References, check_image
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.tables import ALL_ZERO, COMPRESSED, COPIED, ZERO
from tests.support.qcow2_craft import Craft, check, new_image
from tests.support.qemu import qemu_img, qemu_img_json, qemu_io

K64 = 65536
Bend = Callable[[Craft], object]


def leak(image: Craft) -> object:
    return image.put_refcount(image.cluster(), 1)


def unreferenced_twice(image: Craft) -> object:
    return image.put_refcount(image.cluster(), 2)


def refcount_missing(image: Craft) -> object:
    return image.put_refcount(image.map(5, b"x"), 0)


def refcount_too_low(image: Craft) -> object:
    offset = image.map(5, b"x", flags=0)
    return image.put_entry(image.l2_entry_at(6), offset)


def refcount_too_high(image: Craft) -> object:
    return image.map(5, b"x", refcount=2)


def copied_missing(image: Craft) -> object:
    return image.map(5, b"x", flags=0)


def copied_missing_in_l1(image: Craft) -> object:
    image.map(5, b"x")
    return image.put_entry(image.l1_entry_at(0), image.entry(image.l1_entry_at(0)) & ~COPIED)


def data_crooked(image: Craft) -> object:
    return image.put_entry(image.l2_entry_at(5), COPIED | (image.map(4, b"x") + 512))


def reserve_crooked(image: Craft) -> object:
    return image.put_entry(image.l2_entry_at(5), COPIED | ZERO | (image.map(4, b"x") + 512))


def reserved_bits(image: Craft) -> object:
    image.map(5, b"x")
    return image.put_entry(image.l2_entry_at(5), image.entry(image.l2_entry_at(5)) | 1 << 57)


def reserved_bits_in_l1(image: Craft) -> object:
    image.map(5, b"x")
    return image.put_entry(image.l1_entry_at(0), image.entry(image.l1_entry_at(0)) | 1 << 57)


def far_away(image: Craft) -> object:
    return image.put_entry(image.l2_entry_at(5), COPIED | 1 << 40)


def l2_far_away(image: Craft) -> object:
    return image.put_entry(image.l1_entry_at(0), COPIED | 1 << 40)


def compressed_and_copied(image: Craft) -> object:
    return image.put_entry(image.l2_entry_at(5), COPIED | COMPRESSED | image.cluster())


def compressed_twice(image: Craft) -> object:
    offset = image.cluster(refcount=2)
    image.put_entry(image.l2_entry_at(5), COMPRESSED | offset)
    return image.put_entry(image.l2_entry_at(6), COMPRESSED | (offset + 600))


def block_crooked(image: Craft) -> object:
    return image.put_entry(image.header.refcount_table_offset, image.entry(image.header.refcount_table_offset) + 512)


def block_reserved(image: Craft) -> object:
    return image.put_entry(image.header.refcount_table_offset, image.entry(image.header.refcount_table_offset) + 1)


def block_far_away(image: Craft) -> object:
    return image.put_entry(image.header.refcount_table_offset + 8, 1 << 24)


def block_shared(image: Craft) -> object:
    block = image.entry(image.header.refcount_table_offset)
    return image.put_entry(image.header.refcount_table_offset + 8, block)


def header_as_data(image: Craft) -> object:
    return image.put_entry(image.l2_entry_at(5), COPIED | image.header.l1_table_offset)


def fragmented(image: Craft) -> object:
    for cluster in (9, 3, 4, 5, 1):
        image.map(cluster, b"x")
    return None


def last_cluster_cut(image: Craft) -> object:
    image.map(5, b"x")
    del image.data[-(image.geometry.cluster_size * 5 // 8) :]
    return None


def no_refcounts_at_all(image: Craft) -> object:
    fragmented(image)
    return image.set(refcount_table_clusters=0)


def subclusters(image: Craft, bitmap: int, *, entry: int | None = None) -> object:
    """Guest cluster 0 with *bitmap*, and *entry* in place of the right one."""
    at = image.l2_entry_at(0)
    image.map(0, b"data")
    if entry is not None:
        image.put_entry(at, entry)
    return image.put_entry(at + 8, bitmap)


EXTENDED_BENDS: dict[str, Callable[[Craft], object]] = {
    "sound": lambda image: subclusters(image, 0xFFFF_0000_0000_FFFF),
    "in reserve": lambda image: subclusters(image, 0),
    "data and zero": lambda image: subclusters(image, 0x1_0000_0001),
    "data and zero, last": lambda image: subclusters(image, 0x8000_0000_8000_0001),
    "data nowhere": lambda image: subclusters(image, 1, entry=0),
    "zeroes nowhere": lambda image: subclusters(image, ALL_ZERO, entry=0),
    "compressed": lambda image: subclusters(image, 1, entry=COMPRESSED | image.cluster(b"x")),
    "compressed zeroes": lambda image: subclusters(image, ALL_ZERO, entry=COMPRESSED | COPIED | image.cluster(b"x")),
    "crooked data": lambda image: subclusters(image, 1, entry=COPIED | image.cluster(b"x") + 512),
    "crooked zeroes": lambda image: subclusters(image, ALL_ZERO, entry=COPIED | image.cluster(b"x") + 512),
    "crooked reserve": lambda image: subclusters(image, 0, entry=COPIED | image.cluster(b"x") + 512),
    "crooked and both": lambda image: subclusters(image, 0x1_0000_0001, entry=COPIED | image.cluster(b"x") + 512),
    "zero flag": lambda image: subclusters(image, 1, entry=COPIED | ZERO | image.cluster(b"x")),
    "reserved bits": lambda image: subclusters(image, 1, entry=COPIED | 2 | image.cluster(b"x")),
    "not copied": lambda image: subclusters(image, 1, entry=image.cluster(b"x")),
    "shared": lambda image: (subclusters(image, 1), image.put_entry(image.l2_entry_at(9), image.cluster(refcount=2))),
}


BENDS: list[Bend] = [
    leak,
    unreferenced_twice,
    refcount_missing,
    refcount_too_low,
    refcount_too_high,
    copied_missing,
    copied_missing_in_l1,
    data_crooked,
    reserve_crooked,
    reserved_bits,
    reserved_bits_in_l1,
    far_away,
    l2_far_away,
    compressed_and_copied,
    compressed_twice,
    block_crooked,
    block_reserved,
    block_far_away,
    block_shared,
    header_as_data,
    fragmented,
    last_cluster_cut,
    no_refcounts_at_all,
]


def qemus(path: Path) -> tuple[dict[str, int], list[str]]:
    done = qemu_img("check", "--output=json", path, check=False)
    lines = done.stderr.splitlines()
    if not done.stdout:
        return {}, lines
    counts = {
        key: value
        for key, value in json.loads(done.stdout).items()
        if isinstance(value, int) and key != "total-clusters"
    }
    noise = ("qcow2: Image is corrupt", "qemu-img: Check failed")
    return counts, [line for line in lines if not line.startswith(noise)]


async def assert_same_as_qemu(image: Craft, path: Path) -> list[str]:
    result, lines = await check(image)
    for piece in (1, 3):  # where a few entries are many, what they say together is what each says
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(check_l2, "_PIECE", piece)
            assert await check(image) == (result, lines)
    counts, theirs = qemus(image.save(path))
    ours = {
        "check-errors": result.check_errors,
        "corruptions": result.corruptions,
        "leaks": result.leaks,
        "image-end-offset": result.image_end_offset,
        "allocated-clusters": result.allocated_clusters,
        "fragmented-clusters": result.fragmented_clusters,
        "compressed-clusters": result.compressed_clusters,
    }
    assert {key: value for key, value in ours.items() if value} == {k: v for k, v in counts.items() if v}
    assert sorted(lines) == sorted(theirs)
    return lines


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bend", BENDS, ids=lambda bend: bend.__name__)
@pytest.mark.parametrize("cluster_size", [512, K64])
async def test_findings(bend: Bend, cluster_size: int, tmp_path: Path) -> None:
    image = await new_image(40 * cluster_size, cluster_size=cluster_size)
    bend(image)
    await assert_same_as_qemu(image, tmp_path / "bent.qcow2")


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bend", EXTENDED_BENDS)
@pytest.mark.parametrize("cluster_size", [16384, K64])
async def test_findings_in_extended_entries(bend: str, cluster_size: int, tmp_path: Path) -> None:
    image = await new_image(40 * cluster_size, cluster_size=cluster_size, extended_l2=True)
    for cluster in range(12, 20):
        image.put_entry(image.l2_entry_at(cluster) + 8, 0xFF)
        image.map(cluster, b"around it")
    EXTENDED_BENDS[bend](image)
    await assert_same_as_qemu(image, tmp_path / "bent.qcow2")


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize(("cluster_size", "refcount_bits"), [(512, 2), (512, 64), (4096, 8), (K64, 16)])
async def test_snapshots_bitmaps_and_compression(cluster_size: int, refcount_bits: int, tmp_path: Path) -> None:
    path = tmp_path / "full.qcow2"
    options = f"cluster_size={cluster_size},refcount_bits={refcount_bits}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "1M")
    qemu_io(path, "write -P 1 0 200k", f"write -c -P 2 512k {cluster_size}", "write -z 256k 64k", format="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 3 64k 64k", "discard 0 64k", format="qcow2")
    qemu_img("snapshot", "-c", "two", path)
    qemu_img("bitmap", "--add", "-g", "512", path, "b0")
    qemu_io(path, "write -P 4 600k 64k", format="qcow2")
    image = Craft(path.read_bytes())
    assert image.header.bitmaps is not None
    assert await assert_same_as_qemu(image, tmp_path / "copy.qcow2") == []
    first = image.header.snapshots_offset
    image.put_entry(first, image.entry(first) + 256)
    assert any("L1 table is not cluster aligned" in line for line in await assert_same_as_qemu(image, path))


@pytest.mark.peer("qemu-img")
async def test_random_damage_to_tables(tmp_path: Path) -> None:
    """A handful of each run's damage; the long run of this found nothing but what the tests above name."""
    dice = random.Random(20)
    sound = await new_image(1 << 20, cluster_size=512)
    for cluster in dice.sample(range(64), 30):
        sound.map(cluster, b"x")
    areas = [sound.header.l1_table_offset, sound.entry(sound.header.refcount_table_offset), sound.l2_entry_at(0)]
    for run in range(12):
        image = Craft(sound.data)
        if run % 3 == 0:
            twice, again = (image.l2_entry_at(cluster) for cluster in dice.sample(range(64), 2))
            image.put_entry(twice, image.entry(again))
        for _ in range(dice.randrange(1, 4)):
            # Not the lowest bits of an L1 entry: QEMU goes on to read a crooked table, we do not.
            at = dice.choice(areas) + dice.randrange(64) * 8 + dice.choice([0, 1, 4, 5])
            image.data[at] ^= 1 << dice.randrange(8)
        await assert_same_as_qemu(image, tmp_path / "random.qcow2")


async def test_a_crooked_l2_table_is_reported_and_not_read() -> None:
    image = await new_image(1 << 20)
    image.map(0, b"x")
    image.put_entry(image.l1_entry_at(0), image.entry(image.l1_entry_at(0)) + 512)
    result, lines = await check(image)
    assert any("Table is not cluster aligned; L1 entry corrupted" in line for line in lines)
    assert result.allocated_clusters == 0


async def test_a_snapshot_table_that_is_none_ends_the_check() -> None:
    image = (await new_image(1 << 20)).set(snapshots_offset=512)
    with pytest.raises(CorruptImage, match="snapshot table offset invalid"):
        await check(image)
    image.set(snapshots_offset=0, nb_snapshots=65537)
    with pytest.raises(LimitExceeded, match="snapshot table too large"):
        await check(image)
    offset = image.cluster(struct.pack(">QIHHIIQII", 0, 0, 0, 0, 0, 0, 0, 0, 2000))
    with pytest.raises(LimitExceeded, match="Too much extra metadata"):
        await check(image.set(snapshots_offset=offset, nb_snapshots=1))


async def test_an_l2_table_shared_by_all_entries_is_read_once() -> None:
    """Hostile: 2048 L1 entries to one table must not cost 2048 walks."""
    image = await new_image(2048 * 64 * 512, cluster_size=512)
    image.map(0, b"x")
    for index in range(1, 2048):
        image.put_entry(image.l1_entry_at(index), image.entry(image.l1_entry_at(0)))
    child = MemoryChild(image.data)
    lines: list[str] = []
    result = await check_image(child, image.header, trust=Limits(), report=lines.append)
    table = image.entry(image.l1_entry_at(0)) & ~COPIED
    # Once to count; the COPIED flags contradict the refcounts nowhere, so that nobody comes back.
    assert sum(1 for name, offset, _ in child.log if name == "read" and offset == table) == 1
    assert "ERROR cluster 34 refcount=1 reference=2048" in " ".join(lines).replace(
        f"cluster {table >> 9}", "cluster 34"
    )
    assert result.corruptions == 2


async def test_progress_and_read_errors() -> None:
    image = await new_image(64 << 20)
    image.map(0, b"x")
    told: list[tuple[int, int]] = []
    child = MemoryChild(image.data)
    await check_image(
        child,
        image.header,
        trust=Limits(),
        report=lambda _line: None,
        progress=lambda done, all: told.append((done, all)),
    )
    assert told == [(1, 1)]

    def fail(name: str, offset: int, nbytes: int) -> None:
        if offset == image.header.l1_table_offset:
            raise BlockError

    child.before = fail
    with pytest.raises(BlockError):
        await check_image(child, image.header, trust=Limits(), report=lambda _line: None)


class TestReferences:
    def test_counts_past_a_byte(self) -> None:
        counted = References(4, 65535)
        assert counted.add(1, 254) == 0
        assert counted.add(1, 1) == 0
        assert counted.add(1, 1000) == 0
        assert (counted.get(1), counted.counts[1]) == (1255, 255)
        counted.put(1, 3)
        assert (counted.get(1), counted.more) == (3, {})

    def test_stops_at_what_a_refcount_holds(self) -> None:
        counted = References(1, 1)
        assert counted.add(0, 1) == 0
        assert counted.add(0, 2) == 2
        assert counted.get(0) == 1


async def test_total_clusters_are_the_disks() -> None:
    image = await new_image((1 << 20) + 512)
    result, _ = await check(image)
    assert result.total_clusters == 17
    assert isinstance(image.header, Header)


@pytest.mark.peer("qemu-img")
async def test_qemu_counts_the_same_total(tmp_path: Path) -> None:
    path = (await new_image((1 << 20) + 512)).save(tmp_path / "a.qcow2")
    assert qemu_img_json("check", path)["total-clusters"] == 17
