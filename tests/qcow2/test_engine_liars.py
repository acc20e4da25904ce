"""Images that lie: what they say is met as an error, and nothing is written over anything."""

from __future__ import annotations

import struct

import pytest

from blockio.errors import CorruptImage, ImageError, NoMedium
from blockio.types import OpenFlags
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED
from tests.qcow2.engine import first_l2_table, open_disk, put, written_image

CLUSTER = 4096


@pytest.mark.parametrize(
    ("where", "what"),
    [
        ("header", "qcow2_header"),
        ("l1", "active L1 table"),
        ("l2", "active L2 table"),
        ("reftable", "refcount table"),
        ("refblock", "refcount block"),
    ],
)
async def test_data_is_never_written_over_metadata(where: str, what: str) -> None:
    child = await written_image()
    l1, l2 = first_l2_table(child)
    (reftable,) = struct.unpack(">Q", child.data[48:56])
    (refblock,) = struct.unpack(">Q", child.data[reftable : reftable + 8])
    target = {"header": 0, "l1": l1, "l2": l2, "reftable": reftable, "refblock": refblock}[where]
    if where == "header":
        # The one entry that cannot lead to cluster 0: make cluster 0 look free instead.
        put(child, refblock, 0, 2)
        put(child, l2, 0)
        message = "Preventing invalid allocation of data cluster at offset 0"
    else:
        put(child, l2, target | COPIED)
        message = f"Preventing invalid write on metadata (overlaps with {what})"
    before = bytes(child.data)
    async with open_disk(child) as disk:
        assert not disk.driver.try_pwritev(0, [b"x" * 512], 512)
        with pytest.raises(CorruptImage) as caught:
            await disk.write(0, b"x" * 512)
        assert caught.value.message == message
        assert (
            "report",
            f"qcow2: Marking image as corrupt: {message}; further corruption events will be suppressed",
        ) in (disk.host.events)
        with pytest.raises(NoMedium):
            await disk.read(0, 512)
        assert not disk.driver.try_preadv(0, [bytearray(512)], 512)
    assert child.data[79] & 2, "the corrupt bit"
    child.data[79] &= ~2
    assert child.data == before, "and nothing else was written"


async def test_a_corrupt_image_is_refused_but_for_readers_and_checkers() -> None:
    child = await written_image()
    child.data[79] |= 2
    with pytest.raises(ImageError, match="qcow2: Image is corrupt; cannot be opened read/write"):
        async with open_disk(child):
            pass
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        assert await disk.read(0, 5) == b"aaaaa"
    async with open_disk(child, flags=OpenFlags(check=True)) as disk:
        assert await disk.read(0, 5) == b"aaaaa"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (COPIED | 0x52A00, "Cluster allocation offset 0x52a00 unaligned (L2 offset: 0x40000, L2 index: 0)"),
        (COPIED | 0x52A01, "Preallocated zero cluster offset 0x52a00 unaligned (L2 offset: 0x40000, L2 index: 0)"),
    ],
)
async def test_unaligned_entries_are_corruption(entry: int, message: str) -> None:
    child = await written_image()
    _, l2 = first_l2_table(child)
    assert l2 == 0x40000
    put(child, l2, entry)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        for _ in range(2):
            with pytest.raises(CorruptImage) as caught:
                await disk.read(0, 512)
            assert caught.value.message == message
        told = [event for event in disk.host.events if event[0] == "corrupted"]
        assert told == [("corrupted", message, -1, -1, False)], "once, and not fatal for a reader"
        assert await disk.read(131072, 512) == bytes(512)


async def test_an_unaligned_l2_table_is_corruption() -> None:
    child = await written_image()
    l1, _ = first_l2_table(child)
    put(child, l1, COPIED | 0x40200)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        with pytest.raises(CorruptImage, match=r"L2 table offset 0x40200 unaligned \(L1 index: 0\)"):
            await disk.read(0, 512)


async def test_zero_clusters_in_version_2_are_corruption() -> None:
    child = await written_image(compat="0.10")
    _, l2 = first_l2_table(child)
    put(child, l2 + 8, 1)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        with pytest.raises(CorruptImage, match="Zero cluster entry found in pre-v3 image"):
            await disk.read(65536, 512)


async def test_a_damaged_compressed_cluster_is_an_error_each_time() -> None:
    child = await written_image()
    _, l2 = first_l2_table(child)
    put(child, l2, (1 << 62) | 0x50000 | (3 << 54))
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        for _ in range(2):
            with pytest.raises(CorruptImage):
                await disk.read(0, 512)


async def test_new_metadata_is_not_put_where_a_stale_refcount_says_free() -> None:
    """Regression: L2 tables overwritten by an allocation that trusted a wrong refcount of 0."""
    child = await written_image()
    l1, l2 = first_l2_table(child)
    (reftable,) = struct.unpack(">Q", child.data[48:56])
    (refblock,) = struct.unpack(">Q", child.data[reftable : reftable + 8])
    put(child, refblock + 2 * (l2 >> 16), 0, 2)
    async with open_disk(child) as disk:
        with pytest.raises(CorruptImage, match="overlaps with active L2 table"):
            await disk.write(65536, b"b" * 512)
    assert l1


@pytest.mark.parametrize("template", ["none", "cached"])
async def test_letting_go_of_what_nobody_counts_writes_nothing(template: str) -> None:
    """Regression: the refcounts of a cluster without a refcount block were "written back" over the header."""
    child = await written_image()
    _, l2 = first_l2_table(child)
    put(child, l2 + 8, COMPRESSED | 1 << 40)
    head = bytes(child.data[:65536])
    async with open_disk(child, overlap_check=template) as disk:
        await disk.discard(65536, 65536)
        await disk.flush()
        assert ("report", "qcow2_free_clusters failed: Invalid argument") in disk.host.events
        await disk.write(65536, b"new")
    assert child.data[:65536] == head
