"""Geometry and table entries."""

from __future__ import annotations

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.types import HostOffset
from blockio_drivers.qcow2.tables import Geometry, table_from_bytes, table_to_bytes

DEFAULT = Geometry.make(16)


@pytest.mark.parametrize(
    ("bits", "l2_entries", "csize_shift", "block_entries"),
    [(9, 64, 61, 256), (12, 512, 58, 2048), (16, 8192, 54, 32768), (21, 262144, 49, 1 << 20)],
)
def test_geometry_of_all_sizes(bits: int, l2_entries: int, csize_shift: int, block_entries: int) -> None:
    geometry = Geometry.make(bits)
    assert geometry.l2_entries == l2_entries
    assert geometry.csize_shift == csize_shift
    assert geometry.refcount_block_entries == block_entries


def test_extended_entries_halve_the_table() -> None:
    assert Geometry.make(16, extended_l2=True).l2_entries == 4096
    assert Geometry.make(16, extended_l2=True).zero_bit == 0
    assert Geometry.make(16, version=2).zero_bit == 0


def test_sizes_in_tables_and_clusters() -> None:
    assert DEFAULT.l1_entries_for(1 << 29) == 1
    assert DEFAULT.l1_entries_for((1 << 29) + 1) == 2
    assert [DEFAULT.clusters(n) for n in (0, 1, 65536, 65537)] == [0, 1, 1, 2]


@given(st.sampled_from([9, 12, 16, 21]), st.integers(0, 1 << 48), st.integers(1, 2 << 20))
def test_compressed_descriptors_come_back(bits: int, offset: int, nbytes: int) -> None:
    geometry = Geometry.make(bits)
    nbytes = min(nbytes, geometry.cluster_size)
    entry = geometry.compressed_entry(HostOffset(offset), nbytes)
    place = geometry.compressed(entry)
    assert place.offset == offset
    assert nbytes <= place.nbytes < nbytes + 512
    assert (place.offset + place.nbytes) % 512 == 0


def test_a_descriptor_has_only_so_much_room() -> None:
    with pytest.raises(ValueError, match="descriptor"):
        Geometry.make(21).compressed_entry(HostOffset(1 << 50), 512)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_tables_are_big_endian_on_disk(entries: list[int]) -> None:
    raw = b"".join(entry.to_bytes(8, "big") for entry in entries)
    assert list(table_from_bytes(raw)) == entries
    table = array("Q", entries)
    assert table_to_bytes(table) == raw
    assert table_to_bytes(table, 1, 3) == raw[8:24]
    assert list(table) == entries, "encoding leaves the table as it was"
