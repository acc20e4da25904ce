"""``img.bitmap`` and ``img.convert`` with bitmaps, as a library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import blockio
from blockio import img
from blockio.graph.bitmap_commands import block_dirty_bitmap_add
from blockio.img import BitmapAction, BitmapOperation
from tests.qcow2.bitmap_rig import mark_in_use

MIB = 1 << 20


async def image(path: Path, *bitmaps: str) -> str:
    await img.create(str(path), "qcow2", size=MIB)
    for name in bitmaps:
        await img.bitmap(str(path), name, [BitmapOperation.ADD])
    return str(path)


async def bits(path: str) -> dict[str | None, list[tuple[int, int]]]:
    async with blockio.open(path, format="qcow2", read_only=True) as blk:
        assert blk.bs is not None
        return {bitmap.name: list(bitmap.areas()) for bitmap in blk.bs.dirty_bitmaps}


async def test_actions_in_turn(tmp_path: Path) -> None:
    path = await image(tmp_path / "a.qcow2")
    actions: list[Any] = [BitmapAction(BitmapOperation.ADD, granularity=4096), BitmapOperation.DISABLE]
    (found,) = await img.bitmap(path, "b0", actions)
    assert (found.name, found.granularity, found.persistent, found.recording) == ("b0", 4096, True, False)
    with pytest.raises(blockio.BlockError, match="Operation add on bitmap b0 failed: Bitmap already exists: b0"):
        await img.bitmap(path, "b0", [BitmapOperation.ENABLE, BitmapOperation.ADD, BitmapOperation.REMOVE])
    (found,) = await img.bitmap(path, "b0", [])
    assert found.recording, "what was done before the failure stays done"
    assert await img.bitmap(path, "b0", [BitmapOperation.REMOVE]) == []


async def test_merging_from_another_image(tmp_path: Path) -> None:
    path, other = await image(tmp_path / "a.qcow2", "b0"), await image(tmp_path / "b.qcow2", "theirs")
    async with blockio.open(other, format="qcow2") as blk:
        await blk.co_pwritev(MIB // 2, b"x" * 512)
    await img.bitmap(path, "b0", [BitmapAction(BitmapOperation.MERGE, source="theirs")], source=other)
    assert await bits(path) == {"b0": [(MIB // 2, 65536)]}


async def test_a_conversion_takes_bitmaps_along(tmp_path: Path) -> None:
    path, target = await image(tmp_path / "a.qcow2", "b0", "b1"), str(tmp_path / "c.qcow2")
    async with blockio.open(path, format="qcow2") as blk:
        await blk.co_pwritev(0, b"x" * 512)
        assert blk.bs is not None
        await block_dirty_bitmap_add(blk.bs, "forgotten")
    await img.convert(path, target, "qcow2", bitmaps=True)
    assert await bits(target) == await bits(path) == {"b0": [(0, 65536)], "b1": [(0, 65536)]}
    mark_in_use(Path(path), "b0")
    with pytest.raises(blockio.BlockError, match="Cannot copy inconsistent bitmap 'b0'"):
        await img.convert(path, str(tmp_path / "d.qcow2"), "qcow2", bitmaps=True)
    assert not (tmp_path / "d.qcow2").exists()
    warnings: list[str] = []
    await img.convert(path, target, "qcow2", bitmaps=True, skip_broken_bitmaps=True, on_warning=warnings.append)
    assert await bits(target) == {"b1": [(0, 65536)]}
    assert warnings == ["Skipping inconsistent bitmap 'b0'"]
