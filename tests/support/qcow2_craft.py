"""qcow2 images made and bent byte by byte, without a file or a graph.

``new_image`` writes one with blockio's own ``create``; ``Craft`` changes fields, entries and refcounts of one in
memory; ``check`` and ``repair`` run ours on it, ``Craft.save`` puts it before QEMU's tools.
"""

from __future__ import annotations

import struct
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

from blockio.driver.base import CheckFix, CheckResult
from blockio.driver.child import Child
from blockio.testing.memory import MemoryChild
from blockio.types import Limits
from blockio_drivers.qcow2.check import check_image
from blockio_drivers.qcow2.create import create_image
from blockio_drivers.qcow2.header import Header, header_area
from blockio_drivers.qcow2.options import Qcow2CreateOptions
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.repair import repair_image
from blockio_drivers.qcow2.tables import COPIED, Geometry

__all__ = ["Craft", "MemoryTarget", "check", "new_image", "repair"]

_FIELDS: Final = {
    "magic": (0, ">I"),
    "version": (4, ">I"),
    "backing_file_offset": (8, ">Q"),
    "backing_file_size": (16, ">I"),
    "cluster_bits": (20, ">I"),
    "size": (24, ">Q"),
    "crypt_method": (32, ">I"),
    "l1_size": (36, ">I"),
    "l1_table_offset": (40, ">Q"),
    "refcount_table_offset": (48, ">Q"),
    "refcount_table_clusters": (56, ">I"),
    "nb_snapshots": (60, ">I"),
    "snapshots_offset": (64, ">Q"),
    "incompatible": (72, ">Q"),
    "compatible": (80, ">Q"),
    "autoclear": (88, ">Q"),
    "refcount_order": (96, ">I"),
    "header_length": (100, ">I"),
    "compression_type": (104, ">B"),
}


class MemoryTarget:
    """A ``CreateTarget`` in memory, for layouts that need no opened image."""

    def __init__(self, file: MemoryChild | None = None) -> None:
        self.file = file or MemoryChild()

    def beside(self, filename: str) -> AbstractAsyncContextManager[Child]:
        raise AssertionError("no data file is asked for")

    def open_image(self) -> AbstractAsyncContextManager[Child]:
        """Never needed: preallocation is laid out directly."""
        raise AssertionError("creating an image opens nothing")


async def new_image(size: int, **options: Any) -> Craft:
    """A new image of *size* bytes."""
    target = MemoryTarget()
    await create_image(target, Qcow2CreateOptions(size=size, **options))
    return Craft(target.file.data)


class Craft:
    """An image as bytes that may be bent. Positions follow the header it had at first."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = bytearray(data)
        self.header = Header.decode(bytes(data[: header_area(bytes(data[:512]))]), check=True)
        self.geometry = Geometry.of(self.header)

    def set(self, **fields: int) -> Craft:
        """Overwrite header fields by name."""
        for name, value in fields.items():
            offset, form = _FIELDS[name]
            struct.pack_into(form, self.data, offset, value)
        return self

    def put(self, offset: int, data: bytes) -> Craft:
        """Overwrite (or append) bytes."""
        if len(self.data) < offset + len(data):
            self.data.extend(bytes(offset + len(data) - len(self.data)))
        self.data[offset : offset + len(data)] = data
        return self

    def entry(self, offset: int) -> int:
        """The 64-bit entry at *offset*."""
        return int.from_bytes(self.data[offset : offset + 8], "big")

    def put_entry(self, offset: int, value: int) -> Craft:
        """Overwrite the 64-bit entry at *offset*."""
        return self.put(offset, value.to_bytes(8, "big"))

    def cluster(self, data: bytes = b"", *, refcount: int = 1) -> int:
        """Append a cluster holding *data* and give it *refcount*; its offset."""
        size = self.geometry.cluster_size
        offset = -(-len(self.data) // size) * size
        self.put(offset, data.ljust(size, b"\0"))
        self.put_refcount(offset, refcount)
        return offset

    def put_refcount(self, offset: int, refcount: int) -> Craft:
        """Overwrite the refcount of the cluster at *offset*; its block must exist."""
        table, index = divmod(offset >> self.geometry.cluster_bits, self.geometry.refcount_block_entries)
        block = self.entry(self.header.refcount_table_offset + table * 8)
        assert block, "no refcount block there"
        codec = RefcountCodec.of(self.header.refcount_order)
        codec.put(memoryview(self.data)[block : block + self.geometry.cluster_size], index, refcount)
        return self

    def refcount(self, offset: int) -> int:
        """The stored refcount of the cluster at *offset*."""
        table, index = divmod(offset >> self.geometry.cluster_bits, self.geometry.refcount_block_entries)
        block = self.entry(self.header.refcount_table_offset + table * 8)
        codec = RefcountCodec.of(self.header.refcount_order)
        return codec.get(bytes(self.data[block : block + self.geometry.cluster_size]), index)

    def l1_entry_at(self, index: int) -> int:
        """Where L1 entry *index* stands."""
        return self.header.l1_table_offset + index * 8

    def l2_entry_at(self, guest_cluster: int) -> int:
        """Where the L2 entry of *guest_cluster* stands; its table is made where there is none."""
        index, within = divmod(guest_cluster, self.geometry.l2_entries)
        l1 = self.entry(self.l1_entry_at(index))
        table = l1 & 0x00FF_FFFF_FFFF_FE00
        if not table:
            table = self.cluster()
            self.put_entry(self.l1_entry_at(index), table | COPIED)
        return table + within * self.geometry.l2_entry_bytes

    def map(self, guest_cluster: int, data: bytes, *, flags: int = COPIED, refcount: int = 1) -> int:
        """Give *guest_cluster* a host cluster with *data*; its offset."""
        at = self.l2_entry_at(guest_cluster)
        offset = self.cluster(data, refcount=refcount)
        self.put_entry(at, offset | flags)
        return offset

    def save(self, path: Path) -> Path:
        """Write the bytes to *path*."""
        path.write_bytes(self.data)
        return path


async def check(image: Craft, trust: Limits | None = None) -> tuple[CheckResult, list[str]]:
    """Our check of *image*: the counts and what was reported."""
    lines: list[str] = []
    child = MemoryChild(image.data)
    header = Header.decode(bytes(image.data[: header_area(bytes(image.data[:512]))]), check=True)
    result = await check_image(child, header, trust=trust or Limits(), report=lines.append)
    assert child.data == image.data, "a check writes nothing"
    return result, [line for text in lines for line in text.split("\n")]


async def repair(image: Craft, fix: CheckFix = CheckFix.ALL) -> tuple[CheckResult, list[str], Craft]:
    """Our repair of *image*: the counts, what was reported, and the image afterwards."""
    lines: list[str] = []
    child = MemoryChild(image.data)
    header = Header.decode(bytes(image.data[: header_area(bytes(image.data[:512]))]), check=True)
    result, new = await repair_image(child, header, fix, trust=Limits(), report=lines.append)
    after = Craft(child.data)
    assert after.header == new, "the header that repair answers is the one it wrote"
    return result, [line for text in lines for line in text.split("\n")], after
