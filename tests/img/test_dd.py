"""``img.dd``: which blocks arrive, and what is left when it does not end well."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError
from blockio.testing.driver import MemoryDisk
from tests.support.qemu import assert_clean, pattern

MIB = 1 << 20


@pytest.mark.parametrize(
    ("block_size", "count", "skip", "first", "end"),
    [
        (512, None, 0, 0, 5 * MIB),
        (MIB, 3, 0, 0, 3 * MIB),
        (MIB, 3, 2, 2 * MIB, 3 * MIB),
        (1000, 7, 3, 3000, 7000),
        (MIB, 99, 4, 4 * MIB, 5 * MIB),
        (MIB, None, 5, 5 * MIB, 5 * MIB),
    ],
)
async def test_the_blocks_that_were_meant_arrive(
    block_size: int, count: int | None, skip: int, first: int, end: int, tmp_path: Path
) -> None:
    content = pattern(5 * MIB)
    target = tmp_path / "part"
    with MemoryDisk(0) as disk:
        disk.data[:] = content
        source = img.Image(options=disk.options())
        result = await img.dd(source, str(target), block_size=block_size, count=count, skip=skip)
    assert result.size == end - first
    assert target.read_bytes() == content[first:end].ljust(-(-(end - first) // 512) * 512, b"\0")


@pytest.mark.peer("qemu-img")
async def test_into_another_format(tmp_path: Path) -> None:
    target = str(tmp_path / "part.qcow2")
    with MemoryDisk(0) as disk:
        disk.data[:] = pattern(3 * MIB)
        await img.dd(img.Image(options=disk.options()), target, "qcow2", block_size=MIB, skip=1)
    assert_clean(target)
    back = tmp_path / "back"
    await img.convert(img.Image(filename=target, format="qcow2"), str(back))
    assert back.read_bytes() == pattern(3 * MIB)[MIB:]


async def test_skipping_past_the_end_warns_and_copies_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    with MemoryDisk(MIB) as disk:
        source = img.Image(options=disk.options(), label="source")
        await img.dd(source, str(tmp_path / "part"), block_size=MIB, skip=2, on_warning=said.append)
    assert said == ["source: cannot skip to specified offset"]
    assert (tmp_path / "part").read_bytes() == b""


async def test_a_failed_copy_leaves_nothing_and_works_when_tried_again(tmp_path: Path) -> None:
    target = tmp_path / "part"
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = pattern(8 * MIB)
        source = img.Image(options=disk.options())
        disk.fail = BlockError(errno=errno.EIO)
        with pytest.raises(BlockError, match=r"^error while reading from input image file: Input/output error$"):
            await img.dd(source, str(target))
        assert not target.exists()
        disk.fail = None
        await img.dd(source, str(target), block_size=MIB, count=1)
    assert target.stat().st_size == MIB


async def test_a_disk_is_not_copied_onto_itself(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"x" * 512)
    with pytest.raises(OptionError, match="input and output file are the same"):
        await img.dd(str(disk), str(disk))
    overlay = img.Image(filename=str(tmp_path / "overlay"), format="qcow2", gate=AllowAll())
    await img.create(str(tmp_path / "overlay"), "qcow2", backing_file=str(disk), backing_format="raw", gate=AllowAll())
    with pytest.raises(OptionError, match="input and output file are the same"):
        await img.dd(overlay, str(disk))
    assert disk.read_bytes() == b"x" * 512


async def test_mistakes_of_the_program_are_not_io_errors() -> None:
    with pytest.raises(ValueError, match="blocks of 0 bytes"):
        await img.dd("in", "out", block_size=0)
    with pytest.raises(ValueError, match="not negative ones"):
        await img.dd("in", "out", skip=-1)
    with pytest.raises(ValueError, match="not negative ones"):
        await img.dd("in", "out", count=-1)
