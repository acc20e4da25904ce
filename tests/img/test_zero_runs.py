"""Finding the zeroes in a piece of a disk."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from blockio.buffers import data_runs
from blockio.img.copying import CHUNK, _chunks


def naive(data: bytes, offset: int, step: int) -> list[tuple[int, int, bool]]:
    """Byte by byte: each part between two multiples of *step* of the disk is data or zero; neighbours are joined."""
    runs: list[tuple[int, int, bool]] = []
    for at in range(len(data)):
        part = data[max(0, at - (offset + at) % step) : at - (offset + at) % step + step]
        kind = any(part)
        if runs and runs[-1][2] is kind:
            runs[-1] = (runs[-1][0], at + 1, kind)
        else:
            runs.append((at, at + 1, kind))
    return runs


@given(
    picture=st.text("0x.", min_size=1, max_size=24),
    shift=st.integers(0, 15),
    tail=st.integers(0, 7),
    step=st.sampled_from([8, 16]),
)
@example(picture="0", shift=0, tail=0, step=8)
@example(picture="x00", shift=3, tail=5, step=8)
def test_runs_are_what_looking_at_every_byte_finds(picture: str, shift: int, tail: int, step: int) -> None:
    # 8 bytes a letter: zeroes, data, or zeroes with one byte of data where a quick look does not see it.
    blocks = {"0": bytes(8), "x": b"x" * 8, ".": bytes(6) + b".\0"}
    data = b"".join(blocks[letter] for letter in picture)
    data = data[: len(data) - tail] or b"\0"
    assert data_runs(memoryview(data), shift, step) == naive(data, shift, step)


@given(offset=st.integers(0, 5 * CHUNK), nbytes=st.integers(1, 20 * CHUNK), most=st.sampled_from([1, 4]))
def test_pieces_cover_a_run_and_share_no_chunk_of_the_disk(offset: int, nbytes: int, most: int) -> None:
    starts = [*_chunks(offset, nbytes, CHUNK, most * CHUNK), offset + nbytes]
    assert starts[0] == offset
    for begin, end in pairwise(starts):
        assert begin < end <= begin + most * CHUNK
        assert end // CHUNK > begin // CHUNK or end == offset + nbytes
        assert not end % CHUNK or end == offset + nbytes
        assert (end - 1) // CHUNK - begin // CHUNK < most
