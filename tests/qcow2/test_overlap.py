"""Which metadata is protected: class by class, in the templates, and with the words, the mark and the event of QEMU."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from blockio.errors import CorruptImage
from blockio.testing.memory import MemoryChild
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.options import OverlapChecks
from blockio_drivers.qcow2.tables import COPIED
from tests.qcow2.engine import open_disk, put
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

WORDS = {
    "main_header": "qcow2_header",
    "active_l1": "active L1 table",
    "active_l2": "active L2 table",
    "refcount_table": "refcount table",
    "refcount_block": "refcount block",
    "snapshot_table": "snapshot table",
    "inactive_l1": "inactive L1 table",
    "inactive_l2": "inactive L2 table",
    "bitmap_directory": "bitmap directory",
}
TEMPLATES = ("none", "constant", "cached", "all")
TARGETS = [name for name in WORDS if name != "main_header"]  # no entry can lead to cluster 0


@cache
def base() -> bytes:
    """An image that has every class of metadata, each in clusters of its own."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "base.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4096", path, "1M")
        qemu_img("bitmap", "--add", path, "dirty")
        qemu_io(path, "write -P 1 0 64k", format="qcow2")
        qemu_img("snapshot", "-c", "one", path)
        qemu_io(path, "write -P 2 0 64k", format="qcow2")
        return path.read_bytes()


def number(data: bytes | bytearray, offset: int) -> int:
    return int(struct.unpack_from(">Q", data, offset)[0])


def place_of(name: str) -> int:
    """Where in the image metadata of that class is."""
    data = base()
    header = Header.decode(data[:4096])
    inactive = number(data, header.snapshots_offset)
    mask = ~(COPIED | 511)
    assert header.bitmaps is not None
    return {
        "active_l1": header.l1_table_offset,
        "active_l2": number(data, header.l1_table_offset) & mask,
        "refcount_table": header.refcount_table_offset,
        "refcount_block": number(data, header.refcount_table_offset),
        "snapshot_table": header.snapshots_offset,
        "inactive_l1": inactive,
        "inactive_l2": number(data, inactive) & mask,
        "bitmap_directory": header.bitmaps.directory_offset,
    }[name]


def bent(name: str) -> bytearray:
    """The image, with guest cluster 5 leading to metadata of that class."""
    data = bytearray(base())
    child = MemoryChild(data)
    put(child, place_of("active_l2") + 5 * 8, place_of(name) | COPIED)
    return child.data


async def ours(name: str, **checks: Any) -> str:
    """What we say to a write over *name*; empty where it is done."""
    child = MemoryChild(bent(name))
    before = bytes(child.data)
    async with open_disk(child, overlap_check=OverlapChecks(**checks)) as disk:
        await disk.read(5 * 4096, 1)
        protected = name in OverlapChecks(**checks).classes()
        if not protected and name in {"snapshot_table", "inactive_l1", "inactive_l2"}:
            await disk.write(5 * 4096, b"x" * 512)
            return ""
        if not protected:
            return ""  # the image is lost with it; QEMU's is, too
        assert not disk.driver.try_pwritev(5 * 4096, [b"x" * 512], 512)
        with pytest.raises(CorruptImage) as caught:
            await disk.write(5 * 4096, b"x" * 512)
        [told] = [event for event in disk.host.events if event[0] == "corrupted"]
        assert told == ("corrupted", caught.value.message, place_of(name), 512, True)
    assert child.data[79] & 2, "the corrupt bit"
    child.data[79] &= ~2
    # A writer says in the bitmap directory that the bitmap is in use.
    directory = place_of("bitmap_directory")
    child.data[directory : directory + 4096] = before[directory : directory + 4096]
    assert child.data == before, "and nothing else was written"
    return caught.value.message


def qemus(path: Path, name: str, **checks: Any) -> str:
    """What QEMU says to it."""
    path.write_bytes(bent(name))
    options = {f"overlap-check.{key.replace('_', '-')}": value for key, value in checks.items()}
    spec = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, **options}
    done = qemu_io("json:" + json.dumps(spec), f"write {5 * 4096} 512", check=False)
    start = "qcow2: Marking image as corrupt: "
    found = [line for line in done.stderr.splitlines() if line.startswith(start)]
    return found[0].removeprefix(start).partition(";")[0] if found else ""


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("template", TEMPLATES)
async def test_templates(name: str, template: str, tmp_path: Path) -> None:
    expected = f"Preventing invalid write on metadata (overlaps with {WORDS[name]})"
    covered = name in OverlapChecks(template=template).classes()
    assert await ours(name, template=template) == (expected if covered else "")
    assert qemus(tmp_path / "i.qcow2", name, template=template) == (expected if covered else "")


@pytest.mark.parametrize("name", TARGETS)
async def test_single_classes(name: str, tmp_path: Path) -> None:
    """On above the empty template, off below the full one."""
    path = tmp_path / "i.qcow2"
    expected = f"Preventing invalid write on metadata (overlaps with {WORDS[name]})"
    assert await ours(name, template="none", **{name: True}) == expected
    assert qemus(path, name, template="none", **{name: True}) == expected
    assert await ours(name, template="all", **{name: False}) == ""
    assert qemus(path, name, template="all", **{name: False}) == ""


async def test_the_header_is_a_class_of_its_own() -> None:
    for checks, found in (
        (OverlapChecks(), "qcow2_header"),
        (OverlapChecks(main_header=False), None),
        (OverlapChecks(template="none", main_header=True), "qcow2_header"),
        (OverlapChecks(template="none"), None),
    ):
        async with open_disk(MemoryChild(base()), overlap_check=checks) as disk:
            assert disk.driver._image.guard.hit(0, 512) == found
            assert disk.driver._image.guard.hit(100, 1) == found


def test_every_class_is_in_the_full_template() -> None:
    assert OverlapChecks(template="all").classes() == set(WORDS)
    assert OverlapChecks(template="none").classes() == set()
