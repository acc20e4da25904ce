"""A qcow2 image in memory and its driver, without a graph: what the engine's tests stand on."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from blockio.buffers import IoVector
from blockio.driver.base import CheckFix, CheckResult
from blockio.driver.child import Child
from blockio.errors import BlockError
from blockio.io import mapped
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.testing.rig import Disks
from blockio.testing.wrapping import Wrap
from blockio.types import ExtentKind, OpenFlags, PreallocMode, Role
from blockio_drivers.qcow2.create import create_image
from blockio_drivers.qcow2.driver import Qcow2Driver
from blockio_drivers.qcow2.options import Qcow2CreateOptions, Qcow2Options

__all__ = [
    "Disk",
    "PackingDisk",
    "Qcow2Rig",
    "Target",
    "check_image",
    "first_l2_table",
    "new_image",
    "new_image_with_data_file",
    "open_disk",
    "put",
    "qemu_reads",
    "written_image",
]

UNMAP: Final = OpenFlags(unmap=True)


@dataclass
class Target:
    """What ``create_image`` writes onto."""

    file: Child

    data: MemoryChild | None = None

    @asynccontextmanager
    async def beside(self, filename: str) -> AsyncIterator[Child]:
        self.data = MemoryChild(name=filename, role=Role.DATA)
        self.data.filename = filename
        yield self.data

    def open_image(self) -> Any:
        raise AssertionError("nothing here needs the image opened while it is made")


async def new_image(size: int, **options: Any) -> MemoryChild:
    """A fresh image in memory."""
    child = MemoryChild()
    await create_image(Target(child), Qcow2CreateOptions(size=size, **options))
    child.log.clear()
    return child


class Disk:
    """An open driver with the requests that the framework would send it. ``backing`` is None or a Child."""

    def __init__(self, driver: Qcow2Driver, host: MemoryHost, file: MemoryChild) -> None:
        self.driver = driver
        self.host = host
        self.file = file

    async def write(self, offset: int, data: bytes | bytearray) -> None:
        await mapped.write(self.driver, offset, IoVector.of(data))

    async def read(self, offset: int, nbytes: int) -> bytes:
        data = bytearray(nbytes)
        await mapped.read(self.driver, offset, IoVector.of(data))
        return bytes(data)

    async def zero(self, offset: int, nbytes: int, flags: int = 0) -> None:
        await self.driver.co_pwrite_zeroes(offset, nbytes, flags)

    async def discard(self, offset: int, nbytes: int) -> None:
        await self.driver.co_pdiscard(offset, nbytes)

    async def flush(self) -> None:
        await self.driver.co_flush_to_os()
        await self.driver.co_flush_to_disk()
        await self.driver.file.co_flush()
        if self.driver._image.data is not self.driver.file:
            await self.driver._image.data.co_flush()

    async def truncate(self, length: int, prealloc: PreallocMode = PreallocMode.OFF, flags: int = 0) -> None:
        await self.driver.co_truncate(length, exact=True, prealloc=prealloc, flags=flags)

    @property
    def length(self) -> int:
        return self.driver.length

    async def check(self) -> CheckResult:
        return await self.driver.co_check(CheckFix.NONE)

    def at_rest(self) -> None:
        assert not len(self.driver._writer.locks), "no guest cluster stays held"
        assert not len(self.driver._writer._queue), "nobody stays queued"
        assert not self.driver._image.retired.readers, "no reader stays inside"
        assert not self.driver.statistics()["l2"].pinned, "no table stays pinned"

    async def close(self) -> None:
        await self.driver.close()


async def open_driver(
    file: Child,
    *,
    flags: OpenFlags = UNMAP,
    backing: Child | None = None,
    data: Child | None = None,
    **options: Any,
) -> tuple[Qcow2Driver, MemoryHost]:
    """A driver over *file*."""
    host = MemoryHost(flags=flags)
    driver = Qcow2Driver(host)
    given = {"file": file, "backing": backing, "data_file": data}
    opener = MemoryOpener(**{name: child for name, child in given.items() if child is not None})
    await driver.open(Qcow2Options(**options), opener)
    return driver, host


@asynccontextmanager
async def open_disk(
    file: MemoryChild,
    *,
    flags: OpenFlags = UNMAP,
    backing: Child | None = None,
    data: Child | None = None,
    through: Child | None = None,
    **options: Any,
) -> AsyncIterator[Disk]:
    """A driver over *file* (or *through* something that leads to it), closed at the end."""
    driver, host = await open_driver(through or file, flags=flags, backing=backing, data=data, **options)
    disk = Disk(driver, host, file)
    try:
        yield disk
    except BaseException:
        with suppress(OSError):
            await disk.close()
        raise
    await disk.close()


class PackingDisk(Disk):
    """Writes whole clusters compressed where nothing is allocated yet, so that it may."""

    async def write(self, offset: int, data: bytes | bytearray) -> None:
        size = self.driver._image.geometry.cluster_size
        if (offset | len(data)) % size or not await self._vacant(offset, len(data)):
            await super().write(offset, data)
            return
        try:
            await self.driver.co_pwritev_compressed(offset, IoVector.of(data))
        except BlockError as error:
            if error.errno != errno.EIO or await self._vacant(offset, len(data)):
                raise
            await super().write(offset, data)  # somebody else was there first

    async def _vacant(self, offset: int, nbytes: int) -> bool:
        end = offset + nbytes
        while offset < end:
            extent = await self.driver.co_map(offset, end - offset)
            if extent.kind not in {ExtentKind.UNALLOCATED, ExtentKind.ZERO} or extent.host_offset >= 0:
                return False
            offset += extent.length
        return True


class Qcow2Rig:
    """A ``Rig`` of a qcow2 driver without a graph, over the disks ``file``, ``backing`` … (its children).

    *options* are for working on the image, *encrypt* is for looking at it too.
    """

    def __init__(self, *, packing: bool = False, encrypt: dict[str, str] | None = None, **options: Any) -> None:
        self.options = options
        self.encrypt = encrypt
        self.packing = packing

    @asynccontextmanager
    async def open(self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False) -> AsyncIterator[Disk]:
        files = {name: MemoryChild(name=name) for name in disks}
        for name, data in disks.items():
            files[name].data = data
        children: dict[str, Child] = dict(files)
        if wrap is not None:
            children = {name: wrap(name, child) for name, child in files.items()}
        flags = OpenFlags(read_only=True) if read_only else UNMAP
        options: dict[str, Any] = {"backing": children.get("backing"), "data": children.get("data-file")}
        options["encrypt"] = self.encrypt
        if not read_only:
            options.update(self.options)
        async with open_disk(files["file"], through=children["file"], flags=flags, **options) as disk:
            yield PackingDisk(disk.driver, disk.host, disk.file) if self.packing and not read_only else disk


async def new_image_with_data_file(size: int, **options: Any) -> tuple[MemoryChild, MemoryChild]:
    """A fresh image in memory, and its data file, which it calls ``data.raw``."""
    child = MemoryChild()
    target = Target(child)
    await create_image(target, Qcow2CreateOptions(size=size, data_file="data.raw", **options))
    assert target.data is not None
    child.log.clear()
    target.data.log.clear()
    return child, target.data


def check_image(data: bytes | bytearray, *, leaks: bool = False, passphrase: str | None = None) -> None:
    """``qemu-img check`` finds the image, which *passphrase* opens, clean, or with *leaks* nothing worse than leaks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.qcow2"
        path.write_bytes(data)
        # Without what it stands on, which is nowhere in these tests.
        node: dict[str, Any] = {"driver": "qcow2", "backing": None, "file": {"driver": "file", "filename": str(path)}}
        if data[79] & 4:
            node["data-file"] = {"driver": "null-co"}
        given = []
        if passphrase is not None:
            node["encrypt.key-secret"] = "s"
            given = ["--object", f"secret,id=s,data={passphrase}"]
        done = subprocess.run(
            ["qemu-img", "check", *given, f"json:{json.dumps(node)}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    allowed = {0, 3} if leaks else {0}
    assert done.returncode in allowed, f"qemu-img check: exit {done.returncode}\n{done.stdout}{done.stderr}"


def qemu_reads(data: bytes | bytearray, backing: bytes | None = None) -> bytes:
    """The whole disk as QEMU reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "image.qcow2", Path(folder) / "out.raw"
        path.write_bytes(data)
        if backing is not None:
            (Path(folder) / "base.raw").write_bytes(backing)
        done = subprocess.run(
            ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, out],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return out.read_bytes()


def put(child: MemoryChild, offset: int, value: int, size: int = 8) -> None:
    """Write *value* big-endian over *size* bytes of the image."""
    child.data[offset : offset + size] = value.to_bytes(size, "big")


def first_l2_table(child: MemoryChild) -> tuple[int, int]:
    """Host offsets of the L1 table and of the first L2 table."""
    (l1,) = struct.unpack(">Q", child.data[40:48])
    (l2,) = struct.unpack(">Q", child.data[l1 : l1 + 8])
    return l1, l2 & 0x00FFFFFFFFFFFE00


async def written_image(**options: Any) -> MemoryChild:
    """An image of 1 MiB whose first 64 KiB are written."""
    child = await new_image(1 << 20, **options)
    async with open_disk(child) as disk:
        await disk.write(0, b"a" * 65536)
    return child
