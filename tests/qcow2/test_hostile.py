"""Images made to harm: opened through the whole graph, each ends in one clear error and leaves nothing behind."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import blockio
from blockio.errors import (
    BlockError,
    CorruptImage,
    LimitExceeded,
    NotThisFormat,
    OpenDenied,
    OptionError,
    UnsupportedFeature,
)
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.types import OpenFlags
from blockio_drivers.qcow2.driver import Qcow2Driver
from blockio_drivers.qcow2.options import Qcow2Options
from blockio_drivers.qcow2.tables import COMPRESSED, COPIED
from tests.support.qcow2_craft import Craft, new_image
from tests.support.qemu import qemu_io

K64 = 65536


def cut_to(length: int) -> Callable[[Craft], object]:
    def cut(image: Craft) -> object:
        del image.data[length:]
        return None

    return cut


def extension(magic: int, payload: bytes) -> bytes:
    return struct.pack(">II", magic, len(payload)) + payload.ljust(-(-len(payload) // 8) * 8, b"\0")


def with_data_file(image: Craft) -> object:
    image.set(incompatible=4)
    return image.put(112, extension(0x44415441, b"/etc/passwd") + bytes(8))


REFUSED: dict[str, tuple[Callable[[Craft], object], type[BlockError], int]] = {
    "not an image": (lambda i: i.put(0, b"\0\0\0\0"), NotThisFormat, errno.EINVAL),
    "empty file": (cut_to(0), NotThisFormat, errno.EINVAL),
    "header cut": (cut_to(60), CorruptImage, errno.EINVAL),
    "table cut": (cut_to(0x30004), CorruptImage, errno.EINVAL),
    "refcount table cut": (cut_to(0x10008), CorruptImage, errno.EINVAL),
    "L1 past the file": (lambda i: i.set(l1_table_offset=1 << 30), CorruptImage, errno.EINVAL),
    "L1 is the header": (lambda i: i.set(l1_table_offset=0), CorruptImage, errno.EINVAL),
    "L1 is the refcount table": (lambda i: i.set(l1_table_offset=0x10000), CorruptImage, errno.EINVAL),
    "refcount table is the header": (lambda i: i.set(refcount_table_offset=0), CorruptImage, errno.EINVAL),
    "L1 offset overflows": (lambda i: i.set(l1_table_offset=(1 << 64) - K64), CorruptImage, errno.EINVAL),
    "L1 size overflows": (lambda i: i.set(l1_size=0xFFFFFFFF), LimitExceeded, errno.EFBIG),
    "refcount table overflows": (lambda i: i.set(refcount_table_clusters=0xFFFFFFFF), LimitExceeded, errno.EFBIG),
    "disk too big": (lambda i: i.set(size=1 << 62), LimitExceeded, errno.EFBIG),
    "disk negative": (lambda i: i.set(size=(1 << 64) - 512), LimitExceeded, errno.EFBIG),
    "snapshots without end": (lambda i: i.set(nb_snapshots=0xFFFFFFFF), LimitExceeded, errno.EFBIG),
    "unknown feature": (lambda i: i.set(incompatible=1 << 40), UnsupportedFeature, errno.ENOTSUP),
    "AES without a password": (lambda i: i.set(crypt_method=1), OptionError, errno.EINVAL),
    "LUKS without a header": (lambda i: i.set(crypt_method=2), CorruptImage, errno.EINVAL),
    "unknown encryption": (lambda i: i.set(crypt_method=3), CorruptImage, errno.EINVAL),
    "data file": (with_data_file, OpenDenied, errno.EPERM),
    "corrupt bit": (lambda i: i.set(incompatible=2), CorruptImage, errno.EACCES),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_at_once_and_the_process_stays_usable(name: str, tmp_path: Path) -> None:
    bend, kind, code = REFUSED[name]
    image = await new_image(1 << 20)
    bend(image)
    path = image.save(tmp_path / "hostile.qcow2")
    with pytest.raises(kind) as caught:
        await blockio.open(str(path), format="qcow2")
    assert caught.value.errno == code
    assert str(caught.value)
    assert path.read_bytes() == image.data, "nothing is written to what is refused"
    sound = (await new_image(1 << 20)).save(tmp_path / "sound.qcow2")
    async with blockio.open(str(sound), format="qcow2") as blk:
        assert await blk.co_getlength() == 1 << 20


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "json:{}", 'json:{"driver":"file","filename":"/etc/passwd"}', "nbd:x:1"]
)
async def test_a_backing_name_opens_nothing_without_the_gate(name: str, tmp_path: Path) -> None:
    image = await new_image(1 << 20, backing_file=name, backing_fmt="raw")
    path = image.save(tmp_path / "overlay.qcow2")
    with pytest.raises(OpenDenied) as caught:
        await blockio.open(str(path), format="qcow2")
    assert name in str(caught.value)


READS: dict[str, tuple[Callable[[Craft], object], type[BlockError] | None]] = {
    "cluster past the file": (lambda i: i.put_entry(i.l2_entry_at(0), COPIED | 1 << 40), None),
    "cluster crooked": (lambda i: i.put_entry(i.l2_entry_at(0), COPIED | 0x50200), CorruptImage),
    "table crooked": (lambda i: i.put_entry(i.l1_entry_at(0), COPIED | 0x50200), CorruptImage),
    "table past the file": (lambda i: i.put_entry(i.l1_entry_at(0), COPIED | 1 << 40), None),
    "compressed past the file": (lambda i: i.put_entry(i.l2_entry_at(0), COMPRESSED | 1 << 40), BlockError),
    "compressed noise": (lambda i: i.put_entry(i.l2_entry_at(0), COMPRESSED | i.cluster(b"\xff" * 99)), BlockError),
    "data cut": (lambda i: (i.map(0, b"x" * K64), cut_to(len(i.data) - 1000)(i)), None),
}


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize("name", READS)
async def test_reading_what_the_tables_promise(name: str, tmp_path: Path) -> None:
    bend, kind = READS[name]
    image = await new_image(1 << 20)
    bend(image)
    path = image.save(tmp_path / "hostile.qcow2")
    qemu = qemu_io(path, f"read 0 {K64}", format="qcow2", options=("-r",), check=False)
    assert ("failed" in qemu.stdout) == (kind is not None), "QEMU's verdict"
    async with blockio.open(str(path), format="qcow2", read_only=True) as blk:
        data = bytearray(K64)
        if kind is None:
            await blk.co_preadv(0, data)
            return
        for _ in range(2):  # it fails again, and harms nothing
            with pytest.raises(kind) as caught:
                await blk.co_preadv(0, data)
            assert caught.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("what", "bend"),
    [
        ("Data cluster", lambda i: i.put_entry(i.l2_entry_at(0), COPIED | 1 << 40)),
        ("Preallocated cluster", lambda i: i.put_entry(i.l2_entry_at(0), COPIED | 1 << 40 | 1)),
        ("L2 table", lambda i: i.put_entry(i.l1_entry_at(0), COPIED | 1 << 40)),
    ],
)
async def test_an_entry_cannot_make_the_file_as_long_as_it_likes(
    what: str, bend: Callable[[Craft], object], tmp_path: Path
) -> None:
    image = await new_image(1 << 20)
    bend(image)
    path = image.save(tmp_path / "hostile.qcow2")
    async with blockio.open(str(path), format="qcow2") as blk:
        with pytest.raises(CorruptImage, match=f"{what} offset 0x10000000000 is outside of the image"):
            await blk.co_pwritev(0, bytes(512))
    assert path.stat().st_size < 1 << 20


@given(st.integers(0, 0x1FF), st.binary(min_size=1, max_size=16), st.booleans())
async def test_any_header_opens_or_is_refused_by_name(at: int, noise: bytes, read_only: bool) -> None:
    """Whatever the header says, the driver opens or raises a BlockError; it never asks for memory beyond limits."""
    image = await new_image(1 << 20)
    image.put(at, noise)
    child = MemoryChild(image.data)
    host = MemoryHost(flags=OpenFlags(read_only=read_only))
    driver = Qcow2Driver(host)
    try:
        await driver.open(Qcow2Options(), MemoryOpener(file=child))
    except BlockError:
        return
    await driver.close()
