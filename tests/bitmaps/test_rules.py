"""Who may do what with a bitmap, in QEMU's words; successors, merging, clearing, moving the end of the disk."""

from __future__ import annotations

import pytest

from blockio.bitmaps.dirty import DirtyBitmap
from blockio.bitmaps.owner import DirtyBitmaps
from blockio.errors import BlockError

SIZE = 1 << 20


def filled(*offsets: int, size: int = SIZE, granularity: int = 4096) -> DirtyBitmap:
    bitmap = DirtyBitmap(size, granularity, "b0")
    for offset in offsets:
        bitmap.set(offset, 1)
    return bitmap


def test_names_are_unique_and_short() -> None:
    bitmaps = DirtyBitmaps()
    first = bitmaps.create(SIZE, 512, "a")
    bitmaps.create(SIZE, 512)
    bitmaps.create(SIZE, 512)
    with pytest.raises(BlockError, match="Bitmap already exists: a"):
        bitmaps.create(SIZE, 512, "a")
    with pytest.raises(BlockError, match="Bitmap name too long: ä"):
        bitmaps.create(SIZE, 512, "ä" * 512)
    assert bitmaps.find("a") is first
    assert first in bitmaps
    bitmaps.release(first)
    with pytest.raises(ValueError, match="not here"):
        bitmaps.release(first)
    assert bitmaps.find("a") is None


def test_the_first_and_the_last_are_told_of() -> None:
    told: list[bool] = []
    bitmaps = DirtyBitmaps(lambda: told.append(bool(bitmaps)))
    one, two = bitmaps.create(SIZE, 512, "1"), bitmaps.create(SIZE, 512, "2")
    bitmaps.release(one)
    bitmaps.release(two)
    assert told == [True, False]


def test_the_newest_comes_first() -> None:
    bitmaps = DirtyBitmaps()
    for name in "abc":
        bitmaps.create(SIZE, 512, name)
    assert [bitmap.name for bitmap in bitmaps] == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("busy", "Bitmap 'b0' is currently in use by another operation and cannot be used"),
        ("readonly", "Bitmap 'b0' is readonly and cannot be modified"),
        ("inconsistent", "Bitmap 'b0' is inconsistent and cannot be used"),
    ],
)
def test_what_cannot_be_used_is_not_changed(state: str, message: str) -> None:
    bitmap = filled(0)
    setattr(bitmap, state, True)
    for work in (bitmap.clear, lambda: bitmap.merge(filled(4096)), lambda: bitmap.restore(filled().clear())):
        with pytest.raises(BlockError, match=message):
            work()
    assert list(bitmap) == [0]
    other = filled()
    if state == "readonly":
        other.merge(bitmap)
    else:
        with pytest.raises(BlockError, match=message):
            other.merge(bitmap)


def test_only_what_records_is_marked() -> None:
    bitmaps = DirtyBitmaps()
    for name in ("disabled", "readonly", "inconsistent", "enabled"):
        bitmap = bitmaps.create(SIZE, 4096, name)
        if name != "enabled":
            setattr(bitmap, name, True)
    bitmaps.mark(5000, 1)
    bitmaps.mark(SIZE - 1, 100)
    bitmaps.mark(SIZE + 5, 100)
    assert {bitmap.name: list(bitmap) for bitmap in bitmaps if bitmap.count} == {"enabled": [4096, SIZE - 4096]}


def test_merging_granularities() -> None:
    coarse, fine = filled(granularity=65536), filled(5000, 70_000)
    backup = coarse.merge(fine)
    assert list(coarse) == [0, 65536]
    fine.merge(coarse)
    assert fine.count == 2 * 65536
    coarse.restore(backup)
    assert not coarse.count
    with pytest.raises(BlockError, match=r"destination size is 1048576, source size is 512\) and can't be merged"):
        coarse.merge(DirtyBitmap(512, 512))
    with pytest.raises(ValueError, match="bits for a bitmap"):
        coarse.restore(fine.clear())


def test_clear_can_be_taken_back() -> None:
    bitmap = filled(0, 9000)
    backup = bitmap.clear()
    bitmap.set(4096, 1)
    bitmap.restore(backup)
    assert list(bitmap) == [0, 8192]


@pytest.mark.parametrize("disabled", [False, True])
def test_successors(disabled: bool) -> None:
    bitmaps = DirtyBitmaps()
    parent = bitmaps.create(SIZE, 4096, "b0")
    parent.persistent = True
    parent.disabled = disabled
    parent.set(0, 1)
    child = bitmaps.create_successor(parent)
    with pytest.raises(BlockError, match="currently in use by another operation"):
        bitmaps.create_successor(parent)
    with pytest.raises(RuntimeError, match="in use"):
        bitmaps.release(parent)
    bitmaps.mark(8192, 1)
    assert parent.recording != disabled
    assert list(parent) == [0]
    assert list(child) == ([] if disabled else [8192])

    assert bitmaps.reclaim(parent) is parent
    assert list(parent) == ([0] if disabled else [0, 8192])
    assert (parent.disabled, parent.busy, parent.successor) == (disabled, False, None)
    assert list(bitmaps) == [parent]

    child = bitmaps.create_successor(parent)
    bitmaps.mark(16384, 1)
    assert bitmaps.abdicate(parent) is child
    assert list(bitmaps) == [child]
    assert (child.name, child.persistent, child.disabled) == ("b0", True, disabled)
    assert list(child) == ([] if disabled else [16384])
    with pytest.raises(BlockError, match="no successor present"):
        bitmaps.abdicate(child)
    with pytest.raises(BlockError, match="none is present"):
        bitmaps.reclaim(child)


def test_the_end_of_the_disk_moves() -> None:
    bitmaps = DirtyBitmaps()
    parent = bitmaps.create(SIZE, 4096, "b0")
    child = bitmaps.create_successor(parent)
    bitmaps.mark(SIZE - 1, 1)
    bitmaps.truncate(SIZE * 2)
    bitmaps.mark(SIZE * 2 - 1, 1)
    assert list(child) == [SIZE - 4096, SIZE * 2 - 4096]
    assert parent.size == SIZE * 2
    bitmaps.truncate(1000)
    assert not child.count
    bitmaps.mark(0, 5000)
    assert (child.count, list(child.areas())) == (4096, [(0, 1000)])
