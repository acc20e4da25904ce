"""A disk of many runs is told of a slice at a time; each run is what a look at it alone would say."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockio
from blockio.driver.gate import AllowAll
from blockio.img.mapping import map_node
from blockio.io import status
from blockio.io.node_io import NodeIO
from blockio.types import BlockStatus, Extent
from blockio_drivers.qcow2.entries import InvalidEntry, entries_of
from blockio_drivers.qcow2.tables import (
    COMPRESSED,
    COPIED,
    L1_OFFSET_MASK,
    ZERO,
    Geometry,
    table_from_bytes,
    table_to_bytes,
)
from tests.qcow2.engine import new_image, open_disk
from tests.support.qcow2_craft import Craft
from tests.support.qemu import qemu_img, qemu_img_json, qemu_io

CLUSTER = 4096
ENTRY = st.builds(
    lambda place, flags: (0x10000 + place * CLUSTER | flags) if place else flags,
    st.integers(0, 5),
    st.sampled_from((0, COPIED, COPIED, COPIED, ZERO, COPIED | ZERO, COMPRESSED, 512)),
)


@given(st.lists(ENTRY, min_size=1, max_size=24), st.integers(0, 23))
def test_runs_are_one_run_after_another(words: list[int], at: int) -> None:
    entries = entries_of(Geometry.make(12))
    table = table_from_bytes(b"".join(word.to_bytes(8, "big") for word in words))
    at %= len(words)
    expected = []
    here = at
    while here < len(words):
        try:
            run = entries.run(table, here, len(words))
        except InvalidEntry:
            break
        expected.append(tuple(run))
        here += run.reach
    assert list(entries.runs(table, at, len(words))) == expected
    columns = list(entries.columns(table, at, len(words)))
    assert [(kind, *run) for kind, *column in columns for run in zip(*column, strict=True)] == expected
    assert all(len({host >= 0 for host in hosts}) == 1 for _, _, hosts in columns)


@pytest.mark.parametrize("options", [{"cluster_size": CLUSTER}, {"cluster_size": 16384, "extended_l2": True}])
async def test_many_extents_are_one_after_another(options: dict[str, object]) -> None:
    rnd = random.Random(7)
    size = 1 << 20
    async with open_disk(await new_image(size, **options)) as disk:
        for _ in range(60):
            offset = rnd.randrange(size)
            await disk.write(offset, b"x" * min(rnd.randrange(1, 9000), size - offset))
        await disk.zero(0, 4 * 16384)
        for offset in (0, 5, 16384 + 100, 70000, size - 512):
            nbytes = min(rnd.randrange(1, size), size - offset)
            at = offset
            many = disk.driver.try_map_many(offset, nbytes)
            assert many
            for kind, lengths, hosts, child in many:
                for length, host in zip(lengths, hosts, strict=True):
                    assert await disk.driver.co_map(at, length) == Extent(kind, length, host, child)
                    at += length
            assert at <= offset + nbytes
            assert disk.driver.try_map_many(offset, 1)[0].lengths == [1]


def shuffled(path: Path) -> None:
    """Guest clusters trade their places, so that each is a run of its own."""
    image = Craft(path.read_bytes())
    table = image.entry(image.l1_entry_at(0)) & L1_OFFSET_MASK
    words = table_from_bytes(image.data[table : table + image.geometry.cluster_size])
    order = [word for word in words if word]
    random.Random(3).shuffle(order)
    words[: len(order)] = table_from_bytes(b"".join(word.to_bytes(8, "big") for word in order))
    image.put(table, table_to_bytes(words)).save(path)


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("preallocation", ["metadata", "falloc"])
async def test_a_fragmented_disk_with_holes_is_mapped_as_qemu_maps_it(preallocation: str, tmp_path: Path) -> None:
    """Only metadata is there for most of it: the file is asked where its holes are, and QEMU asks it too."""
    path = tmp_path / "i.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size=4k,preallocation={preallocation}", path, "2M")
    qemu_io(path, "write -P 1 64k 16k", "write -P 2 777k 40k", "write -P 3 1900k 3k", format="qcow2")
    shuffled(path)
    async with blockio.open(str(path), format="qcow2", read_only=True, gate=AllowAll()) as blk:
        assert blk.bs is not None
        ours = [(e.start, e.length, e.present, e.zero, e.data, e.offset) async for e in map_node(blk.bs)]
        io = blk.bs.path
        assert isinstance(io, NodeIO)
        many = await status.block_statuses(io, 0, 2 << 20)
        assert sum(len(some.lengths) for some in many) > 400
        at = 0
        for flags, lengths, hosts, name in many:
            for length, host in zip(lengths, hosts, strict=True):
                one = await status.block_status(io, at, length, want_zero=True)
                assert one == BlockStatus(flags, length, host, name)
                at += length
        assert at == 2 << 20
    fields = ("start", "length", "present", "zero", "data", "offset")
    assert ours == [tuple(entry.get(field) for field in fields) for entry in qemu_img_json("map", path)]
