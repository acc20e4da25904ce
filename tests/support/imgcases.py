"""What the differential tests of ``blockio img`` work on: a folder of images, and lines for both tools."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.support.qemu import qemu_img, qemu_io

__all__ = ["files_for", "make_template", "named", "scripts"]

# What an image stands on goes where the image goes.
STANDS_ON = {
    "ov.qcow2": ("a.qcow2",),
    "longer.qcow2": ("d.raw",),
    "loop.qcow2": ("loop2.qcow2",),
    "loop2.qcow2": ("loop.qcow2",),
    "sub/": ("sub/base.qcow2", "sub/top.qcow2"),
}


def files_for(script: list[str], template: Path) -> list[str]:
    """The files of the template that the lines of *script* speak of."""
    text = " ".join(script)
    names = {str(path.relative_to(template)) for path in template.rglob("*") if path.is_file()}
    wanted = {name for name in names if name in text} | {"text.raw"}
    for name, below in STANDS_ON.items():
        if name in text:
            wanted.update(below)
    return sorted(wanted)


def scripts(table: str) -> list[list[str]]:
    return [[part.strip() for part in line.split(" ; ")] for line in table.strip().splitlines()]


def named(script: list[str]) -> str:
    return " ; ".join(script)


def make_template(folder: Path) -> None:
    """Fill *folder* with what every case finds: small images of every kind the commands treat differently."""

    def create(*words: str) -> None:
        qemu_img("create", "-q", *words, cwd=folder)

    create("-f", "qcow2", "a.qcow2", "4M")
    qemu_io(folder / "a.qcow2", "write -P 1 0 256k", "write -z 1M 1M", "write -P 3 3M 64k", format="qcow2")
    create("-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "ov.qcow2")
    qemu_io(folder / "ov.qcow2", "write -P 4 256k 128k", "write -P 5 3500k 1k", format="qcow2")
    create("-f", "qcow2", "-b", "d.raw", "-F", "raw", "-u", "longer.qcow2", "2M")
    create("-f", "qcow2", "kept.qcow2", "4M")
    qemu_io(folder / "kept.qcow2", "write -P 1 0 256k", format="qcow2")
    for pattern, name in enumerate(("first", "twice", "twice", "1"), 6):
        qemu_img("snapshot", "-c", name, "kept.qcow2", cwd=folder)
        qemu_io(folder / "kept.qcow2", f"write -P {pattern} {pattern}00k 100k", format="qcow2")
    create("-f", "qcow2", "empty.qcow2", "4M")
    create("-f", "qcow2", "zero.qcow2", "0")
    create("-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "1M")
    create("-f", "qcow2", "-o", "lazy_refcounts=on,compression_type=zstd,refcount_bits=1", "v3.qcow2", "1M")
    create("-f", "qcow2", "-u", "-b", "nope.qcow2", "-F", "qcow2", "broken.qcow2", "1M")
    create("-f", "qcow2", "-o", "preallocation=metadata", "meta.qcow2", "1M")
    create("-f", "qcow2", "-o", "preallocation=falloc", "falloc.qcow2", "1M")
    create("-f", "qcow2", "-o", "cluster_size=4k", "small.qcow2", "1M")
    (folder / "d.raw").write_bytes(bytes(range(1, 256)) * 4096 + bytes(4096))
    (folder / "sparse.raw").write_bytes(b"x" * 4096)
    _extend(folder / "sparse.raw", 4 << 20)
    (folder / "odd.raw").write_bytes(b"odd" * 333 + b"!")
    (folder / "none.raw").write_bytes(b"")
    qemu_img("convert", "a.qcow2", "a.raw", cwd=folder)
    qemu_img("convert", "a.qcow2", "b.raw", cwd=folder)
    _poke(folder / "b.raw", 3_000_000, b"x")
    qemu_img("convert", "a.qcow2", "long.raw", cwd=folder)
    _extend(folder / "long.raw", 5 << 20)
    qemu_img("convert", "a.qcow2", "tail.raw", cwd=folder)
    _poke(folder / "tail.raw", 4_500_000, b"x")
    qemu_img("convert", "-c", "-O", "qcow2", "a.raw", "packed.qcow2", cwd=folder)
    (folder / "text.raw").write_bytes(b"just text\n" * 1000)
    (folder / "short.qcow2").write_bytes((folder / "a.qcow2").read_bytes()[:100])
    (folder / "cut.qcow2").write_bytes((folder / "a.qcow2").read_bytes()[:1000])
    _damage(folder)
    (folder / "sub").mkdir()
    create("-f", "qcow2", "sub/base.qcow2", "1M")
    create("-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "sub/top.qcow2")
    create("-f", "qcow2", "loop.qcow2", "1M")
    create("-f", "qcow2", "-b", "loop.qcow2", "-F", "qcow2", "loop2.qcow2")
    qemu_img("rebase", "-u", "-b", "loop2.qcow2", "-F", "qcow2", "loop.qcow2", cwd=folder)


def _extend(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def _poke(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _damage(folder: Path) -> None:
    """Images with a leak, with a corruption, and with both, all by wrong refcounts."""
    whole = (folder / "a.qcow2").read_bytes()
    (table,) = struct.unpack_from(">Q", whole, 48)
    (block,) = struct.unpack_from(">Q", whole, table)
    last = len(whole) // 65536 - 1

    def variant(name: str, changes: dict[int, int], more: int = 0) -> None:
        image = bytearray(whole + bytes(more * 65536))
        for cluster, refcount in changes.items():
            struct.pack_into(">H", image, block + 2 * cluster, refcount)
        (folder / name).write_bytes(image)

    variant("leak.qcow2", {last + 2: 1}, more=2)
    variant("corrupt.qcow2", {last: 0})
    variant("double.qcow2", {last: 2})
    variant("both.qcow2", {last - 1: 2, last: 0})
