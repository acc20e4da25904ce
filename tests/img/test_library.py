"""The library behind the tools: its names, info, check, compare, map, resize, create and the picture."""

from __future__ import annotations

import errno
import json
import pkgutil
from itertools import cycle, pairwise
from pathlib import Path

import pytest

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, CorruptImage, OpenDenied, OptionError, UnsupportedFeature
from blockio.img.checking import CheckFailed
from blockio.img.comparing import ReadFailed
from blockio.img.options import split_options
from blockio.img.resizing import ShrinkRefused
from blockio.testing.driver import MemoryDisk
from blockio.types import PreallocMode
from tests.support.qemu import qemu_img, qemu_io

MIB = 1 << 20


def test_every_public_name_can_be_loaded() -> None:
    for name in img.__all__:
        assert getattr(img, name) is not None
    assert set(img.__all__) <= set(dir(img))
    with pytest.raises(AttributeError):
        _ = img.nothing_of_that_name


async def test_an_image_says_what_it_is(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    made = await img.create(path, "qcow2", size=10 * MIB, options={"cluster_size": 4096, "lazy_refcounts": True})
    assert made.options["cluster_size"] == "4096"
    assert made.options["lazy_refcounts"] == "on"
    found = await img.info(path)
    assert (found.format, found.virtual_size, found.cluster_size) == ("qcow2", 10 * MIB, 4096)
    assert found.format_specific is not None
    assert found.format_specific["data"]["lazy-refcounts"] is True


async def test_the_gate_is_asked_before_a_chain_is_followed(tmp_path: Path) -> None:
    base, top = tmp_path / "base.raw", str(tmp_path / "top.qcow2")
    base.write_bytes(b"b" * 512)
    await img.create(top, "qcow2", backing_file="base.raw", backing_format="raw", gate=AllowAll())
    with pytest.raises(OpenDenied):
        await img.info_chain(top)
    chain = await img.info_chain(img.Image(filename=top, gate=AllowAll()))
    assert [one.format for one in chain] == ["qcow2", "raw"]
    assert chain[0].backing_filename == "base.raw"
    assert chain[0].full_backing_filename == str(base)


async def test_a_chain_that_bites_its_tail_ends(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    await img.create(one, "qcow2", size=MIB, backing_file=two, backing_format="qcow2", open_backing=False)
    await img.create(two, "qcow2", size=MIB, backing_file=one, backing_format="qcow2", open_backing=False)
    with pytest.raises(CorruptImage, match="creates an infinite loop"):
        await img.info_chain(img.Image(filename=one, gate=AllowAll()))


async def test_a_fresh_image_is_clean_and_a_format_without_a_check_says_so(tmp_path: Path) -> None:
    path, raw = str(tmp_path / "disk.qcow2"), tmp_path / "disk.raw"
    await img.create(path, "qcow2", size=MIB)
    assert (await img.check(path)).clean
    raw.write_bytes(b"r" * 512)
    with pytest.raises(CheckFailed) as caught:
        await img.check(img.Image(filename=str(raw), format="raw"))
    assert isinstance(caught.value.error, UnsupportedFeature)


@pytest.mark.parametrize("at", [0, 511, 512, 70_000, MIB - 1])
async def test_the_first_sector_that_differs_is_named(at: int) -> None:
    with MemoryDisk(MIB) as one, MemoryDisk(MIB) as two:
        one.data[:] = two.data[:] = b"s" * MIB
        two.data[at] ^= 1
        result = await img.compare(img.Image(options=one.options()), img.Image(options=two.options()))
    assert result.difference == img.Difference("content", at // 512 * 512)
    assert not result.identical


async def test_a_longer_disk_may_go_on_with_zeroes_only() -> None:
    with MemoryDisk(MIB) as one, MemoryDisk(2 * MIB) as two:
        first, second = img.Image(options=one.options()), img.Image(options=two.options())
        told: list[str] = []
        same = await img.compare(first, second, on_size_mismatch=lambda: told.append("differ"))
        assert same.identical
        assert not same.same_size
        assert told == ["differ"]
        assert (await img.compare(first, second, strict=True)).difference == img.Difference("size")
        two.data[MIB + 700] = 1
        assert (await img.compare(first, second)).difference == img.Difference("content", MIB + 512)


async def test_a_disk_that_cannot_be_read_is_named() -> None:
    with MemoryDisk(MIB, fast=False) as one, MemoryDisk(MIB) as two:
        one.fail = BlockError(errno=errno.EIO)
        with pytest.raises(ReadFailed, match="Error while reading offset 0 of left: Input/output error"):
            await img.compare(img.Image(options=one.options(), label="left"), img.Image(options=two.options()))


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_a_failed_read_is_told_by_its_extent_as_qemu_tells_it(tmp_path: Path) -> None:
    """Neighbouring extents are read at once, and the one that cannot be is looked for."""
    disk, raw = tmp_path / "a.qcow2", tmp_path / "b.raw"
    qemu_img("create", "-q", "-f", "qcow2", disk, "1M")
    qemu_io(disk, "write -P 1 64k 64k", "write -P 1 0 64k", "write -P 1 128k 64k", format="qcow2")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
    debug = {"driver": "blkdebug", "image": {"driver": "file", "filename": str(disk)}}
    for event, sector in (("read_aio", 0x50000 // 512), ("read_aio", 0x60000 // 512), ("read_aio", 0x70000 // 512)):
        inject = [{"event": event, "sector": sector, "errno": 5}]
        name = "json:" + json.dumps({"driver": "qcow2", "file": {**debug, "inject-error": inject}})
        theirs = qemu_img("compare", "-F", "raw", name, raw, check=False)
        with pytest.raises(ReadFailed) as caught:
            await img.compare(name, img.Image(filename=str(raw), format="raw"))
        assert caught.value.message in theirs.stderr


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_disks_of_many_extents_are_compared_as_qemu_compares_them(tmp_path: Path) -> None:
    """Zeroes, holes, compressed and plain clusters by turns, on disks of two lengths that end inside a sector."""
    disk, raw = tmp_path / "a.qcow2", tmp_path / "b.raw"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", disk, "1M")
    kinds = cycle(("-P 1", "-z", "-c -P 2", "-P 3"))
    words = [f"write {next(kinds)} {at}k 4k" for at in range(0, 400, 20)]
    qemu_io(disk, *words, "write -P 5 900k 3k", format="qcow2")
    qemu_img("convert", "-f", "qcow2", "-O", "raw", disk, raw)
    with raw.open("r+b") as file:
        file.truncate((1 << 20) + 700)
    other = img.Image(filename=str(raw), format="raw")
    assert (await img.compare(str(disk), other)).difference is None
    for at in (1 << 20, 903 * 1024 - 1, 380 * 1024, 64 * 1024 + 513):
        with raw.open("r+b") as file:
            file.seek(at)
            file.write(b"x")
        told = qemu_img("compare", "-f", "qcow2", "-F", "raw", disk, raw, check=False).stdout
        difference = (await img.compare(str(disk), other)).difference
        assert difference is not None
        assert f"Content mismatch at offset {difference.offset}!" in told


async def test_a_map_has_no_gaps_and_its_neighbours_differ(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(b"a" * 65536)
        file.seek(MIB)
        file.write(b"b" * 65536)
        file.truncate(2 * MIB)
    entries = [entry async for entry in img.map(img.Image(filename=str(path), format="raw"))]
    assert sum(entry.length for entry in entries) == 2 * MIB
    for left, right in pairwise(entries):
        assert left.start + left.length == right.start
        assert (left.data, left.zero) != (right.data, right.zero)
    assert all(entry.filename == str(path) for entry in entries)
    part = [entry async for entry in img.map(img.Image(filename=str(path), format="raw"), start=512, length=100)]
    assert [(entry.start, entry.length) for entry in part] == [(512, 100)]


async def test_a_disk_grows_and_shrinks_only_when_that_is_meant(tmp_path: Path) -> None:
    path = str(tmp_path / "disk.qcow2")
    await img.create(path, "qcow2", size=MIB)
    image = img.Image(filename=path, format="qcow2")
    assert await img.resize(image, 2 * MIB) == img.ResizeResult(MIB, 2 * MIB)
    assert (await img.resize(image, lambda now: now + MIB)).new_size == 3 * MIB
    with pytest.raises(ShrinkRefused):
        await img.resize(image, MIB)
    with pytest.raises(OptionError, match="New image size must be positive"):
        await img.resize(image, 0)
    with pytest.raises(OptionError, match="Preallocation can only be used for growing images"):
        await img.resize(image, MIB, prealloc=PreallocMode.FULL, shrink=True)
    assert (await img.resize(image, MIB, shrink=True)).new_size == MIB


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1,b=2", [("a", "1"), ("b", "2")]),
        ("a=1,,2,b", [("a", "1,2"), ("b", "on")]),
        ("nob,c=", [("b", "off"), ("c", "")]),
        ("a=x=y", [("a", "x=y")]),
    ],
)
def test_lists_of_options_are_split_at_single_commas(text: str, pairs: list[tuple[str, str]]) -> None:
    assert split_options(text) == pairs


def entry(start: int, length: int, kind: str, depth: int = 0) -> img.MapEntry:
    return img.MapEntry(start, length, depth, kind != " ", kind in " 0", kind == "A")


def test_a_picture_shows_where_data_lies() -> None:
    runs = [entry(0, 40, "A"), entry(40, 40, "A", 1), entry(80, 40, "0"), entry(120, 35, " "), entry(155, 5, "A")]
    assert img.picture(runs, width=16, rows=1, labels=False) == "│████▓▓▓▓····   ░│"


def test_a_picture_of_several_rows_says_where_each_begins() -> None:
    assert img.picture([entry(0, 4096, "A"), entry(4096, 4096, " ")], width=4, rows=2).splitlines() == [
        "       0 │████│",
        "      4K │    │",
    ]
    assert img.picture([entry(0, 0, " ")]) == ""


def test_no_function_has_the_name_of_a_module() -> None:
    # Importing a module binds its name in the package, and would hide the function.
    modules = {module.name for module in pkgutil.iter_modules(img.__path__)}
    assert not modules & set(img.__all__)
