"""``img.rebase`` and ``backend.rebase``: the disk stays the same, whatever is below it and however it ends."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from blockio import img
from blockio.backend import BlockBackend
from blockio.backend.rebase import CopyFailed, rebase, rename_backing
from blockio.driver.gate import AllowAll, DenyAll
from blockio.errors import BlockError, OpenDenied, OptionError
from blockio.graph.node import BlockNode
from blockio.img.limiting import RateLimit
from blockio.types import OpenFlags
from tests.support.cancel import cancelled_after
from tests.support.disks import content, opened
from tests.support.qemu import assert_clean, pattern, qemu_img

KIB = 1024
MIB = 1 << 20
SIZE = 3 * MIB


def layer(path: Path) -> img.Image:
    return img.Image(filename=str(path), format="qcow2", gate=AllowAll())


def images(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def names(path: Path) -> tuple[str | None, str | None]:
    found = await img.info(layer(path))
    return found.backing_filename, found.backing_filename_format


@pytest.fixture
async def chain(tmp_path: Path) -> Path:
    """The folder of ``base.qcow2``, ``mid.qcow2`` on it, ``top.qcow2`` on that, and ``other.qcow2``."""
    below: str | None = None
    for seed, name, size in ((0, "base", SIZE), (1, "mid", 2 * MIB), (2, "top", SIZE), (3, "other", 2 * MIB)):
        path = str(tmp_path / f"{name}.qcow2")
        on = None if name == "other" else below
        await img.create(path, "qcow2", size=size, backing_file=on, backing_format=on and "qcow2", gate=AllowAll())
        async with await opened(Path(path)) as blk:
            await blk.co_pwritev(seed * 300 * KIB + 1000, pattern(MIB - seed * 100 * KIB, seed=seed + 1))
            await blk.co_pwrite_zeroes(seed * 512 * KIB, 128 * KIB)
        below = path
    return tmp_path


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("name", ["base", "mid", "other", None])
async def test_the_disk_stays_the_same(name: str | None, chain: Path) -> None:
    top = chain / "top.qcow2"
    before = await content(top)
    others = {path: path.read_bytes() for path in images(chain) if path != top}
    seen: list[img.Progress] = []
    backing = None if name is None else f"{name}.qcow2"
    result = await img.rebase(layer(top), backing, "qcow2" if name else None, observer=seen.append)
    assert (result.backing_filename, result.backing_format, result.size) == (backing, name and "qcow2", SIZE)
    assert await names(top) == (backing, name and "qcow2")
    assert await content(top) == before
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total == SIZE
    assert {path: path.read_bytes() for path in others} == others
    assert_clean(top)
    qemu_img("compare", "-f", "qcow2", "-F", "raw", top, await raw(chain, before))


async def raw(folder: Path, data: bytes) -> Path:
    path = folder / "expected.raw"
    path.write_bytes(data)
    return path


async def test_only_what_differs_is_written(chain: Path) -> None:
    """A copy of what is below: nothing. One changed byte: its cluster."""
    top, copy = chain / "top.qcow2", chain / "copy.raw"
    copy.write_bytes(await content(chain / "mid.qcow2"))
    size = top.stat().st_size
    await img.rebase(layer(top), str(copy), "raw")
    assert top.stat().st_size == size
    before = await content(top)
    with copy.open("r+b") as file:
        file.seek(1900 * KIB)
        file.write(b"?")
    again = chain / "again.raw"
    again.write_bytes(copy.read_bytes())
    copy.write_bytes(await content(chain / "mid.qcow2"))
    await img.rebase(layer(top), str(again), "raw")
    assert top.stat().st_size <= size + 2 * 64 * KIB
    assert await content(top) == before


async def test_what_nobody_holds_takes_no_time(tmp_path: Path) -> None:
    """Disks of many terabytes that are empty, as metadata tells."""
    for name, below in (("a", None), ("b", None), ("top", str(tmp_path / "a"))):
        await img.create(
            str(tmp_path / name), "qcow2", size=1 << 44, options={"cluster_size": "2M"}, backing_file=below,
            backing_format=below and "qcow2", gate=AllowAll(),
        )  # fmt: skip
    await img.rebase(layer(tmp_path / "top"), "b", "qcow2")
    assert await names(tmp_path / "top") == ("b", "qcow2")


async def test_another_name_for_the_same(chain: Path) -> None:
    top = chain / "top.qcow2"
    (chain / "moved.qcow2").write_bytes((chain / "mid.qcow2").read_bytes())
    (chain / "mid.qcow2").unlink()
    before = await content(chain / "moved.qcow2")
    size = top.stat().st_size
    await img.rebase(layer(top), "moved.qcow2", "qcow2", unsafe=True)
    assert await names(top) == ("moved.qcow2", "qcow2")
    assert top.stat().st_size == size
    assert (await content(top))[:1000] == before[:1000]


async def test_what_is_refused(chain: Path) -> None:
    top = chain / "top.qcow2"
    data = top.read_bytes()
    cases: Sequence[tuple[str, str | None, type[BlockError], str]] = (
        ("other.qcow2", None, BlockError, "Could not change the backing file to 'other.qcow2': backing format must"),
        ("other.qcow2", "foo", OptionError, "Invalid format name: 'foo'"),
        ("nope", "qcow2", BlockError, "Could not open new backing file 'nope': Could not open '.*/nope'"),
        ("other.qcow2", "luks", BlockError, "Could not open new backing file"),
    )
    for backing, format, error, words in cases:
        with pytest.raises(error, match=words):
            await img.rebase(layer(top), backing, format)
        assert top.read_bytes() == data
    with pytest.raises(BlockError, match="Invalid argument"):
        await img.rebase(layer(top), "n" * 1024, "raw", unsafe=True)
    assert top.read_bytes() == data


async def test_the_gate_is_asked_about_the_new_chain(chain: Path) -> None:
    alone = chain / "alone.qcow2"
    await img.create(str(alone), "qcow2", size=MIB)
    image = img.Image(filename=str(alone), format="qcow2", gate=DenyAll())
    with pytest.raises(OpenDenied):
        await img.rebase(image, "mid.qcow2", "qcow2")  # what the caller names is opened, but not what that names
    await img.rebase(image, "base.qcow2", "qcow2")


@pytest.mark.peer("qemu-img")
async def test_cancelled_at_any_moment_the_disk_reads_as_before(chain: Path) -> None:
    top = chain / "top.qcow2"
    original, before = top.read_bytes(), await content(top)
    found = set()
    for turns in (*range(0, 60, 7), *range(60, 700, 83)):
        top.write_bytes(original)
        await cancelled_after(turns, img.rebase(layer(top), "other.qcow2", "qcow2"))
        assert await content(top) == before, f"cancelled after {turns} turns"
        found.add(await names(top))
    assert (str(chain / "mid.qcow2"), "qcow2") in found
    await img.rebase(layer(top), "other.qcow2", "qcow2")
    assert await content(top) == before
    assert_clean(top)


async def test_no_faster_than_allowed(chain: Path) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    limit = RateLimit(MIB, clock=lambda: now, sleep=sleep)
    await img.rebase(layer(chain / "top.qcow2"), "other.qcow2", "qcow2", limit=limit)
    assert 0 < now <= SIZE / MIB


async def test_the_graph_follows_and_a_failure_undoes_it(chain: Path) -> None:
    top, other = chain / "top.qcow2", chain / "other.qcow2"
    before = await content(top)
    async with await opened(top) as blk:
        node = blk.bs
        assert node is not None
        old = below_of(node)
        async with await opened_read_only(other) as below:
            assert below.bs is not None
            with pytest.raises(BlockError) as caught:
                await rebase(node, below.bs, "n" * 2000, "qcow2")
            assert caught.value.errno == errno.EINVAL
            assert below_of(node) is old
            await rebase(node, below.bs, str(other), "qcow2")
            assert below_of(node) is below.bs
        data = bytearray(SIZE)
        await blk.co_preadv(0, data)
        assert data == before
        await blk.co_pwritev(MIB, b"written afterwards".ljust(512))
        await rebase(node, None, None, None)
        assert below_of(node) is None
        await blk.co_preadv(0, data)
        expected = bytearray(before)
        expected[MIB : MIB + 512] = b"written afterwards".ljust(512)
        assert data == expected
    assert await names(top) == (None, None)
    assert await content(top) == expected


def below_of(node: BlockNode) -> BlockNode | None:
    return None if node.backing is None else node.backing.node


async def opened_read_only(path: Path) -> BlockBackend:
    return await BlockBackend.new_open(
        str(path), options={"driver": "qcow2"}, flags=OpenFlags(read_only=True), gate=AllowAll()
    )


async def test_what_cannot_be_read_leaves_the_old_name(chain: Path) -> None:
    top = chain / "top.qcow2"
    before = await content(top)
    broken = {
        "driver": "qcow2",
        "file": {
            "driver": "blkdebug", "image": {"driver": "file", "filename": str(chain / "other.qcow2")},
            "inject-error": [{"event": "read_aio", "errno": errno.EIO, "once": False}],
        },
    }  # fmt: skip
    async with await opened(top) as blk:
        node = blk.bs
        assert node is not None
        async with await BlockBackend.new_open(options=broken, flags=OpenFlags(read_only=True)) as below:
            assert below.bs is not None
            with pytest.raises(CopyFailed, match="error while reading from new backing file"):
                await rebase(node, below.bs, "other.qcow2", "qcow2")
        with pytest.raises(BlockError, match="backing format must be specified"):
            await rename_backing(node, "other.qcow2", None)
    assert await names(top) == (str(chain / "mid.qcow2"), "qcow2")
    assert await content(top) == before
