"""One image, written in turns by QEMU and by us: cluster size x refcount width and version x backing x preallocation.

Whoever makes it, the other writes first; then both check it and read every byte of it.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import pytest

import blockio
from blockio.driver.gate import AllowAll
from blockio.graph.create import create_image
from blockio.io import NodeIO
from blockio.types import OpenFlags, RequestFlags
from tests.support.explore import exploring
from tests.support.qemu import assert_clean, qemu_img, qemu_io

KIB = 1 << 10
SIZE = 3 * 128 * KIB + 512
GROWN = SIZE + 200 * KIB

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

CLUSTERS = (512, 4096, 65536, 2 << 20)
EXTENDED = (16384, 65536, 2 << 20)
WIDTHS = ("v2", "1", "2", "4", "8", "16", "32", "64")
BELOW = ("raw", "shorter raw", "longer raw", "shorter qcow2", "longer qcow2", "three deep")
FORMS = ("off", "metadata", "falloc", "full", *BELOW)
MAKERS = ("qemu", "blockio")


def matrix() -> list[tuple[int, str, str, str]]:
    """All pairs of two, by an eighth of all: each costs five processes of QEMU. ``make explore`` runs all."""
    return [
        (CLUSTERS[c], WIDTHS[w], FORMS[f], MAKERS[m])
        for c, w, f, m in product(*(range(len(axis)) for axis in (CLUSTERS, WIDTHS, FORMS, MAKERS)))
        if exploring() or (3 * c + w + f + 4 * m) % 8 == 0
    ]


def extended_matrix() -> list[tuple[int, str, str, str]]:
    """The same with subclusters, where a backing file and preallocation also go together."""
    forms = (*FORMS, *(f"{form}, {mode}" for form in BELOW[:3] for mode in FORMS[1:4]))
    return [
        (EXTENDED[c], "16,extended_l2=on", forms[f], MAKERS[m])
        for c, f, m in product(*(range(len(axis)) for axis in (EXTENDED, forms, MAKERS)))
        if exploring() or (c + f + m) % 3 == 0
    ]


class Shared:
    """An image and what it must read as."""

    def __init__(self, path: Path, content: bytes, rnd: random.Random) -> None:
        self.path = path
        self.content = bytearray(content)
        self.rnd = rnd

    def _place(self) -> tuple[int, int]:
        offset = self.rnd.randrange(len(self.content) // 512) * 512
        return offset, min(self.rnd.randrange(1, 120) * 512, len(self.content) - offset)

    def qemu_writes(self) -> None:
        """Writes and zeroes of QEMU's, with and without unmapping; it verifies what it finds."""
        commands = []
        for command in ("write -P {}", "write -z", "write -z -u", "write -P {}", "write -P {}"):
            offset, nbytes = self._place()
            byte = self.rnd.randrange(1, 256) if "P" in command else 0
            commands.append(f"{command.format(byte)} {offset} {nbytes}")
            self.content[offset : offset + nbytes] = bytes([byte]) * nbytes
        qemu_io(self.path, *commands, format="qcow2")

    async def we_write(self, *, grow: bool) -> None:
        """The same of ours; the disk becomes longer too."""
        async with blockio.open(
            str(self.path), format="qcow2", gate=AllowAll(), resize=True, flags=OpenFlags(unmap=True)
        ) as blk:
            await self._compare(blk)
            for zero in (None, None, 0, RequestFlags.MAY_UNMAP, None):
                offset, nbytes = self._place()
                data = self.rnd.randbytes(nbytes) if zero is None else bytes(nbytes)
                if zero is None:
                    await blk.co_pwritev(offset, data)
                else:
                    await blk.co_pwrite_zeroes(offset, nbytes, zero)
                self.content[offset : offset + nbytes] = data
            if grow:
                await blk.co_truncate(GROWN, exact=True)
                self.content.extend(bytes(GROWN - len(self.content)))
            await blk.co_pwritev(len(self.content) - 1024, b"end!" * 256)
            self.content[-1024:] = b"end!" * 256
            await self._compare(blk)

    async def _compare(self, blk: blockio.BlockBackend) -> None:
        found = bytearray(len(self.content))
        await blk.co_preadv(0, found)
        assert found == self.content

    def qemu_agrees(self) -> None:
        """QEMU finds the image clean and reads the same bytes."""
        assert_clean(self.path)
        raw = self.path.with_suffix(".flat")
        qemu_img("convert", "-f", "qcow2", "-O", "raw", self.path, raw)
        assert raw.read_bytes() == self.content


def below(folder: Path, form: str, rnd: random.Random) -> tuple[str, bytes]:
    """Options that name a new backing file of that *form*, and what shows of it."""
    if form not in BELOW:
        return "", b""
    words = form.split()
    first, last = words[0], words[-1]
    length = {"shorter": SIZE // 3 // 512 * 512, "longer": 2 * SIZE}.get(first, SIZE)
    content = rnd.randbytes(length)
    (folder / "base.raw").write_bytes(content)
    name, kind = "base.raw", "raw"
    for level in range({"raw": 0, "qcow2": 1, "deep": 3}[last]):
        # Each a little shorter than the one below; what it cuts off must not show above.
        length -= 3 * 512 * bool(level)
        content = content[:length]
        options = f"backing_file={name},backing_fmt={kind},cluster_size={(4096, 65536, 512)[level]}"
        name, kind = f"level{level}.qcow2", "qcow2"
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, folder / name, str(length), cwd=folder)
        at = 512 * (7 + 40 * level)
        qemu_io(folder / name, f"write -P {0x60 + level} {at} 9k", format="qcow2")
        content = content[:at] + bytes([0x60 + level]) * 9 * KIB + content[at + 9 * KIB :]
    return f",backing_file={name},backing_fmt={kind}", content


@pytest.mark.parametrize(("cluster", "width", "form", "maker"), matrix() + extended_matrix())
async def test_taking_turns(cluster: int, width: str, form: str, maker: str, tmp_path: Path) -> None:
    rnd = random.Random(f"{cluster} {width} {form}")
    path = tmp_path / "shared.qcow2"
    form, _, mode = form.partition(", ")
    backing, content = below(tmp_path, form, rnd)
    options = f"cluster_size={cluster}" + (",compat=0.10" if width == "v2" else f",refcount_bits={width}")
    options += backing or f",preallocation={form}"
    options += f",preallocation={mode}" if mode else ""
    image = Shared(path, content[:SIZE].ljust(SIZE, b"\0"), rnd)
    grow = width != "v2" or not form.startswith("longer")  # version 2 cannot hide what lies below
    if maker == "qemu":
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE), cwd=tmp_path)
        await image.we_write(grow=grow)
        image.qemu_writes()
    else:
        made = dict(word.split("=") for word in options.split(","))
        await create_image("qcow2", str(path), {"size": SIZE, **made}, path_factory=NodeIO)
        image.qemu_writes()
        await image.we_write(grow=grow)
    image.qemu_agrees()
    async with blockio.open(str(path), format="qcow2", read_only=True, gate=AllowAll()) as blk:
        await image._compare(blk)
