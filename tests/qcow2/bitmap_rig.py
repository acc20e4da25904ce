"""What the tests of persistent bitmaps share: an image on disk, QEMU's eye on its bitmaps, and drivers in memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from blockio.bitmaps.dirty import DirtyBitmap
from blockio.testing.memory import MemoryHost
from blockio_drivers.qcow2.bitmap_directory import decode_directory, encode_directory
from blockio_drivers.qcow2.header import Header

__all__ = ["bitmaps_of", "listed", "mark_in_use", "qemu_bits", "qemu_list"]


def mark_in_use(path: Path, name: str) -> None:
    """As if the bitmap's writer had died."""
    data = bytearray(path.read_bytes())
    header = Header.decode(bytes(data[:65536]))
    found = header.bitmaps
    assert found is not None
    area = slice(found.directory_offset, found.directory_offset + found.directory_size)
    entries = decode_directory(bytes(data[area]), found.nb_bitmaps, header.cluster_size, header.disk_size)
    data[area] = encode_directory([entry.marked() if entry.name == name else entry for entry in entries])
    path.write_bytes(data)


def bitmaps_of(host: MemoryHost) -> dict[str, tuple[int, bool, list[int]]]:
    """Name to (granularity, enabled, dirty granules) of the consistent bitmaps."""
    return {
        bitmap.name: (bitmap.granularity, bitmap.enabled, [at // bitmap.granularity for at in bitmap])
        for bitmap in host.dirty_bitmaps
        if bitmap.name is not None and not bitmap.inconsistent
    }


def listed(bitmap: DirtyBitmap) -> list[int]:
    """The dirty granules."""
    return [at // bitmap.granularity for at in bitmap]


def qemu_list(path: Path) -> list[tuple[str, int, list[str]]]:
    """(name, granularity, flags) of each bitmap that qemu-img lists."""
    done = subprocess.run(
        ["qemu-img", "info", "-U", "--output=json", "-f", "qcow2", path], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)["format-specific"]["data"].get("bitmaps", [])
    return [(item["name"], item["granularity"], item["flags"]) for item in found]


def qemu_bits(path: Path, name: str) -> list[tuple[int, int]]:
    """(offset, length) of the dirty areas of bitmap *name*, as an NBD client of QEMU sees them."""
    # A server ends with its first client, a little later: it shares the image, so that nobody meets its locks, and has
    # a socket of its own.
    shared = f"driver=qcow2,force-share=on,file.driver=file,file.filename={path}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        socket = f"{folder}/nbd"
        server = ["qemu-nbd", "-r", "--image-opts", "-B", name, "-k", socket, "-x", "disk", "--fork", shared]
        subprocess.run(server, stdin=subprocess.DEVNULL, check=True, timeout=60)
        options = (
            f"driver=nbd,export=disk,server.type=unix,server.path={socket},x-dirty-bitmap=qemu:dirty-bitmap:{name}"
        )
        command = ["qemu-img", "map", "--output=json", "--image-opts", options]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    # Dirty shows as a hole, clean as data.
    return [(item["start"], item["length"]) for item in json.loads(done.stdout) if not item["data"]]
