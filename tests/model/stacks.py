"""What the state machine runs on: an image, how it is opened, and what it reads as at first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.qemu import qemu_img

__all__ = ["LENGTH", "STACKS", "Stack"]

LENGTH = 300 * 1024
"""Not a multiple of a 64 KiB cluster: the last one is cut short."""


@dataclass(frozen=True, slots=True)
class Stack:
    """``make(folder, aio)`` provides a new image: its options, and the bytes it reads as."""

    name: str
    make: Callable[[Path, str], tuple[dict[str, Any], bytes]]
    format: str
    peers: bool = True
    """Whether ``make`` calls qemu-img."""


def _file(path: Path, aio: str) -> dict[str, Any]:
    return {"driver": "file", "filename": str(path), "aio": aio}


def _raw(folder: Path, aio: str) -> tuple[dict[str, Any], bytes]:
    path = folder / "disk.raw"
    content = bytes(range(256)) * 16 + bytes(LENGTH - 4096)
    path.write_bytes(content)
    return {"driver": "raw", "file": _file(path, aio)}, content


def _raw_window(folder: Path, aio: str) -> tuple[dict[str, Any], bytes]:
    options, _ = _raw(folder, aio)
    path = folder / "disk.raw"
    return {**options, "offset": 1024, "size": LENGTH - 4096}, path.read_bytes()[1024 : 1024 + LENGTH - 4096]


def _qcow2(create: str, length: int = LENGTH) -> Callable[[Path, str], tuple[dict[str, Any], bytes]]:
    def make(folder: Path, aio: str) -> tuple[dict[str, Any], bytes]:
        path = folder / "disk.qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", create, path, str(length))
        return {"driver": "qcow2", "file": _file(path, aio)}, bytes(length)

    return make


def _overlay(create: str, below: int, base_format: str = "raw") -> Callable[[Path, str], tuple[dict[str, Any], bytes]]:
    """Over a base of *below* bytes, which may be shorter or longer than the overlay."""

    def make(folder: Path, aio: str) -> tuple[dict[str, Any], bytes]:
        raw, base, path = folder / "base.raw", folder / "base", folder / "disk.qcow2"
        content = bytes(1 + at // 512 % 255 for at in range(below))
        raw.write_bytes(content)
        qemu_img("convert", "-q", "-f", "raw", "-O", base_format, raw, base)
        qemu_img("create", "-q", "-f", "qcow2", "-o", create, "-b", base, "-F", base_format, path, str(LENGTH))
        backing = {"driver": base_format, "file": _file(base, aio), "read-only": True}
        return (
            {"driver": "qcow2", "file": _file(path, aio), "backing": backing},
            content[:LENGTH].ljust(LENGTH, b"\0"),
        )

    return make


STACKS = (
    Stack("raw", _raw, "raw", peers=False),
    Stack("raw-window", _raw_window, "raw", peers=False),
    Stack("qcow2", _qcow2("cluster_size=64k"), "qcow2"),
    Stack("qcow2-512", _qcow2("cluster_size=512"), "qcow2"),
    Stack("qcow2-2M", _qcow2("cluster_size=2M"), "qcow2"),
    Stack("qcow2-v2", _qcow2("compat=0.10,cluster_size=4k"), "qcow2"),
    Stack("qcow2-lazy", _qcow2("lazy_refcounts=on,cluster_size=4k"), "qcow2"),
    Stack("qcow2-1bit", _qcow2("refcount_bits=1,cluster_size=4k"), "qcow2"),
    Stack("qcow2-64bit", _qcow2("refcount_bits=64,cluster_size=1k"), "qcow2"),
    Stack("overlay-short", _overlay("cluster_size=4k", 100_000 - 100_000 % 512), "qcow2"),
    Stack("overlay-long", _overlay("cluster_size=64k", LENGTH + 51200), "qcow2"),
    Stack("overlay-qcow2", _overlay("cluster_size=512", LENGTH, "qcow2"), "qcow2"),
    Stack("overlay-v2", _overlay("compat=0.10", LENGTH // 2), "qcow2"),
)
