"""By what bytes other programs know files: for telling what a stranger's image may be taken for.

This decides nothing about how an image is opened; ``driver.probe`` does that, with the drivers that there are.
"""

from __future__ import annotations

from typing import Final

__all__ = ["IMAGE_FORMATS", "NAMED_FOR", "TAIL_BYTES", "marks"]

TAIL_BYTES: Final = 512
"""How much of a file's end some formats keep a mark in."""

_QCOW: Final = b"QFI\xfb"
_AT: Final = (
    (0, b"LUKS\xba\xbe", "luks"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (0, b"Bochs Virtual HD Image", "bochs"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
    (0, b"PK\x03\x04", "zip"),
    (257, b"ustar", "tar"),
)
_AT_END: Final = ((b"conectix", "vpc"), (b"koly", "dmg"))

IMAGE_FORMATS: Final = frozenset(
    ("bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qcow2", "qed", "raw", "vdi", "vhdx", "vmdk", "vpc")
)
"""Those of the marks, and ``raw``, that say how a disk is stored; the others are of archives."""

NAMED_FOR: Final = {
    "qcow2": "qcow2",
    "qcow": "qcow2",
    "raw": "raw",
    "luks": "luks",
    "qed": "qed",
    "vmdk": "vmdk",
    "vhdx": "vhdx",
    "vhd": "vpc",
    "vpc": "vpc",
    "vdi": "vdi",
    "hds": "parallels",
    "dmg": "dmg",
    "iso": "raw",
}
"""Which format the end of a file's name promises. ``.img`` promises none."""


def marks(head: bytes, tail: bytes) -> tuple[str, ...]:
    """The formats whose marks a file bears that begins with *head* and ends with *tail* (``TAIL_BYTES``), sorted."""
    found = {name for offset, mark, name in _AT if head.startswith(mark, offset)}
    if head.startswith(_QCOW):
        found.add("qcow2" if int.from_bytes(head[4:8], "big") >= 2 else "qcow")
    found.update(name for mark, name in _AT_END if tail.startswith(mark))
    return tuple(sorted(found))
