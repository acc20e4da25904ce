"""Refcounts of every width."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio_drivers.qcow2.image import Freed, in_place_order
from blockio_drivers.qcow2.refcounts import RefcountCodec

ORDERS = range(7)


@pytest.mark.parametrize(
    ("order", "block", "values"),
    [
        (0, b"\x05\x80", [1, 0, 1, 0, 0, 0, 0, 0] + [0] * 7 + [1]),
        (1, b"\xe4", [0, 1, 2, 3]),
        (2, b"\x21\xf0", [1, 2, 0, 15]),
        (3, b"\x01\xff", [1, 255]),
        (4, b"\x00\x01\xff\xfe", [1, 65534]),
        (5, b"\x00\x00\x00\x01\x80\x00\x00\x00", [1, 1 << 31]),
        (6, b"\x80\x00\x00\x00\x00\x00\x00\x01", [(1 << 63) + 1]),
    ],
)
def test_byte_by_byte(order: int, block: bytes, values: list[int]) -> None:
    codec = RefcountCodec.of(order)
    assert codec.entries(len(block)) == len(values)
    assert list(codec.decode(block)) == values
    assert [codec.get(block, index) for index in range(len(values))] == values
    fresh = bytearray(len(block))
    for index, value in enumerate(values):
        codec.put(fresh, index, value)
    assert fresh == block


@given(st.sampled_from(ORDERS), st.binary(min_size=1, max_size=128))
def test_any_block_comes_back(order: int, noise: bytes) -> None:
    block = noise[: len(noise) // 8 * 8] or bytes(8)
    codec = RefcountCodec.of(order)
    values = codec.decode(block)
    assert codec.encode(values) == block
    assert list(codec.low_bytes(block)) == [min(value, 255) for value in values]


@pytest.mark.parametrize("order", ORDERS)
def test_neighbours_are_left_alone(order: int) -> None:
    codec = RefcountCodec.of(order)
    block = bytearray(b"\xff" * 16)
    codec.put(block, 1, 0)
    assert [codec.get(block, index) for index in (0, 1)] == [codec.maximum, 0]
    assert sum(codec.get(block, index) != codec.maximum for index in range(codec.entries(16))) == 1


@pytest.mark.parametrize("order", ORDERS)
def test_what_does_not_fit_is_refused(order: int) -> None:
    codec = RefcountCodec.of(order)
    assert codec.maximum == (1 << (1 << order)) - 1
    with pytest.raises((OverflowError, ValueError)):
        codec.put(bytearray(8), 0, codec.maximum + 1)
    if order < 3:
        with pytest.raises(OverflowError):
            codec.encode(array("B", [codec.maximum + 1] * 8))
        with pytest.raises(ValueError, match="whole bytes"):
            codec.encode(array("B", [1]))


def test_order_7_is_no_width() -> None:
    with pytest.raises(ValueError, match="order 7"):
        RefcountCodec.of(7)


@given(st.sampled_from(ORDERS), st.data())
def test_many_refcounts_change_as_each_alone_would(order: int, data: st.DataObject) -> None:
    codec = RefcountCodec.of(order)
    high = codec.maximum
    some = st.sampled_from([value for value in (0, 1, 2, 254, 255, 256, high // 2, high - 1, high) if value <= high])
    values = data.draw(st.lists(some, min_size=8, max_size=8))
    where = bytes(data.draw(st.lists(st.integers(0, 1), min_size=8, max_size=8)))
    weight = data.draw(st.integers(-300, 300))
    block = codec.encode(array({3: "B", 4: "H", 5: "I", 6: "Q"}.get(order, "B"), values))
    wanted = [value + weight * chosen for value, chosen in zip(values, where, strict=True)]
    assert codec.ones(block) == bytes(value == 1 for value in values)
    if abs(weight) > high or not all(0 <= value <= high for value in wanted):
        with pytest.raises(OverflowError):
            codec.raised(block, where, weight)
    else:
        assert list(codec.decode(codec.raised(block, where, weight))) == wanted


@given(st.lists(st.builds(Freed, st.integers(0, 30), st.integers(1, 4), st.booleans()), max_size=12))
def test_what_is_freed_loses_as_many_references_in_order_of_place(freed: list[Freed]) -> None:
    def references(items: Iterable[Freed]) -> Counter[tuple[int, bool]]:
        return Counter((at, discard) for first, count, discard in items for at in range(first, first + count))

    ordered = in_place_order(freed)
    assert references(ordered) == references(freed)
    assert list(ordered) == sorted(ordered)
    for one, other in pairwise(ordered):
        assert (one.first + one.clusters, one.discard) != (other.first, other.discard)


@pytest.mark.parametrize("order", ORDERS)
def test_the_last_one_in_use_is_found(order: int) -> None:
    codec = RefcountCodec.of(order)
    block = bytearray(32)
    assert codec.last_used(block) == -1
    for index in range(codec.entries(len(block))):
        codec.put(block, index, 1)
        assert codec.last_used(block) == index
