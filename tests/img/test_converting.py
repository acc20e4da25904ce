"""``img.convert``: what arrives, in which order it is asked for, and what is left when it does not end well."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError, OutOfRange, UnsupportedFeature
from blockio.img.copying import CHUNK
from blockio.img.limiting import RateLimit
from blockio.testing.driver import MemoryDisk
from tests.support.cancel import cancelled_after
from tests.support.qemu import assert_clean, pattern, qemu_img

MIB = 1 << 20


def image_of(disk: MemoryDisk) -> img.Image:
    return img.Image(options=disk.options(), label="source")


def names_in(folder: Path) -> list[str]:
    """What lies in *folder*."""
    return sorted(path.name for path in folder.iterdir())


def two_chunks(fill: bytes = b"x") -> bytearray:
    """Data, zeroes for one chunk, data: three pieces of work."""
    return bytearray(fill * CHUNK + bytes(CHUNK) + fill * CHUNK)


@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "out of order"])
@pytest.mark.parametrize("workers", [1, 3, 16])
@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_every_byte_arrives(format: str, workers: int, in_order: bool, tmp_path: Path) -> None:
    content = pattern(5 * MIB + 512) + bytes(3 * MIB) + pattern(64 << 10, seed=7)
    target = tmp_path / f"target.{format}"
    with MemoryDisk(0) as disk:
        disk.data[:] = content
        result = await img.convert(image_of(disk), str(target), format, workers=workers, in_order=in_order)
    assert (result.size, result.format) == (len(content), format)
    back = tmp_path / "back.raw"
    await img.convert(img.Image(filename=str(target), format=format), str(back))
    assert back.read_bytes() == content


@pytest.mark.peer("qemu-img")
async def test_a_sparse_disk_becomes_a_clean_image_of_the_same_content(tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    with source.open("wb") as file:
        for block in (0, 1, 3, 40, 41, 97):
            file.seek(block * 65536 + 4096)
            file.write(pattern(50_000, seed=block))
        file.truncate(8 * MIB)
    target = str(tmp_path / "target.qcow2")
    result = await img.convert(str(source), target, "qcow2")
    assert_clean(target)
    qemu_img("compare", "-f", "raw", "-F", "qcow2", source, target)
    assert result.copied <= 6 * 65536
    assert result.zeroed >= 7 * MIB


async def test_several_sources_follow_one_another_in_whole_sectors(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1000)
    (tmp_path / "two").write_bytes(b"2" * 512)
    target = tmp_path / "both"
    await img.convert([str(tmp_path / "one"), str(tmp_path / "two")], str(target))
    assert target.read_bytes() == b"1" * 1000 + bytes(24) + b"2" * 512


async def test_everything_is_written_where_zeroes_shall_take_room(tmp_path: Path) -> None:
    target = tmp_path / "full.raw"
    with MemoryDisk(MIB) as disk:
        result = await img.convert(image_of(disk), str(target), sparse=0)
    assert target.stat().st_blocks * 512 >= MIB
    assert result.copied == MIB


async def test_only_what_the_top_image_holds_is_copied_onto_a_backing_file(tmp_path: Path) -> None:
    base, top, target = (str(tmp_path / name) for name in ("base.raw", "top.qcow2", "target.qcow2"))
    (tmp_path / "base.raw").write_bytes(b"b" * MIB)
    await img.create(top, "qcow2", backing_file=base, backing_format="raw", gate=AllowAll())
    source = img.Image(filename=top, format="qcow2", gate=AllowAll())
    result = await img.convert(source, target, "qcow2", backing_file=base, backing_format="raw", gate=AllowAll())
    assert result.copied == 0
    with_backing = [entry async for entry in img.map(img.Image(filename=target, format="qcow2", gate=AllowAll()))]
    assert [(entry.depth, entry.data) for entry in with_backing] == [(1, True)]


async def test_an_existing_target_is_zeroed_where_the_source_is_zero(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"old" * MIB)
    with MemoryDisk(0) as disk:
        disk.data[:] = bytes(MIB) + b"new!" * (MIB // 4)
        await img.convert(image_of(disk), str(target), create=False)
        content = bytes(disk.data)
    assert target.read_bytes() == content + (b"old" * MIB)[len(content) :]


async def test_a_smaller_target_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    target.write_bytes(b"old!" * 128)
    with MemoryDisk(MIB) as disk, pytest.raises(OutOfRange, match=r"^output file is smaller than input file$"):
        await img.convert(image_of(disk), str(target), create=False)
    assert target.read_bytes() == b"old!" * 128


async def test_the_final_name_appears_when_all_is_there(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    with MemoryDisk(0) as disk:
        disk.data[:] = two_chunks()
        task = asyncio.create_task(img.convert(image_of(disk), str(target)))
        names: list[list[str]] = []
        while not task.done():
            names.append(names_in(tmp_path))
            await asyncio.sleep(0)
        await task
        names.append(names_in(tmp_path))
    *during, after = names
    assert any(seen for seen in during)
    assert all("target.raw" not in seen and len(seen) <= 1 for seen in during[:-1])
    assert after == ["target.raw"]


@pytest.mark.parametrize("existed", [False, True], ids=["new name", "existing file"])
async def test_a_failed_conversion_leaves_nothing_half_written(existed: bool, tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    if existed:
        target.write_bytes(b"what was there before")
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = two_chunks()
        disk.fail = BlockError(errno=errno.EIO)
        with pytest.raises(BlockError, match="error while reading at byte 0: Input/output error"):
            await img.convert(image_of(disk), str(target), "qcow2", workers=1)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("existed", [False, True])
async def test_a_failed_conversion_takes_away_the_data_file_that_it_made(existed: bool, tmp_path: Path) -> None:
    data = tmp_path / "data.raw"
    if existed:
        data.write_bytes(b"somebody else's name, at least")
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = two_chunks()
        disk.fail = BlockError(errno=errno.EIO)
        options = {"data_file": str(data)}
        target = str(tmp_path / "target.qcow2")
        with pytest.raises(BlockError, match="error while reading at byte 0: Input/output error"):
            await img.convert(image_of(disk), target, "qcow2", options=options, gate=AllowAll(), workers=1)
    assert names_in(tmp_path) == (["data.raw"] if existed else [])


async def test_a_target_that_cannot_be_made_costs_the_old_one_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    target.write_bytes(b"what was there before")
    with MemoryDisk(MIB) as disk, pytest.raises(BlockError, match="Cluster size must be a power of two"):
        await img.convert(image_of(disk), str(target), "qcow2", options={"cluster_size": 3000})
    with MemoryDisk(MIB) as disk, pytest.raises(OptionError, match="Invalid parameter 'nonsense'"):
        await img.convert(image_of(disk), str(target), "qcow2", options={"nonsense": 1})
    assert target.exists()


@pytest.mark.both_loops
async def test_a_cancelled_conversion_leaves_nothing_and_everything_works_on(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = two_chunks()
        disk.stall()
        task = asyncio.create_task(img.convert(image_of(disk), str(target), workers=2))
        while disk.waiting < 2:  # noqa: ASYNC110  # the disk tells nobody
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names_in(tmp_path) == []
        disk.go()
        await img.convert(image_of(disk), str(target))
        assert target.read_bytes() == disk.data


async def test_cancelled_at_any_moment_it_leaves_all_or_nothing(tmp_path: Path) -> None:
    target = tmp_path / "target.qcow2"
    with MemoryDisk(0) as disk:
        disk.data[:] = two_chunks()
        for turns in range(0, 400, 7):
            if await cancelled_after(turns, img.convert(image_of(disk), str(target), "qcow2", workers=2)):
                assert names_in(tmp_path) == [], f"cancelled after {turns} turns"
            else:
                assert names_in(tmp_path) == ["target.qcow2"]
                target.unlink()


async def test_what_cannot_be_read_can_be_left_out_with_a_warning(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    warnings: list[str] = []
    with MemoryDisk(2048, fast=False) as disk:
        disk.data[:] = b"d" * 2048
        disk.fail = BlockError(errno=errno.EIO)
        result = await img.convert(image_of(disk), str(target), salvage=True, on_warning=warnings.append)
    assert result.salvaged == 2048
    assert warnings == [f"error while reading offset {at}: Input/output error" for at in range(0, 2048, 512)]
    assert target.read_bytes() == bytes(2048)


async def test_offloaded_copies_fall_back_to_reading_and_writing(tmp_path: Path) -> None:
    target = tmp_path / "target.raw"
    with MemoryDisk(0) as disk:  # memory has no copy_file_range
        disk.data[:] = two_chunks(b"offl")[: 2 * MIB]
        await img.convert(image_of(disk), str(target), copy_offload=True)
        assert target.read_bytes() == disk.data
    twin = tmp_path / "twin.raw"
    await img.convert(str(target), str(twin), copy_offload=True)
    assert twin.read_bytes() == target.read_bytes()


async def test_progress_never_goes_back_and_ends_at_all(tmp_path: Path) -> None:
    seen: list[img.Progress] = []
    with MemoryDisk(0) as disk:
        disk.data[:] = two_chunks()
        await img.convert(image_of(disk), str(tmp_path / "x"), observer=seen.append)
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    assert seen[-1].done == seen[-1].total
    assert all(progress.rate >= 0 for progress in seen)


async def test_an_observer_that_raises_ends_the_conversion_cleanly(tmp_path: Path) -> None:
    def refuse(_progress: img.Progress) -> None:
        raise KeyError("enough")

    with MemoryDisk(MIB) as disk:
        disk.data[:] = b"x" * MIB
        with pytest.raises(KeyError):
            await img.convert(image_of(disk), str(tmp_path / "x"), observer=refuse)
    assert names_in(tmp_path) == []


async def test_what_is_not_there_yet_is_refused_by_name(tmp_path: Path) -> None:
    target = str(tmp_path / "x")
    with MemoryDisk(MIB) as disk:
        with pytest.raises(UnsupportedFeature, match="Compression not supported for this file format"):
            await img.convert(image_of(disk), target, "raw", compress=True)
        with pytest.raises(UnsupportedFeature, match="Failed to load snapshot: "):
            await img.convert(image_of(disk), target, "qcow2", snapshot="one")
        with pytest.raises(UnsupportedFeature, match="Source lacks bitmap support"):
            await img.convert(image_of(disk), target, "raw", bitmaps=True)
    assert names_in(tmp_path) == []


async def test_mistakes_of_the_program_are_not_io_errors(tmp_path: Path) -> None:
    with MemoryDisk(512) as disk:
        for wrong in ({"workers": 0}, {"workers": 17}, {"sparse": 100}):
            with pytest.raises(ValueError, match=r"can be|cannot be"):
                await img.convert(image_of(disk), str(tmp_path / "x"), **wrong)  # type: ignore[arg-type]  # that is the point
        with pytest.raises(ValueError, match="nothing to convert"):
            await img.convert([], str(tmp_path / "x"))


async def test_a_rate_limit_spaces_requests_out_on_its_clock() -> None:
    now = 0.0
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(seconds)

    limit = RateLimit(100, clock=lambda: now, sleep=sleep)
    for nbytes in (100, 50, 100):
        await limit.take(nbytes)
    assert waits == [1.0, 0.5]
    limit.rate = 0
    await limit.take(10**9)
    assert waits == [1.0, 0.5]


@pytest.mark.both_loops
async def test_a_new_rate_goes_for_those_who_wait_already() -> None:
    limit = RateLimit(1)
    await limit.take(10**12)
    waiting = [asyncio.create_task(limit.take(1)) for _ in range(3)]
    for _ in range(5):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    waiting[1].cancel()
    await asyncio.to_thread(setattr, limit, "rate", 10**18)
    await waiting[0]
    await waiting[2]
    with pytest.raises(asyncio.CancelledError):
        await waiting[1]


async def test_a_wait_that_is_cancelled_costs_those_behind_nothing() -> None:
    now = 0.0
    pauses: list[asyncio.Future[None]] = []

    async def sleep(seconds: float) -> None:
        nonlocal now
        pauses.append(asyncio.get_running_loop().create_future())
        await pauses[-1]
        now += seconds

    limit = RateLimit(100, clock=lambda: now, sleep=sleep)
    await limit.take(100)
    first = asyncio.create_task(limit.take(10**9))
    second = asyncio.create_task(limit.take(100))
    while not pauses:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0)
    first.cancel()
    while len(pauses) < 2:  # noqa: ASYNC110  # nobody tells
        await asyncio.sleep(0)
    pauses[1].set_result(None)
    await second
    assert now == 1.0


async def test_a_conversion_that_crawls_can_be_let_go(tmp_path: Path) -> None:
    limit = RateLimit(1)
    begun = asyncio.Event()

    def told(_progress: img.Progress) -> None:
        begun.set()

    with MemoryDisk(0) as disk:
        disk.data[:] = two_chunks()
        task = asyncio.create_task(img.convert(image_of(disk), str(tmp_path / "x"), limit=limit, observer=told))
        await begun.wait()
        assert not task.done()
        limit.rate = 0
        await task
        assert (tmp_path / "x").read_bytes() == disk.data
