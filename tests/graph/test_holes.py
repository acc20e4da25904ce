"""What one look at many places of a file learns of its holes: what asking about each place would have told."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from blockio.driver.child import Child
from blockio.graph.holes import Holes
from blockio.types import BlockStatus, StatusFlags

SECTOR = 512
SECTORS = 64
PLACE = st.tuples(st.integers(0, SECTORS + 8), st.integers(1, 24)).map(lambda at: (at[0] * SECTOR, at[1] * SECTOR))


class File:
    """A file as a picture: ``#`` is a sector of data, ``.`` one of a hole."""

    def __init__(self, picture: str) -> None:
        self.picture = picture
        self.length = len(picture) * SECTOR
        self.asked = 0

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        assert want_zero
        self.asked += 1
        if offset >= self.length:
            return BlockStatus(StatusFlags.EOF, 0)
        first = offset // SECTOR
        here = self.picture[first]
        count = next((at for at, kind in enumerate(self.picture[first:]) if kind != here), len(self.picture) - first)
        flags = StatusFlags.DATA if here == "#" else StatusFlags.ZERO
        return BlockStatus(flags, min(nbytes, count * SECTOR), offset)

    def kinds(self, offset: int, nbytes: int) -> str:
        return self.picture.ljust(SECTORS * 2, ".")[offset // SECTOR : (offset + nbytes) // SECTOR]


@given(st.text("#.", min_size=SECTORS, max_size=SECTORS), st.lists(st.lists(PLACE, min_size=1, max_size=5), max_size=4))
async def test_what_is_learnt_is_what_is_there(picture: str, steps: list[list[tuple[int, int]]]) -> None:
    file = File(picture)
    holes = Holes()
    learnt = []
    for places in steps:
        holes.begin(0)
        known = holes.of(cast(Child, file))
        await known.learn(places)
        learnt += places
        for offset, nbytes in learnt:
            parts = known.parts(offset, nbytes)
            assert [at for at, _, _ in parts] == [offset + sum(n for _, n, _ in parts[:i]) for i in range(len(parts))]
            assert "".join("#."[bool(zero)] * (n // SECTOR) for _, n, zero in parts) == file.kinds(offset, nbytes)
        flags = known.flags(*map(list, zip(*learnt, strict=True)))
        for zero, place in zip(flags, learnt, strict=True):
            assert zero is None or set(file.kinds(*place)) == {"#."[bool(zero)]}
            assert zero is not None or len(known.parts(*place)) > 1
            assert known.flags([place[0]], [place[1]]) == [zero]
        asked = file.asked
        await known.learn(learnt)
        assert file.asked == asked
    holes.begin(1)
    assert not steps or not holes.of(cast(Child, file)).parts(*steps[0][0])


async def test_what_was_never_asked_is_not_known() -> None:
    known = Holes().of(cast(Child, File("##..##")))
    assert known.flags([0], [SECTOR]) == [None]
    assert known.parts(0, SECTOR) == []
    await known.learn([(4 * SECTOR, SECTOR)])
    assert known.parts(SECTOR, 8 * SECTOR) == []
