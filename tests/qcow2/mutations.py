"""Mutants of qcow2 images: every field of every structure with every telling value, one at a time.

``fields`` finds the structures by a walk of its own, so that no mistake of the driver hides one. ``mutants`` is the
fixed corpus that they make. ``ours`` opens and reads a mutant in memory, under guard; ``theirs`` has one qemu-io do the
same for many.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from blockio.driver.base import CheckFix
from blockio.driver.child import Child
from blockio.errors import BlockError, OpenDenied
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.types import OpenFlags, Role
from blockio_drivers.qcow2.driver import Qcow2Driver
from blockio_drivers.qcow2.options import Qcow2Options
from tests.qcow2.engine import Disk

__all__ = [
    "CHUNK",
    "Field",
    "Mutant",
    "Reading",
    "abuse",
    "fields",
    "mutant",
    "mutants",
    "ours",
    "sample_image",
    "theirs",
]

CHUNK: Final = 4096
SIZE: Final = 16 * CHUNK

BACKING: Final = bytes(range(1, 129)) * (SIZE // 256)
"""The content of ``base.raw``: half as long as the disk."""

_OFFSET: Final = 0x00FF_FFFF_FFFF_FE00
_COMPRESSED: Final = 1 << 62
_PATIENCE: Final = 20_000
"""Operations on the file that opening and reading an image this small never needs: whoever does more hangs."""
_ROOM: Final = 8 << 20
"""How far past its end the file may grow by what ``abuse`` writes."""


@dataclass(frozen=True)
class Field:
    """An unsigned big-endian number in an image."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class Mutant:
    """An image with one field changed."""

    field: Field
    value: int
    data: bytes

    def __str__(self) -> str:
        return f"{self.field.name} = {self.value:#x}"


def sample_image(path: Path, options: str, *, more: bool = True) -> bytes:
    """An image by QEMU with data and zero clusters; with *more* compressed ones, a snapshot that shares, a bitmap."""

    def run(*argv: str | Path) -> None:
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def guest(*commands: str) -> None:
        run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), path)

    (path.parent / "base.raw").write_bytes(BACKING)
    run("qemu-img", "create", "-f", "qcow2", "-o", options, path, str(SIZE))
    guest("write -P 1 0 9k", "write -P 2 16k 3k", "write -z 24k 4k", "write -P 6 60k 4k")
    if more:
        guest(f"write -c -P 3 32k {'16k' if 'extended_l2' in options else '4k'}")
        if "compat=0.10" not in options:
            run("qemu-img", "bitmap", "--add", "-g", "512", path, "dirty")
        run("qemu-img", "snapshot", "-c", "before", path)
    guest("write -P 4 1k 5k", "write -P 5 50k 1k")
    return path.read_bytes()


# -- the corpus

_HEADER: Final = (
    ("magic", 0, 4),
    ("version", 4, 4),
    ("backing_file_offset", 8, 8),
    ("backing_file_size", 16, 4),
    ("cluster_bits", 20, 4),
    ("size", 24, 8),
    ("crypt_method", 32, 4),
    ("l1_size", 36, 4),
    ("l1_table_offset", 40, 8),
    ("refcount_table_offset", 48, 8),
    ("refcount_table_clusters", 56, 4),
    ("nb_snapshots", 60, 4),
    ("snapshots_offset", 64, 8),
)
_HEADER_3: Final = (
    ("incompatible_features", 72, 8),
    ("compatible_features", 80, 8),
    ("autoclear_features", 88, 8),
    ("refcount_order", 96, 4),
    ("header_length", 100, 4),
    ("compression_type", 104, 1),
)
_SNAPSHOT: Final = (
    ("l1_table_offset", 0, 8),
    ("l1_size", 8, 4),
    ("id_str_size", 12, 2),
    ("name_size", 14, 2),
    ("date_sec", 16, 4),
    ("date_nsec", 20, 4),
    ("vm_clock_nsec", 24, 8),
    ("vm_state_size", 32, 4),
    ("extra_data_size", 36, 4),
    ("vm_state_size_large", 40, 8),
    ("disk_size", 48, 8),
)
_BITMAP: Final = (
    ("bitmap_table_offset", 0, 8),
    ("bitmap_table_size", 8, 4),
    ("flags", 12, 4),
    ("type", 16, 1),
    ("granularity_bits", 17, 1),
    ("name_size", 18, 2),
    ("extra_data_size", 20, 4),
)
_BITMAPS: Final = 0x23852875


