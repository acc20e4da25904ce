"""What the options and feature bits of an image change."""

from __future__ import annotations

from typing import Any

import pytest

from blockio.errors import OptionError, UnsupportedFeature
from blockio.testing.memory import MemoryChild
from blockio.types import BlockStatus, ExtentKind, OpenFlags, PreallocMode, RequestFlags, StatusFlags
from tests.qcow2.engine import Disk, check_image, new_image, open_disk

CLUSTER = 4096


async def test_a_short_backing_file_does_not_shift_what_follows() -> None:
    """Regression: a backing file shorter than the overlay."""
    base = MemoryChild(b"B" * 5000)
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER, backing_file="b", backing_fmt="raw")
    async with open_disk(child, backing=base) as disk:
        await disk.write(3 * CLUSTER, b"t" * CLUSTER)
        wanted = (b"B" * 5000).ljust(3 * CLUSTER, b"\0") + b"t" * CLUSTER + bytes(CLUSTER)
        assert await disk.read(0, 5 * CLUSTER) == wanted
        await disk.write(4200, b"!")  # copies what the backing file has, and zeroes behind its end
        assert await disk.read(4096, 4096) == b"B" * 104 + b"!" + b"B" * 799 + bytes(3192)


async def test_version_2_over_a_backing_file_has_no_zeroes_and_no_discard() -> None:
    base = MemoryChild(b"B" * 5000)
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER, compat="0.10", backing_file="b", backing_fmt="raw")
    async with open_disk(child, backing=base) as disk:
        for request in (disk.zero, disk.discard):
            with pytest.raises(UnsupportedFeature):
                await request(0, CLUSTER)


async def test_zero_writes_keep_or_free_their_clusters() -> None:
    child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 2 * CLUSTER)
        place = (await disk.driver.co_map(0, CLUSTER)).host_offset
        await disk.zero(0, CLUSTER)
        await disk.zero(CLUSTER, CLUSTER, int(RequestFlags.MAY_UNMAP))
        assert (await disk.driver.co_map(0, CLUSTER))[:3] == (ExtentKind.ZERO, CLUSTER, place)
        assert (await disk.driver.co_map(CLUSTER, CLUSTER))[:3] == (ExtentKind.ZERO, CLUSTER, -1)
        await disk.write(10, b"again")
        assert (await disk.driver.co_map(0, CLUSTER)).host_offset == place, "the reserved cluster is used again"
        assert await disk.read(0, 20) == bytes(10) + b"again" + bytes(5)
    check_image(child.data)


async def test_discards_are_passed_down_when_asked() -> None:
    for options, flags, passed in (
        (None, OpenFlags(unmap=True), True),
        (None, OpenFlags(), False),
        (True, OpenFlags(), True),
        (False, OpenFlags(unmap=True), False),
    ):
        child = await new_image(64 * CLUSTER, cluster_size=CLUSTER)
        async with open_disk(child, flags=flags, pass_discard_request=options) as disk:
            await disk.write(0, b"a" * 3 * CLUSTER)
            place = (await disk.driver.co_map(0, CLUSTER)).host_offset
            await disk.discard(0, 3 * CLUSTER)
            await disk.flush()
            assert (("discard", place, 3 * CLUSTER) in child.log) is passed
            # As a reopen does it: without an option of its own the driver follows the node.
            disk.host.flags = OpenFlags(unmap=not flags.unmap)
            child.log.clear()
            await disk.write(0, b"a" * CLUSTER)
            place = (await disk.driver.co_map(0, CLUSTER)).host_offset
            await disk.discard(0, CLUSTER)
            await disk.flush()
            assert (("discard", place, CLUSTER) in child.log) is (passed if options is not None else not passed)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("passed", [False, True])
async def test_tables_that_others_took_the_place_of_are_discarded_when_asked(passed: bool) -> None:
    child = await new_image(CLUSTER, cluster_size=CLUSTER)
    async with open_disk(child, pass_discard_other=passed) as disk:
        await disk.write(0, b"a" * CLUSTER)
        await disk.flush()
        old = disk.driver._image.header.l1_table_offset
        await disk.driver.co_truncate(CLUSTER * CLUSTER, exact=True, prealloc=PreallocMode.OFF, flags=0)
        assert disk.driver._image.header.l1_table_offset != old
        await disk.flush()
        assert (("discard", old, CLUSTER) in child.log) is passed
        assert await disk.read(0, CLUSTER) == b"a" * CLUSTER
    check_image(child.data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap_check": "some"}, "Unsupported value 'some' for qcow2 option 'overlap-check'"),
        ({"l2_cache_entry_size": 3000}, "L2 cache entry size must be a power of two between 512 and the cluster size"),
        ({"cache_size": 4096, "l2_cache_size": 8192}, "l2-cache-size may not exceed cache-size"),
        ({"cache_size": 4096, "refcount_cache_size": 8192}, "refcount-cache-size may not exceed cache-size"),
    ],
)
async def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    child = await new_image(1 << 20)
    with pytest.raises(OptionError, match=message):
        async with open_disk(child, **options):
            pass


async def test_lazy_refcounts_need_version_3() -> None:
    child = await new_image(1 << 20, compat="0.10")
    with pytest.raises(OptionError, match="Lazy refcounts require a qcow2 image"):
        async with open_disk(child, lazy_refcounts=True):
            pass


@pytest.mark.peer("qemu-img")
async def test_lazy_refcounts_set_the_dirty_bit_before_and_clear_it_after() -> None:
    child = await new_image(1 << 20, lazy_refcounts=True)
    async with open_disk(child) as disk:
        assert not child.data[79] & 1
        await disk.write(0, b"x")
        await disk.flush()
        assert child.data[79] & 1
    assert not child.data[79] & 1
    check_image(child.data)


async def test_autoclear_bits_do_not_survive_a_writer() -> None:
    child = await new_image(1 << 20)
    child.data[95] |= 0x84
    async with open_disk(child, flags=OpenFlags(read_only=True)):
        pass
    assert child.data[95] == 0x84
    async with open_disk(child):
        pass
    assert child.data[95] == 0


def describe(disk: Disk) -> dict[str, Any]:
    """What a user sees of the driver."""
    found = disk.driver.specific_info()
    return dict(found["data"])


async def test_preallocated_metadata_is_noticed() -> None:
    """What only ``map`` needs: data clusters that are holes of the file."""

    class Sparse(MemoryChild):
        async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
            page = bytes(self.data[offset : offset + 4096])
            return BlockStatus(StatusFlags.DATA if any(page) else StatusFlags.ZERO, min(nbytes, 4096), offset)

    fresh = await new_image(1 << 20, preallocation="metadata")
    for child, holes in ((Sparse(fresh.data), True), (MemoryChild(fresh.data), False)):
        async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
            assert await disk.driver.co_data_may_be_hole() is holes


async def test_facts() -> None:
    child = await new_image(1 << 20, refcount_bits=1)
    async with open_disk(child) as disk:
        assert describe(disk)["refcount-bits"] == 1
        info = await disk.driver.co_get_info()
        assert (info.cluster_size, info.is_dirty) == (65536, False)
        limits = disk.driver.limits()
        assert (limits.pwrite_zeroes_alignment, limits.pdiscard_alignment) == (65536, 65536)
        assert disk.driver.backing_reference() is None
        assert disk.driver.has_zero_init()
