"""How far words go on in equal steps: what a loop would find."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from blockio_drivers.qcow2.strides import any_shown, run_length, run_starts, shifted
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED, L2_OFFSET_MASK, ZERO

ALL = (1 << 64) - 1
MASKS = (L2_OFFSET_MASK | COMPRESSED | ZERO, L2_OFFSET_MASK | COMPRESSED, COPIED - 1, ALL)


@given(
    st.integers(1, 400),
    st.sampled_from((0, 512, 65536, 2 << 20)),
    st.sampled_from(MASKS),
    st.integers(0, 1 << 48),
    st.lists(st.tuples(st.integers(0, 399), st.integers(0, 63)), max_size=3),
    st.data(),
)
def test_a_run_ends_where_a_loop_ends_it(
    count: int, step: int, mask: int, first: int, flips: list[tuple[int, int]], data: st.DataObject
) -> None:
    table = array("Q", [first + step * at for at in range(count)])
    for at, bit in flips:
        table[at % count] ^= 1 << bit
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    assert any_shown(table, mask) == any(word & mask for word in table)
    high = mask & -512
    assert shifted(table, high, 9).tolist() == [(word & high) >> 9 for word in table]
    expected, here = table[start] & mask, start + 1
    while here < stop and table[here] & mask == expected + (here - start) * step:
        here += 1
    if expected + count * step <= ALL:
        assert run_length(table, start, stop, mask, step) == here - start
    if max(word & mask for word in table) + step <= ALL:
        goes_on = [table[at] & mask == (table[at - 1] & mask) + step for at in range(start + 1, stop)]
        assert run_starts(table, start, stop, mask, step) == [
            start,
            *(at for at, more in enumerate(goes_on, start + 1) if not more),
        ]


def test_runs_longer_than_the_largest_integer() -> None:
    table = array("Q", range(COPIED + 65536, COPIED + 65536 * 30001, 65536))
    assert run_length(table, 0, 30000, ALL, 65536) == 30000
    for wrong in (29999, 16, 17, 8191 + 17, 20000):
        table[wrong] ^= 1
        assert run_length(table, 0, 30000, ALL, 65536) == wrong
        assert run_length(table, 0, wrong, ALL, 65536) == wrong
        assert run_length(table, 0, 30000, ALL - 1, 65536) == 30000
        table[wrong] ^= 1
