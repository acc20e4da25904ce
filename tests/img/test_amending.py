"""``img.amend``: the disk stays the same, snapshots too, and what cannot be is refused before anything changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.driver.registry import find_driver
from blockio.errors import CorruptImage, OptionError, UnsupportedFeature
from blockio.graph.drain import drained
from blockio.img.options import amend_options
from blockio.io.driver_calls import amend as amend_node
from blockio_drivers.qcow2.options import Qcow2AmendOptions
from tests.crypto.rig import PASSPHRASE, secrets
from tests.qcow2.amend_work import amend
from tests.qcow2.engine import check_image, first_l2_table, new_image, open_disk, put
from tests.support.cancel import cancelled_after
from tests.support.disks import content, opened
from tests.support.qemu import assert_clean, pattern, qemu_img, qemu_io

MIB = 1 << 20
KIB = 1 << 10


def disk(path: Path) -> img.Image:
    return img.Image(filename=str(path), format="qcow2", gate=AllowAll())


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


def restore(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def locked(path: Path, secret: str) -> img.Image:
    return img.Image(
        options={"driver": "luks", "key-secret": secret, "file": {"driver": "file", "filename": str(path)}}
    )


@pytest.fixture
async def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.qcow2"
    await img.create(str(path), "qcow2", size=2 * MIB)
    async with await opened(path) as blk:
        await blk.co_pwritev(100 * KIB, pattern(700 * KIB, seed=1))
        await blk.co_pwrite_zeroes(256 * KIB, 128 * KIB)
        await blk.co_pwrite_zeroes(1 * MIB, 512 * KIB)
    return path


@pytest.mark.peer("qemu-img")
async def test_all_at_once_and_back(image: Path) -> None:
    before = await content(image)
    seen: list[img.Progress] = []
    wanted: dict[str, Any] = {"refcount_bits": 64, "lazy_refcounts": True}
    result = await img.amend(disk(image), wanted, observer=seen.append)
    assert (result.filename, result.format, result.options) == (str(image), "qcow2", wanted)
    assert seen[0].done == 0
    assert seen[-1].fraction == 1.0
    facts = (await img.info(disk(image))).format_specific
    assert facts is not None
    assert (facts["data"]["refcount-bits"], facts["data"]["lazy-refcounts"]) == (64, True)
    assert_clean(image)
    await img.amend(disk(image), {"compat": "0.10", "refcount_bits": 16, "lazy_refcounts": False})
    assert await content(image) == before
    assert_clean(image)
    await img.amend(disk(image), [("compat", "v3"), ("size", "3M")])
    assert await content(image) == before + bytes(MIB)
    assert_clean(image)


@pytest.mark.peer("qemu-img")
async def test_an_open_disk_goes_on(image: Path) -> None:
    expected = bytearray(await content(image))
    async with await opened(image) as blk:
        node = blk.bs
        assert node is not None
        changes = (
            Qcow2AmendOptions(refcount_bits=1),
            Qcow2AmendOptions(refcount_bits=16),
            Qcow2AmendOptions(compat="v2"),
        )
        for number, options in enumerate(changes):
            async with drained(node):
                await amend_node(node, options)
            for offset in (number * 64 * KIB, 150 * KIB, 1200 * KIB):
                new = pattern(3000, seed=number + 5)
                await blk.co_pwritev(offset, new)
                expected[offset : offset + 3000] = new
            data = bytearray(len(expected))
            await blk.co_preadv(0, data)
            assert data == expected
    assert await content(image) == expected
    assert_clean(image)


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_a_snapshot_keeps_what_a_zero_cluster_of_the_disk_still_names(tmp_path: Path) -> None:
    """Written over with zeroes, a shared cluster stays where it is: the snapshot reads what was there."""
    path = tmp_path / "kept.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -P 7 0 192k", format="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -z 0 64k", "write -z -u 64k 64k", format="qcow2")
    qemu_img("snapshot", "-c", "two", path)
    await img.amend(disk(path), {"compat": "0.10"})
    assert_clean(path)
    for name, wanted in (("one", b"\7" * 192 * KIB), ("two", bytes(128 * KIB) + b"\7" * 64 * KIB)):
        qemu_img("convert", "-f", "qcow2", "-l", name, path, tmp_path / "out.raw")
        assert (tmp_path / "out.raw").read_bytes()[: 192 * KIB] == wanted
    qemu_img("snapshot", "-a", "one", path)
    assert (await content(path))[: 192 * KIB] == b"\7" * 192 * KIB
    assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_version_2_leaves_nothing_of_bitmaps(image: Path) -> None:
    """QEMU leaves them behind as leaked clusters."""
    qemu_img("bitmap", "--add", image, "b")
    qemu_img("bitmap", "--add", image, "c")
    await img.amend(disk(image), {"compat": "0.10"})
    assert_clean(image)


async def test_entries_that_lead_astray_are_the_end_of_it() -> None:
    """Zero clusters at no cluster's beginning, or far behind the end of the file, where nothing is counted."""
    for host, words in ((0x12200, "unaligned"), (1 << 45, "outside of the image")):
        child = await new_image(MIB)
        async with open_disk(child) as one:
            await one.write(0, b"a" * 65536)
        _, l2 = first_l2_table(child)
        put(child, l2 + 8, host | 1)
        length = len(child.data)
        with pytest.raises(CorruptImage, match=words):
            async with open_disk(child) as one:
                await amend(one, compat="0.10")
        assert len(child.data) == length


