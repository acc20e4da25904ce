"""Bits and bitmaps against a plain set of numbers."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from blockio.bitmaps.bits import SparseBits
from blockio.bitmaps.dirty import DirtyBitmap

SIZES = st.sampled_from([0, 1, 63, 64, 8191, 8192, 8193, 20000, 3 * 8192])


class Bits(RuleBasedStateMachine):
    """Every operation beside the same on a set."""

    def __init__(self) -> None:
        super().__init__()
        self.bits = SparseBits(0)
        self.model: set[int] = set()

    @initialize(size=SIZES)
    def begin(self, size: int) -> None:
        self.bits = SparseBits(size)

    def _range(self, data: st.DataObject, align: int = 1) -> tuple[int, int]:
        size = self.bits.size
        edges = [at for at in (0, 1, 8191, 8192, 8193, 16384, size - 1, size) if 0 <= at <= size]
        ends = st.one_of(st.sampled_from(edges), st.integers(0, size))
        start, stop = sorted((data.draw(ends), data.draw(ends)))
        return start // align * align, stop

    @rule(data=st.data(), on=st.booleans())
    def change(self, data: st.DataObject, on: bool) -> None:
        start, stop = self._range(data)
        if on:
            self.bits.set(start, stop)
            self.model.update(range(start, stop))
        else:
            self.bits.reset(start, stop)
            self.model.difference_update(range(start, stop))

    @rule(size=SIZES)
    def resize(self, size: int) -> None:
        self.bits.resize(size)
        self.model = {bit for bit in self.model if bit < size}

    @rule(data=st.data())
    def merge(self, data: st.DataObject) -> None:
        other = SparseBits(self.bits.size)
        for _ in range(3):
            start, stop = self._range(data)
            other.set(start, stop)
            self.model.update(range(start, stop))
        self.bits.update(other)

    @rule(data=st.data())
    def through_bytes(self, data: st.DataObject) -> None:
        start, stop = self._range(data, align=8)
        raw = self.bits.to_bytes(start, stop)
        assert int.from_bytes(raw, "little") == sum(1 << (bit - start) for bit in self.model if start <= bit < stop)
        twin = self.bits.copy()
        twin.reset(0, twin.size)
        twin.from_bytes(0, self.bits.to_bytes(0, self.bits.size))
        assert list(twin.runs()) == list(self.bits.runs())
        self.bits = twin

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        start, stop = self._range(data)
        inside = [bit for bit in self.model if start <= bit < stop]
        assert self.bits.next_set(start, stop) == min(inside, default=None)
        clear = next((bit for bit in range(start, stop) if bit not in self.model), None)
        assert self.bits.next_clear(start, stop) == clear
        if start < self.bits.size:
            assert self.bits[start] == (start in self.model)

    @invariant()
    def the_same(self) -> None:
        bits = self.bits
        assert bits.count == len(self.model)
        assert {bit for start, stop in bits.runs() for bit in range(start, stop)} == self.model
        assert {index for index in range(bits._mixed.bit_length()) if bits._mixed >> index & 1} == set(bits._chunks)
        assert not bits._mixed & bits._full
        assert all(0 < chunk < bits._whole(index) for index, chunk in bits._chunks.items())


TestBits = Bits.TestCase


def test_what_is_sparse_costs_little() -> None:
    bits = SparseBits((64 << 40) >> 16)  # 64 TiB by 64 KiB
    bits.set(0, bits.size)
    assert bits.nbytes == 0
    bits.reset(1000, 1 << 28)
    assert bits.count == bits.size - (1 << 28) + 1000
    bits.set(1 << 27, (1 << 27) + 1)
    assert bits.nbytes < 64 << 10
    assert bits.next_set(1000, bits.size) == 1 << 27
    assert bits.next_set((1 << 27) + 1, bits.size) == 1 << 28
    assert bits.next_clear(1 << 28, bits.size) is None


def test_the_worst_case_is_bounded() -> None:
    bits = SparseBits(1 << 22)
    bits.from_bytes(0, b"\x55" * (1 << 19))
    assert bits.nbytes <= 1 << 19
    assert bits.count == 1 << 21


@given(st.data())
def test_granules(data: st.DataObject) -> None:
    """A bitmap marks whole granules, reads and serialises them."""
    granularity = data.draw(st.sampled_from([512, 4096, 65536]))
    size = data.draw(st.integers(0, 40)) * granularity * 64 + data.draw(st.integers(0, 3 * granularity))
    assume(size)
    bitmap = DirtyBitmap(size, granularity)
    dirty: set[int] = set()
    for _ in range(data.draw(st.integers(0, 8))):
        offset = data.draw(st.integers(0, size - 1))
        nbytes = data.draw(st.integers(0, min(size - offset, 5 * granularity)))
        bitmap.set(offset, nbytes)
        if nbytes:
            dirty.update(range(offset // granularity, (offset + nbytes - 1) // granularity + 1))
    assert list(bitmap) == [granule * granularity for granule in sorted(dirty)]
    assert bitmap.count == len(dirty) * granularity
    offset = data.draw(st.integers(0, size - 1))
    assert bitmap.get(offset) == (offset // granularity in dirty)
    ahead = [max(granule * granularity, offset) for granule in sorted(dirty) if granule >= offset // granularity]
    assert bitmap.next_dirty(offset, size - offset) == (ahead[0] if ahead else None)
    most = data.draw(st.integers(1, 4 * granularity))
    area = bitmap.next_dirty_area(offset, size, most)
    assert (area is None) == (not ahead)
    if area is not None:
        start, length = area
        assert start == ahead[0]
        assert bitmap.status(start, length) == (True, length)
        assert length == most or not bitmap.get(start + length)
    assert sum(length for _, length in bitmap.areas()) == sum(min(granularity, size - at) for at in bitmap)
    twin = DirtyBitmap(size, granularity)
    align = twin.serialization_align()
    step = data.draw(st.integers(1, 4)) * align
    for at in range(0, size, step):
        part = bitmap.serialize_part(at, min(step, size - at))
        assert len(part) == bitmap.serialization_size(at, min(step, size - at))
        assert len(part) % 8 == 0
        twin.deserialize_part(part, at, min(step, size - at))
    assert list(twin) == list(bitmap)


def test_impossible_ranges() -> None:
    bitmap = DirtyBitmap(10_000, 4096)
    for work in (
        lambda: DirtyBitmap(1, 256),
        lambda: DirtyBitmap(1, 1000),
        lambda: bitmap.set(9_000, 1_001),
        lambda: bitmap.set(-1, 1),
        lambda: bitmap.reset(0, 4095),
        lambda: bitmap.reset(1, 4095),
        lambda: bitmap.status(10_000, 1),
        lambda: bitmap.serialize_part(4096, 100),
        lambda: bitmap.deserialize_part(b"", 0, 10_000),
        lambda: bitmap.next_dirty_area(0, 1, 0),
        lambda: bitmap.next_dirty(-1, 1),
        lambda: SparseBits(8).set(0, 9),
        lambda: SparseBits(8).update(SparseBits(9)),
    ):
        with pytest.raises(ValueError, match=r"\d"):
            work()
    bitmap.set(9_999, 1)
    bitmap.reset(8192, 10_000 - 8192)  # the last granule is whole although short
    assert not bitmap.count
