"""Mistakes found in published qcow2 implementations, where no other test has their name.

The others: ``test_engine_options`` (a backing file shorter than the overlay), ``test_subclusters`` (an invalid
subcluster read as nothing), ``test_engine_sharing`` (a dirty slice dropped, a reader's cancellation that others feel),
``test_fault_states`` (a guard leaked by a cancellation at any await), ``test_engine_liars`` (a stale refcount trusted).
"""

from __future__ import annotations

import pytest

from blockio.errors import LimitExceeded, UnsupportedFeature
from blockio.types import ExtentKind, OpenFlags
from tests.qcow2.engine import new_image, open_disk, put

CLUSTER = 512
PER_TABLE = 64
"""Clusters that one L2 table of 512 bytes speaks of."""


@pytest.mark.parametrize("bit", [5, 6, 31, 32, 63])
@pytest.mark.parametrize("read_only", [False, True])
async def test_an_unknown_incompatible_bit_is_never_accepted(bit: int, read_only: bool) -> None:
    """Not for reading either: the bit says that the rest of the image does not mean what we think."""
    child = await new_image(1 << 20)
    put(child, 72, 1 << bit)
    before = bytes(child.data)
    for check in (False, True):
        with pytest.raises(UnsupportedFeature, match=r"Unsupported qcow2 feature\(s\): "):
            async with open_disk(child, flags=OpenFlags(read_only=read_only, check=check)):
                pass
    assert child.data == before


@pytest.mark.parametrize("extended", [False, True])
async def test_the_last_entry_of_each_table_is_in_it_and_the_next_is_not(extended: bool) -> None:
    """Where ``>`` stands for ``>=`` the byte behind the last entry is looked up one entry behind the table."""
    cluster = 16384 if extended else CLUSTER
    per_table = 1024 if extended else PER_TABLE
    size = 3 * per_table * cluster
    child = await new_image(size, cluster_size=cluster, extended_l2=extended)
    async with open_disk(child) as disk:
        for table in range(3):
            first = table * per_table * cluster
            last = first + per_table * cluster - 1
            await disk.write(last, b"z")
            assert await disk.read(last - 1, 2) == b"\0z"
            found = await disk.driver.co_map(last, 1)
            assert found.kind is ExtentKind.DATA
            if table < 2:
                assert (await disk.driver.co_map(last + 1, 1)).kind is ExtentKind.UNALLOCATED
            assert (await disk.driver.co_map(first, 1)).kind is ExtentKind.UNALLOCATED
        # Right across the seam of two tables, and up to the very end.
        seam = per_table * cluster
        await disk.write(seam - 3, b"across")
        assert await disk.read(seam - 3, 6) == b"across"
        await disk.write(size - 4, b"last")
        assert await disk.read(size - 4, 4) == b"last"
        assert (await disk.check()).corruptions == 0


async def test_a_table_as_large_as_its_limit_is_taken_and_one_entry_more_is_not() -> None:
    """The L1 table at 32 MiB: the bound itself is allowed. (``test_snapshot_rules`` has the one for snapshots.)"""
    child = await new_image(1 << 20, cluster_size=CLUSTER)
    put(child, 36, (32 << 20) // 8, 4)
    put(child, 40, 1 << 20)
    child.data.extend(bytes((33 << 20) - len(child.data)))
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        assert await disk.read(0, CLUSTER) == bytes(CLUSTER)
    put(child, 36, (32 << 20) // 8 + 1, 4)
    with pytest.raises(LimitExceeded, match="Active L1 table too large"):
        async with open_disk(child, flags=OpenFlags(read_only=True)):
            pass
