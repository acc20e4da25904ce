"""Repairing: sound for both tools afterwards, nothing of the guest's lost, and no crash on the way that harms."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import random
from pathlib import Path

import pytest

from blockio.driver.base import CheckFix
from blockio.errors import BlockError
from blockio.testing.memory import MemoryChild
from blockio.types import Limits
from blockio_drivers.qcow2.header import Incompatible
from blockio_drivers.qcow2.repair import repair_image
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED, ZERO
from tests.qcow2 import test_check as bends
from tests.support.qcow2_craft import Craft, check, new_image, repair
from tests.support.qemu import assert_clean, qemu_img, qemu_io

K64 = 65536

MENDABLE = [
    bends.leak,
    bends.unreferenced_twice,
    bends.refcount_missing,
    bends.refcount_too_low,
    bends.refcount_too_high,
    bends.copied_missing,
    bends.copied_missing_in_l1,
    bends.reserve_crooked,
    bends.block_crooked,
    bends.block_reserved,
    bends.block_far_away,
    bends.block_shared,
    bends.no_refcounts_at_all,
]
HOPELESS = [bends.data_crooked, bends.far_away, bends.l2_far_away, bends.reserved_bits, bends.compressed_and_copied]


MENDABLE_EXTENDED = ["in reserve", "compressed", "crooked zeroes", "crooked reserve", "not copied"]


async def image_with_data(cluster_size: int = K64, **options: object) -> Craft:
    image = await new_image(40 * cluster_size, cluster_size=cluster_size, **options)
    for cluster in (28, 29, 30):
        image.map(cluster, bytes([cluster]) * cluster_size)
    return image


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bend", MENDABLE_EXTENDED)
async def test_extended_entries_are_mended(bend: str, tmp_path: Path) -> None:
    image = await new_image(40 * K64, extended_l2=True)
    image.put_entry(image.l2_entry_at(7) + 8, 0xFF << 32 | 0xFF00)
    image.map(7, b"".join(bytes([block]) * 2048 for block in range(32)))
    bends.EXTENDED_BENDS[bend](image)
    _, _, after = await repair(image)
    result, lines = await check(after)
    assert lines == []
    assert not result.corruptions
    assert not result.leaks
    path = after.save(tmp_path / "mended.qcow2")
    assert_clean(path)
    qemu_io(path, f"read -P 0 {7 * K64} 16k", f"read -P 9 {7 * K64 + 9 * 2048} 2k", format="qcow2")


@pytest.mark.parametrize("fix", [CheckFix.LEAKS, CheckFix.ALL])
async def test_a_repair_keeps_what_a_compressed_cluster_with_a_bitmap_names(fix: CheckFix) -> None:
    """QEMU counts no reference for it, and a repair of leaks frees the data under it."""
    image = await new_image(40 * K64, extended_l2=True)
    data = image.cluster(b"compressed")
    image.put_entry(image.l2_entry_at(0), COMPRESSED | data).put_entry(image.l2_entry_at(0) + 8, 1)
    _, _, after = await repair(image, fix)
    assert after.refcount(data) == 1
    assert after.entry(after.l2_entry_at(0) + 8) == (0 if fix is CheckFix.ALL else 1)


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bend", MENDABLE, ids=lambda bend: bend.__name__)
@pytest.mark.parametrize("cluster_size", [1024, K64])
async def test_all_is_mended(bend: bends.Bend, cluster_size: int, tmp_path: Path) -> None:
    image = await image_with_data(cluster_size)
    bend(image)
    image.set(incompatible=Incompatible.DIRTY | Incompatible.CORRUPT)
    result, _, mended = await repair(image)
    assert (result.check_errors, result.corruptions, result.leaks) == (0, 0, 0)
    theirs = qemu_img("check", "--output=json", "-r", "all", image.save(tmp_path / "theirs.qcow2"), check=False)
    if theirs.stdout:  # it gives up on some that ours mends
        counts = json.loads(theirs.stdout)
        # Where refcounts are rebuilt QEMU counts what it mends twice; else the counts are the same.
        assert bool(result.corruptions_fixed) == bool(counts.get("corruptions-fixed"))
        assert result.leaks_fixed == counts.get("leaks-fixed", 0)
    assert mended.header.incompatible == 0
    assert (await check(mended))[1] == []
    path = mended.save(tmp_path / "mended.qcow2")
    assert_clean(path)
    for cluster in (28, 29, 30):
        verify = f"read -P {cluster} {cluster * cluster_size} {cluster_size}"
        assert "failed" not in qemu_io(path, verify, format="qcow2").stdout


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("bend", MENDABLE, ids=lambda bend: bend.__name__)
async def test_leaks_only(bend: bends.Bend, tmp_path: Path) -> None:
    image = await image_with_data()
    bend(image)
    theirs = image.save(tmp_path / "theirs.qcow2")
    exit_code = qemu_img("check", "-q", "-r", "leaks", theirs, check=False).returncode
    if exit_code == 1:
        with pytest.raises(BlockError, match="ERROR need to rebuild refcount structures") as caught:
            await repair(image, CheckFix.LEAKS)
        assert caught.value.errno == errno.EIO
        return
    result, _, mended = await repair(image, CheckFix.LEAKS)
    assert exit_code == (2 if result.corruptions else 3 if result.leaks else 0)
    found = qemu_img("check", mended.save(tmp_path / "ours.qcow2"), check=False)
    assert found.returncode == qemu_img("check", theirs, check=False).returncode


@pytest.mark.parametrize("bend", HOPELESS, ids=lambda bend: bend.__name__)
async def test_what_cannot_be_mended_is_left_and_said(bend: bends.Bend) -> None:
    image = await image_with_data()
    bend(image)
    image.set(incompatible=Incompatible.DIRTY)
    result, lines, mended = await repair(image)
    assert result.corruptions > 0
    assert any(line.startswith("ERROR") for line in lines)
    assert mended.header.dirty, "an image that is not sound stays dirty"


@pytest.mark.parametrize("refcount_bits", [1, 2, 4, 8, 16, 32, 64])
@pytest.mark.peer("qemu-img")
async def test_refcounts_of_every_width_are_built_anew(refcount_bits: int, tmp_path: Path) -> None:
    image = await image_with_data(4096, refcount_bits=refcount_bits)
    block = image.entry(image.header.refcount_table_offset)
    image.put(block, bytes(4096))
    result, lines, mended = await repair(image)
    assert "Rebuilding refcount structure" in lines
    assert (result.corruptions, result.leaks) == (0, 0)
    assert_clean(mended.save(tmp_path / "a.qcow2"))


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_snapshots_survive_a_rebuild(tmp_path: Path) -> None:
    path = tmp_path / "s.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=512", path, "1M")
    qemu_io(path, "write -P 1 0 200k", format="qcow2")
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 64k 64k", format="qcow2")
    image = Craft(path.read_bytes())
    for index in range(2):
        block = image.entry(image.header.refcount_table_offset + 8 * index)
        image.put(block, bytes(512))
    result, _, mended = await repair(image)
    assert result.corruptions == 0
    assert_clean(mended.save(path))
    qemu_img("snapshot", "-a", "one", path)
    assert "failed" not in qemu_io(path, "read -P 1 0 200k", format="qcow2").stdout
    assert_clean(path)


async def test_nothing_to_do_writes_nothing() -> None:
    image = await image_with_data()
    result, lines, after = await repair(image)
    assert lines == []
    assert after.data == image.data
    assert (result.corruptions_fixed, result.leaks_fixed) == (0, 0)


async def test_fix_none_only_looks() -> None:
    image = await image_with_data()
    bends.leak(image)
    result, lines, after = await repair(image, CheckFix.NONE)
    assert after.data == image.data
    assert len(lines) == result.leaks == 1


async def test_an_l2_table_over_metadata_is_not_written() -> None:
    """The L1 entry leads into the refcount block: mending "flags" there would destroy it."""
    image = await image_with_data(1024)
    block = image.entry(image.header.refcount_table_offset)
    image.put_entry(image.l1_entry_at(0), COPIED | block)
    image.put(block, b"\0\1\2\0" * 128)
    _, lines, _ = await repair(image)
    assert any("ERROR" in line for line in lines)


@pytest.mark.parametrize("bend", MENDABLE, ids=lambda bend: bend.__name__)
async def test_a_crash_at_any_write_leaves_something_that_can_be_mended(bend: bends.Bend) -> None:
    """Each prefix of the writes, and each with the writes since the last flush in another order."""
    image = await image_with_data(1024)
    bend(image)
    image.set(incompatible=Incompatible.DIRTY)
    writes: list[list[tuple[int, bytes]]] = [[]]

    class Recording(MemoryChild):
        def _store(self, offset: int, payload: bytes) -> None:
            writes[-1].append((offset, payload))
            super()._store(offset, payload)

        async def co_flush(self) -> None:
            writes.append([])

    child = Recording(image.data)
    await repair_image(child, image.header, CheckFix.ALL, trust=Limits(), report=lambda _line: None)
    dice = random.Random(1)
    for phase in range(len(writes)):
        for _ in range(3):
            crashed = Craft(image.data)
            for done in writes[:phase]:
                for offset, payload in done:
                    crashed.put(offset, payload)
            some = [write for write in writes[phase] if dice.random() < 0.5]
            for offset, payload in some:
                crashed.put(offset, payload)
            result, _, mended = await repair(Craft(crashed.data))
            assert (result.check_errors, result.corruptions, result.leaks) == (0, 0, 0)
            for cluster in (28, 29, 30):
                entry = mended.entry(mended.l2_entry_at(cluster))
                place = entry & ~(COPIED | ZERO)
                assert mended.data[place : place + 1024] == bytes([cluster]) * 1024
                assert mended.refcount(place) == 1


@pytest.mark.parametrize(
    "error", [BlockError(errno=errno.ENOSPC), asyncio.CancelledError()], ids=["fails", "cancelled"]
)
async def test_failed_or_cancelled_at_any_step_the_image_is_no_worse(error: BaseException) -> None:
    image = await image_with_data(1024)
    bends.refcount_missing(image)
    bends.leak(image)
    steps = 0
    while True:
        child = MemoryChild(image.data)

        def before(_name: str, _offset: int, _nbytes: int, child: MemoryChild = child, limit: int = steps) -> None:
            if len(child.log) > limit:
                raise error

        child.before = before
        with contextlib.suppress(BlockError, asyncio.CancelledError):
            await repair_image(child, image.header, CheckFix.ALL, trust=Limits(), report=lambda _line: None)
            break
        result, _, mended = await repair(Craft(child.data))
        assert (result.corruptions, result.leaks) == (0, 0)
        for cluster in (28, 29, 30):
            place = mended.entry(mended.l2_entry_at(cluster)) & ~COPIED
            assert mended.data[place : place + 1024] == bytes([cluster]) * 1024
        steps += 1
    assert steps > 10
