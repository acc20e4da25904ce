"""Copy offload: down both mappings to two disks that know each other."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from blockio.errors import BlockError, ReadOnly, UnsupportedFeature
from blockio.types import Capability, OpenFlags, Perm
from tests.io.world import ALL_NATIVE, Disk, failing_after, in_format, on_disk, opened, pattern

K = 1024


async def test_between_two_disks() -> None:
    one, two = Disk(pattern(8 * K)), Disk(8 * K)
    async with opened(on_disk(one)) as source, opened(on_disk(two)) as target:
        await source.edge.co_copy_range_to(100, target.edge, 200, 5000)
        assert bytes(two.data[200:5200]) == pattern(8 * K)[100:5100]
        assert one.ranges("copy") == [(100, 5000)]
        assert target.io.write_gen == 1
        await source.edge.co_copy_range_to(0, target.edge, 0, 0)
        source.whole()
        target.whole()


async def test_through_the_mappings_of_formats() -> None:
    source_file, base, target_file = Disk(0), Disk(pattern(12 * K, 5)), Disk(0)
    source_tree = in_format(source_file, length=32 * K, backing=on_disk(base))
    async with opened(source_tree) as source, opened(in_format(target_file, length=32 * K)) as target:
        await source.write(4 * K, pattern(4 * K))
        await source.io.co_pwrite_zeroes(8 * K, 4 * K)
        expected = await source.read(0, 32 * K)
        target_file.log.clear()
        await target.write(1000, b"keep" * 10)
        await source.edge.co_copy_range_to(2 * K, target.edge, 2 * K, 20 * K)
        assert await target.read(0, 32 * K) == (
            bytes(1000) + b"keep" * 10 + bytes(2 * K - 1040) + expected[2 * K : 22 * K] + bytes(10 * K)
        )
        assert source_file.ranges("copy") == [(0, 4 * K)]
        assert base.ranges("copy") == [(2 * K, 2 * K)]
        assert {room.ended for room in target.format.rooms} == {"link"}
        source.whole()
        target.whole()


async def test_a_failed_copy_abandons_what_was_allocated() -> None:
    one, file = Disk(pattern(8 * K)), Disk(0)
    async with opened(on_disk(one)) as source, opened(in_format(file, length=8 * K)) as target:
        one.before = failing_after(0)
        with pytest.raises(BlockError):
            await source.edge.co_copy_range_to(0, target.edge, 0, 8 * K)
        assert [room.ended for room in target.format.rooms] == ["abandon"]
        source.whole()
        target.whole()


async def test_nothing_is_copied_past_the_end_of_a_format() -> None:
    """A raw window ends inside its file, and what is behind it is somebody else's."""
    one, two, three = Disk(pattern(8 * K)), Disk(8 * K), Disk(0)
    window = {"driver": "raw", "size": 4 * K, "file": on_disk(two)}
    clusters = in_format(three, length=4 * K)
    async with opened(on_disk(one)) as source, opened(window) as raw, opened(clusters) as target:
        for there in (raw, target):
            with pytest.raises(UnsupportedFeature):
                await source.edge.co_copy_range_to(0, there.edge, 2 * K, 4 * K)
            there.whole()
        source.whole()
    assert two.data == bytes(8 * K)
    assert not three.data


async def test_a_guessed_format_sees_what_is_written() -> None:
    one, two = Disk(b"QFI\xfb" + bytes(8 * K)), Disk(8 * K)
    async with opened(on_disk(one)) as source, opened({"driver": "raw", "file": on_disk(two)}) as target:
        target.node.probed = True
        with pytest.raises(UnsupportedFeature):
            await source.edge.co_copy_range_to(0, target.edge, 0, 4 * K)
    assert two.data == bytes(8 * K)


async def test_where_it_cannot_be() -> None:
    unable = replace(ALL_NATIVE, copy_range=Capability.NONE)
    one, two = Disk(8 * K, capabilities=unable), Disk(8 * K)
    async with opened(on_disk(one)) as source, opened(on_disk(two)) as target:
        for here, there in ((source, target), (target, source)):
            with pytest.raises(UnsupportedFeature):
                await here.edge.co_copy_range_to(0, there.edge, 0, 512)
        with pytest.raises(UnsupportedFeature):
            await target.edge.co_copy_range_to(8 * K - 1, target.edge, 0, 2)
        source.whole()
        target.whole()
    read_only = opened(on_disk(Disk(8 * K)), flags=OpenFlags(read_only=True), perm=Perm.CONSISTENT_READ)
    async with opened(on_disk(Disk(8 * K))) as source, read_only as target:
        with pytest.raises(BlockError):
            await source.edge.co_copy_range_to(0, target.edge, 0, 512)
        with pytest.raises(ReadOnly):
            await source.io.co_copy_range_to(0, target.edge, 0, 512)
