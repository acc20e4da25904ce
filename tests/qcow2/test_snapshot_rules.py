"""Snapshots: what is refused, what is kept byte for byte, and a machine's state beside the disk. QEMU agrees."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from blockio.buffers import IoVector
from blockio.driver.snapshots import SnapshotInfo
from blockio.errors import BlockError, LimitExceeded, UnsupportedFeature
from blockio.types import OpenFlags
from tests.qcow2.engine import Disk, check_image, new_image, open_disk, put
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")
STATE = b"state" * 30_000


async def _state(disk: Disk, nbytes: int) -> bytes:
    data = bytearray(nbytes)
    await disk.driver.co_load_vmstate(IoVector.of(data), 0)
    return bytes(data)


@pytest.mark.parametrize("cluster", [512, 65536])
async def test_a_snapshot_takes_the_state_along(cluster: int) -> None:
    child = await new_image(1 << 20, cluster_size=cluster)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 65536)
        for at in range(0, len(STATE), 1000):
            await disk.driver.co_save_vmstate(IoVector.of(STATE[at : at + 1000]), at)
        assert await _state(disk, len(STATE) + 9) == STATE + bytes(9)
        made = await disk.driver.co_snapshot_create(SnapshotInfo(name="on", vm_state_size=len(STATE), icount=7))
        assert (made.id, made.vm_state_size, made.icount, made.disk_size) == ("1", len(STATE), 7, 1 << 20)
        assert await _state(disk, len(STATE)) == bytes(len(STATE))
        await disk.write(0, b"b" * 65536)
        await disk.driver.co_snapshot_goto("on")
        assert await _state(disk, len(STATE)) == STATE
        assert await disk.read(0, 65536) == b"a" * 65536
    check_image(child.data)


async def test_qemu_loads_the_state_and_a_longer_disk_does_not_show_it(tmp_path: Path) -> None:
    child = await new_image(1 << 20)
    async with open_disk(child) as disk:
        await disk.driver.co_save_vmstate(IoVector.of(b"\x05" * 100_352), 0)
    path = tmp_path / "a.qcow2"
    path.write_bytes(child.data)
    assert "Pattern" not in qemu_io(path, "read -b -P 5 0 98k", "write -b -P 6 98k 2k", format="qcow2").stdout
    child.data = bytearray(path.read_bytes())
    async with open_disk(child) as disk:
        assert await _state(disk, 102_400) == b"\x05" * 100_352 + b"\x06" * 2048
        await disk.truncate(2 << 30)
        assert not any(await disk.read(512 << 20, 1 << 20))  # where the state was
    check_image(child.data)


async def test_narrow_refcounts_refuse_without_a_trace() -> None:
    for bits, most in ((1, 0), (2, 2)):
        child = await new_image(1 << 20, refcount_bits=bits)
        async with open_disk(child) as disk:
            await disk.write(0, b"a" * 65536)
            for _ in range(most):
                await disk.driver.co_snapshot_create(SnapshotInfo(name="x"))
            for _ in range(2):
                with pytest.raises(BlockError) as refused:
                    await disk.driver.co_snapshot_create(SnapshotInfo(name="one more"))
                assert refused.value.errno == 22
            assert len(await disk.driver.co_snapshot_list()) == most
        check_image(child.data)


async def test_extra_data_and_odd_names_survive(tmp_path: Path) -> None:
    """A field nobody knows, and bytes that are no text, come through a rewrite of the table."""
    child = await new_image(1 << 20)
    async with open_disk(child) as disk:
        await disk.driver.co_snapshot_create(SnapshotInfo(name="abcdefgh"))
    (table,) = struct.unpack_from(">Q", child.data, 64)
    entry = bytes(child.data[table : table + 40 + 24]) + b"unknown!" + b"1" + b"\xff\xfe,\n=\x80"
    child.data[table : table + len(entry)] = entry
    put(child, table + 36, 32, 4)
    put(child, table + 14, 6, 2)
    entry = bytes(child.data[table : table + len(entry)])
    async with open_disk(child) as disk:
        await disk.driver.co_snapshot_create(SnapshotInfo(name="two", date_sec=9))
        (first, second) = await disk.driver.co_snapshot_list()
        assert first.name == b"\xff\xfe,\n=\x80".decode("utf-8", "surrogateescape")
        assert (second.id, second.date_sec) == ("2", 9)
        await disk.driver.co_snapshot_delete(None, "two")
    (table,) = struct.unpack_from(">Q", child.data, 64)
    # Where its L1 table lies and its fixed fields are as they were, and so is all that follows.
    assert child.data[table : table + len(entry)] == entry
    check_image(child.data)


async def test_too_many_and_wrong_snapshots() -> None:
    child = await new_image(1 << 20)
    put(child, 60, 65537, 4)
    with pytest.raises(LimitExceeded, match="Snapshot table too large"):
        async with open_disk(child):
            pass
    put(child, 60, 0, 4)
    async with open_disk(child) as disk:
        with pytest.raises(BlockError) as missing:
            await disk.driver.co_snapshot_goto("none")
        assert missing.value.errno == 2
        with pytest.raises(BlockError, match="Can't find the snapshot"):
            await disk.driver.co_snapshot_delete("1", None)
        with pytest.raises(BlockError, match="too long"):
            await disk.driver.co_snapshot_create(SnapshotInfo(name="n" * 65536))
        with pytest.raises(BlockError, match="Device is not readonly"):
            await disk.driver.co_snapshot_load("1", None)
        await disk.driver.co_snapshot_create(SnapshotInfo(name="x"))
        known = disk.driver._snapshots
        entries, known.entries = known.entries, known.entries * 65536
        with pytest.raises(BlockError) as too_many:
            await disk.driver.co_snapshot_create(SnapshotInfo(name="one more"))
        assert too_many.value.errno == 27
        known.entries = entries
    (table,) = struct.unpack_from(">Q", child.data, 64)
    put(child, table, 0x12345)
    before = bytes(child.data)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        with pytest.raises(BlockError, match="Snapshot L1 table offset invalid"):
            await disk.driver.co_snapshot_load("1", None)
    assert child.data == before


async def test_version_2_keeps_its_length_while_it_has_snapshots() -> None:
    child = await new_image(1 << 20, compat="0.10")
    async with open_disk(child) as disk:
        await disk.driver.co_snapshot_create(SnapshotInfo(name="x"))
        with pytest.raises(UnsupportedFeature, match="Can't resize a v2 image which has snapshots"):
            await disk.truncate(2 << 20)
        await disk.driver.co_snapshot_delete("1", None)
        await disk.truncate(2 << 20)
    check_image(child.data)


async def test_qemus_snapshots_are_applied_here_and_ours_there(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -P 1 0 256k", format="qcow2")
    qemu_img("snapshot", "-c", "theirs", path)
    qemu_io(path, "write -P 2 0 128k", format="qcow2")
    child = await new_image(0)
    child.data = bytearray(path.read_bytes())
    async with open_disk(child) as disk:
        await disk.driver.co_snapshot_create(SnapshotInfo(name="ours"))
        await disk.driver.co_snapshot_goto("theirs")
        assert await disk.read(0, 256 << 10) == b"\1" * (256 << 10)
        await disk.write(0, b"\3" * 65536)
    path.write_bytes(child.data)
    qemu_img("snapshot", "-a", "ours", path)
    assert "Pattern" not in qemu_io(path, "read -P 2 0 128k", "read -P 1 128k 128k", format="qcow2").stdout
    qemu_img("snapshot", "-d", "theirs", path)
    check_image(path.read_bytes())
