"""Bitmaps of images from strangers: every field bent, and the same verdict as qemu-img; nothing hangs or grows."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from blockio.errors import BlockError, LimitExceeded
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.types import Limits, OpenFlags
from blockio_drivers.qcow2.bitmap_directory import DirectoryEntry, decode_directory, encode_directory
from blockio_drivers.qcow2.driver import Qcow2Driver
from blockio_drivers.qcow2.extensions import BITMAPS
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.options import Qcow2Options
from tests.qcow2.engine import new_image, open_disk

READ_ONLY = OpenFlags(read_only=True)
SIZE = 40 << 20
VALUES = (0, 1, 2, 3, 7, 8, 9, 31, 32, 63, 0x7F, 0x80, 0xFF, 0x200, 0x1000, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF)
WIDE = (*VALUES, 0x20000, 0x50000, 1 << 40, 1 << 55, 1 << 56, 1 << 62, (1 << 63) - 512, 1 << 63, (1 << 64) - 1)


async def original() -> MemoryChild:
    """Two bitmaps, one of them with a table of several entries."""
    child = await new_image(SIZE, cluster_size=4096)
    async with open_disk(child) as disk:
        for name, granularity in (("b0", 512), ("long name", 4096)):
            bitmap = disk.host.dirty_bitmaps.create(SIZE, granularity, name)
            bitmap.persistent = True
            bitmap.set(5 << 20, 20 << 20)
            bitmap.set(0, 1)
    return child


def fields(data: bytearray) -> list[tuple[int, int]]:
    """(offset, width) of everything that speaks of bitmaps: the extension, the directory, the tables."""
    header = Header.decode(bytes(data[:4096]))
    found = header.bitmaps
    assert found is not None
    at = data.index(struct.pack(">II", BITMAPS, 24))
    places = [(at + 4, 4), (at + 8, 4), (at + 12, 4), (at + 16, 8), (at + 24, 8), (88, 8)]
    directory = int(found.directory_offset)
    stop = directory + found.directory_size
    entries = decode_directory(bytes(data[directory:stop]), found.nb_bitmaps, 4096, SIZE)
    for entry in entries:
        places += [(directory, 8), (directory + 8, 4), (directory + 12, 4), (directory + 16, 1), (directory + 17, 1)]
        places += [(directory + 18, 2), (directory + 20, 4), (directory + 24, 1)]
        directory += len(encode_directory([entry]))
        places += [(entry.table_offset + 8 * index, 8) for index in range(entry.table_size)]
    return places


async def verdict(data: bytes | bytearray) -> bool:
    """Whether we open it. Only declared errors; writing on it does no harm."""
    child = MemoryChild(data)
    length = len(data)
    try:
        async with open_disk(child, flags=READ_ONLY):
            pass
    except BlockError:
        return False
    assert child.data == data
    try:
        async with open_disk(child) as disk:
            await disk.write(0, b"x" * 512)
    except BlockError:
        assert len(child.data) <= length + (1 << 20)
    else:
        async with open_disk(MemoryChild(child.data), flags=READ_ONLY) as disk:
            assert await disk.read(0, 512) == b"x" * 512
    return True


@pytest.mark.peer("qemu-img")
def test_every_field_bent(tmp_path: Path) -> None:
    """What QEMU opens we open, and what it refuses we refuse, but for what is said here."""
    rnd = random.Random(1)
    child = asyncio.run(original())
    places = fields(child.data)
    bent = [(at, width, value) for at, width in places for value in rnd.sample(WIDE, 4) if value < 1 << 8 * width]
    images: list[bytes] = []
    for at, width, value in bent:
        data = bytearray(child.data)
        data[at : at + width] = value.to_bytes(width, "big")
        images.append(bytes(data))
    ours = [asyncio.run(verdict(data)) for data in images]
    assert 10 < sum(ours) < len(ours) - 10
    path = tmp_path / "disk.qcow2"
    differing = []
    for image, mine, what in list(zip(images, ours, bent, strict=True))[::2]:
        path.write_bytes(image)
        done = subprocess.run(["qemu-img", "info", "-f", "qcow2", path], capture_output=True, check=False, timeout=60)
        if (done.returncode == 0) != mine:
            differing.append((*what, mine, done.stderr))
    assert differing == []


@pytest.mark.parametrize("where", ["header", "l1", "refcounts", "directory", "itself"])
async def test_tables_that_are_something_else(where: str) -> None:
    """A table or a directory over other metadata: opened for reading at most, and never written over."""
    child = await original()
    header = Header.decode(bytes(child.data[:4096]))
    found = header.bitmaps
    assert found is not None
    area = slice(found.directory_offset, found.directory_offset + found.directory_size)
    entries = decode_directory(bytes(child.data[area]), found.nb_bitmaps, 4096, SIZE)
    target = {
        "header": 4096,  # 0 is no offset
        "l1": int(header.l1_table_offset),
        "refcounts": int(header.refcount_table_offset),
        "directory": int(found.directory_offset),
        "itself": entries[1].table_offset,
    }[where]
    child.data[area] = encode_directory([replace(entries[0], table_offset=target, flags=3), entries[1]])
    tables = {
        "header": bytes(child.data[0:72]),
        "l1": bytes(child.data[header.l1_table_offset : header.l1_table_offset + 8]),
    }
    async with open_disk(child) as disk:
        await disk.write(0, b"x" * 512)
        await disk.driver.co_remove_persistent_dirty_bitmap("b0")
        for bitmap in disk.host.dirty_bitmaps:
            if bitmap.name == "b0":
                disk.host.dirty_bitmaps.release(bitmap)
        await disk.write(1 << 20, b"y" * 100_000)
    assert bytes(child.data[8:32]) == tables["header"][8:32]
    async with open_disk(child, flags=READ_ONLY) as disk:
        assert await disk.read(0, 512) == b"x" * 512
        assert await disk.read(1 << 20, 100_000) == b"y" * 100_000


@pytest.mark.parametrize(("size", "fits"), [(1 << 42, False), (1 << 20, True)])
async def test_10000_bitmaps_over_one_table(size: int, fits: bool) -> None:
    """Large ones in a small file are refused by the size of the first; small ones are only many."""
    child = await new_image(size, cluster_size=65536)
    table = len(child.data)
    clusters = -(-(size >> 16) // 8 // 65536)
    child.data += (table + 65536).to_bytes(8, "big") * clusters + bytes(65536 - 8 * clusters) + b"\x55" * 65536
    directory = encode_directory([DirectoryEntry(f"b{n:05}", 16, 2, table, clusters) for n in range(10_000)])
    place = len(child.data)
    child.data += directory + bytes(-len(directory) % 65536)
    header = Header.decode(bytes(child.data[:65536]))
    extension = struct.pack(">IIIIQQ", BITMAPS, 24, 10_000, 0, len(directory), place)
    end = child.data.index(bytes(8), 504)
    child.data[end : end + 32] = extension
    child.data[95] = 1
    assert header.bitmaps is None
    host = MemoryHost(flags=READ_ONLY, trust=Limits(max_bitmap_memory=64 << 20 if fits else 16 << 20))
    driver = Qcow2Driver(host)
    if fits:
        await driver.open(Qcow2Options(), MemoryOpener(file=child))
        assert len(list(host.dirty_bitmaps)) == 10_000
        await driver.close()
    else:
        with pytest.raises(LimitExceeded, match="Bitmap 'b00001' takes too much memory"):
            await driver.open(Qcow2Options(), MemoryOpener(file=child))