def test_the_table_of_options_is_that_of_the_drivers() -> None:
    for name in ("qcow2", "luks"):
        driver = find_driver(name)
        assert driver.AmendOptions is not None
        assert {option.name for option in amend_options(driver)} == set(driver.AmendOptions.__struct_encode_fields__)


async def test_what_is_refused_changes_nothing(image: Path) -> None:
    data = bytes_of(image)
    cases: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"compat": "1.1", "refcount_bits": 3}, OptionError, "power of two"),
        ({"refcount_bits": 8, "backing_file": "x"}, OptionError, "Cannot amend the backing file"),
        ({"refcount_bits": 8, "compat": "0.10"}, OptionError, "Refcount widths other than 16 bits"),
        ({"cluster_size": "4k"}, OptionError, "Invalid parameter 'cluster_size'"),
        ({"what": "ever"}, OptionError, "Invalid parameter 'what'"),
        ({"encrypt.state": "active"}, OptionError, "encryption not present"),
    )
    for options, error, words in cases:
        with pytest.raises(error, match=words):
            await img.amend(disk(image), options)
        assert bytes_of(image) == data, options
    with pytest.raises(UnsupportedFeature, match="Format driver 'raw' does not support option amendment"):
        await img.amend(img.Image(filename=str(image), format="raw"), {"size": 1})


@pytest.mark.peer("qemu-img")
async def test_cancelled_at_any_moment_the_disk_is_the_same(image: Path) -> None:
    original, before = bytes_of(image), await content(image)
    wanted = {"refcount_bits": 16, "compat": "0.10"}
    found = set()
    for turns in range(0, 300, 19):
        restore(image, original)
        await img.amend(disk(image), {"refcount_bits": 8})
        await cancelled_after(turns, img.amend(disk(image), wanted))
        assert await content(image) == before
        report = await img.check(disk(image))
        assert report.clean, f"cancelled after {turns} turns"
        facts = (await img.info(disk(image))).format_specific
        assert facts is not None
        found.add((facts["data"]["compat"], facts["data"]["refcount-bits"]))
    assert ("1.1", 8) in found
    await img.amend(disk(image), wanted)
    assert await content(image) == before


@pytest.mark.peer("qemu-img")
async def test_a_structure_of_many_blocks_and_a_longer_table() -> None:
    child = await new_image(2 * MIB, cluster_size=512)
    data = pattern(MIB + 123 * 512, seed=9)
    async with open_disk(child) as one:
        await one.write(0, data)
    for bits in (64, 1, 32, 2, 16, 8, 4, 64, 16):
        async with open_disk(child) as one:
            await amend(one, refcount_bits=bits)
            assert await one.read(0, len(data)) == data
            await one.write(len(data), data[:512])
        check_image(child.data)


async def test_a_passphrase_is_added(tmp_path: Path) -> None:
    path = tmp_path / "disk.luks"
    with secrets(s=PASSPHRASE, n="the new one"):
        await img.create(str(path), "luks", size=MIB, options={"key-secret": "s", "iter-time": 1})
        await img.amend(locked(path, "s"), {"state": "active", "new-secret": "n", "iter-time": 1})
        with pytest.raises(OptionError, match="Refusing to overwrite active keyslot 1"):
            await img.amend(locked(path, "s"), {"state": "active", "new-secret": "n", "keyslot": 1})
        await img.amend(locked(path, "n"), {"state": "inactive", "old-secret": "s"})
        with pytest.raises(OptionError, match="Invalid password"):
            await img.amend(locked(path, "s"), {"state": "inactive", "keyslot": 1})
