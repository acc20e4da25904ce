"""What the tests of persistent bitmaps share: an image on disk, QEMU's eye on its bitmaps, and drivers in memory."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

from blockio.bitmaps import DirtyBitmap
from blockio.testing.memory import MemoryHost

__all__ = ["bitmaps_of", "listed", "qemu_bits", "qemu_list"]


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