def fields(data: bytes) -> Iterator[Field]:
    """The fields of an image; of tables the entries that differ in kind."""
    version, bits = number(data, 4, 4), number(data, 20, 4)
    yield from (Field(name, offset, size) for name, offset, size in _HEADER)
    if version > 2:
        yield from (Field(name, offset, size) for name, offset, size in _HEADER_3)
        yield from _extensions(data)
    l1, count = number(data, 40, 8), number(data, 36, 4)
    yield from _tables(data, "L1", l1, count, 1 << bits)
    table = number(data, 48, 8)
    yield Field("refcount table[0]", table, 8)
    yield Field("refcount table[1]", table + 8, 8)
    block = number(data, table, 8)
    width = 1 << number(data, 96, 4) if version > 2 else 16
    names = {0: "header", table >> bits: "refcount table", block >> bits: "refcount block", l1 >> bits: "L1"}
    names[(number(data, l1, 8) & _OFFSET) >> bits] = "L2"
    for cluster, name in names.items():
        yield Field(f"refcount of {name}", block + cluster * width // 8, max(width // 8, 1))
    snapshot = number(data, 64, 8)
    if number(data, 60, 4):
        yield from (Field(f"snapshot {name}", snapshot + offset, size) for name, offset, size in _SNAPSHOT)
        yield from _tables(data, "snapshot L1", number(data, snapshot, 8), number(data, snapshot + 8, 4), 1 << bits)


def _extensions(data: bytes) -> Iterator[Field]:
    at = number(data, 100, 4)
    while (magic := number(data, at, 4)) != 0:
        yield Field(f"extension {magic:#x} magic", at, 4)
        yield Field(f"extension {magic:#x} length", at + 4, 4)
        if magic == _BITMAPS:
            for name, offset, size in (("nb_bitmaps", 8, 4), ("reserved", 12, 4), ("size", 16, 8), ("offset", 24, 8)):
                yield Field(f"bitmap directory {name}", at + offset, size)
            directory = number(data, at + 24, 8)
            yield from (Field(f"bitmap {name}", directory + offset, size) for name, offset, size in _BITMAP)
            yield Field("bitmap table[0]", number(data, directory, 8), 8)
        at += 8 + -(-number(data, at + 4, 4) // 8) * 8


def _tables(data: bytes, name: str, l1: int, count: int, cluster: int) -> Iterator[Field]:
    seen = set()
    for index in range(min(count, 2)):
        yield Field(f"{name}[{index}]", l1 + index * 8, 8)
    for index in range(count):
        l2 = number(data, l1 + index * 8, 8) & _OFFSET
        for at in range(l2, l2 + cluster, 8) if l2 else ():
            entry = number(data, at, 8)
            kind = (entry >> 62, entry & 1, entry & _OFFSET != 0)
            if kind not in seen:
                seen.add(kind)
                yield Field(f"{name.replace('L1', 'L2')}[{index}][{(at - l2) // 8}] ({kind[0]}, {kind[1]})", at, 8)


def number(data: bytes, offset: int, size: int) -> int:
    """The number of that size there."""
    return int.from_bytes(data[offset : offset + size], "big")


def values(data: bytes, field: Field) -> Iterable[int]:
    """What *field* is set to: the ends of its range, neighbours, single bits, and for pointers every structure."""
    old = number(data, field.offset, field.size)
    most = (1 << 8 * field.size) - 1
    found = {0, 1, 2, most, most >> 1, most ^ (most >> 1), old + 1, old - 1, old * 2, old ^ most, old + 512, 0x1000}
    if field.size == 8:
        bits = number(data, 20, 4)
        end = -(-len(data) >> bits) << bits
        flags = old & ~_OFFSET
        places = [number(data, at, 8) for at in (40, 48, 64)]
        places += [0, number(data, places[1], 8), number(data, places[0], 8) & _OFFSET]
        places += [end, end - (1 << bits), field.offset >> bits << bits, 1 << 40, 1 << 55, 0x200]
        found |= {flags | place for place in places}
        found |= {old ^ 1 << bit for bit in (0, 1, 2, 3, 4, 9, 40, 56, 61, 62, 63)}
    elif field.size == 4:
        found |= {old ^ 1 << bit for bit in (3, 8, 16, 24)} | {30, 31, 9, 21, 22}
    found.discard(old)
    return sorted(value for value in found if 0 <= value <= most)


def mutants(data: bytes) -> Iterator[Mutant]:
    """The corpus of one image."""
    for field in fields(data):
        for value in values(data, field):
            yield mutant(data, field, value)


def mutant(data: bytes, field: Field, value: int) -> Mutant:
    """*data* with *value* in *field*."""
    payload = value.to_bytes(field.size, "big")
    return Mutant(field, value, data[: field.offset] + payload + data[field.offset + field.size :])


# -- what the two make of it

Reading: TypeAlias = "tuple[bytes | None, ...] | None"
"""Each chunk of the disk as read, None where reading failed; None for an image that was refused."""


class _Opener(MemoryOpener):
    """``base.raw`` is there: whatever else an image asks for is denied."""

    async def implicit(self, name: str, role: Role, *, target: str, format: str | None, kind: str) -> Child | None:
        if target != "base.raw" or format not in {None, "raw"} or name != "backing":
            raise OpenDenied(f"{name} is '{target}'")
        return MemoryChild(BACKING, name=name)


@asynccontextmanager
async def _guarded(data: bytes, **flags: bool) -> AsyncIterator[Disk]:
    """An image opened; AssertionError for a hang, and for a write where the file cannot be."""
    file = MemoryChild(data)
    file.fast = False
    done = 0

    def before(operation: str, offset: int, nbytes: int) -> None:
        nonlocal done
        done += 1
        assert done < _PATIENCE, "this does not end"
        if operation in {"write", "zero", "truncate"}:
            assert 0 <= offset <= offset + nbytes <= len(data) + _ROOM, f"{operation} at {offset}+{nbytes}"
        elif operation == "read":
            assert nbytes <= _ROOM, f"reads {nbytes} bytes"

    file.before = before
    host = MemoryHost(flags=OpenFlags(**flags))
    driver = Qcow2Driver(host)
    await driver.open(Qcow2Options(), _Opener(file=file))
    disk = Disk(driver, host, file)
    try:
        yield disk
    finally:
        with suppress(BlockError):
            await driver.close()


async def _chunks(disk: Disk) -> tuple[bytes | None, ...]:
    found: list[bytes | None] = []
    for offset in range(0, SIZE, CHUNK):
        try:
            found.append(await disk.read(offset, CHUNK) if offset + CHUNK <= disk.length else None)
        except BlockError:
            found.append(None)
    return tuple(found)


async def ours(data: bytes) -> Reading:
    """What blockio reads of *data*. Anything but a BlockError is a fault of its own."""
    try:
        async with _guarded(data, read_only=True) as disk:
            return await _chunks(disk)
    except BlockError:
        return None


async def abuse(data: bytes) -> None:
    """Do to *data* what a guest and its host do: write, discard, check, repair, resize. Errors are BlockErrors."""
    steps: list[Callable[[Disk], Awaitable[None]]] = [
        lambda disk: disk.write(1000, b"x" * 9000),
        lambda disk: disk.zero(16384, 8192),
        lambda disk: disk.discard(0, 4096),
        lambda disk: disk.flush(),
        lambda disk: disk.truncate(disk.length + 4096 if disk.length < 1 << 30 else 4096),
    ]
    with suppress(BlockError):
        async with _guarded(data, unmap=True) as disk:
            for step in steps:
                with suppress(BlockError):
                    await step(disk)
    for fix in (CheckFix.NONE, CheckFix.LEAKS, CheckFix.ALL):
        with suppress(BlockError):
            async with _guarded(data, check=True) as disk:
                await disk.driver.co_check(fix)


def theirs(folder: Path, images: Iterable[bytes]) -> list[Reading]:
    """What one qemu-io reads of each of *images*. It may refuse one, but must not crash over it."""
    (folder / "base.raw").write_bytes(BACKING)
    commands: list[str] = []
    for position, data in enumerate(images):
        path = folder / f"{position}.qcow2"
        path.write_bytes(data)
        commands += [f"open -r -o driver=qcow2 {path}"]
        commands += [f"read -v {offset} {CHUNK}" for offset in range(0, SIZE, CHUNK)]
        commands += ["close", "help close"]
    done = subprocess.run(
        ["qemu-io"],
        input="\n".join([*commands, "quit"]),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode >= 0, f"qemu-io died of signal {-done.returncode}: {done.stderr[-500:]}"
    blocks = done.stdout.split("close -- close the current open file\n")[:-1]
    return [_parse(block) for block in blocks]


def _parse(block: str) -> Reading:
    if "read " not in block:
        return None
    chunks: list[bytes | None] = []
    digits: list[str] = []
    for line in block.replace("qemu-io> ", "").splitlines():
        if line.startswith("read failed"):
            chunks.append(None)
        elif line.startswith("read "):
            chunks.append(bytes.fromhex("".join(digits)))
            digits = []
        elif line[8:9] == ":":
            digits.append(line[11:58])
    return tuple(chunks)
