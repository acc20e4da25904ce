"""Disks of the harness's own: made in its own folder, full of data, gone at the end."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import msgspec

from blockio.bench.load import run_loop
from blockio.bench.peers import Shared
from blockio.bench.stack import Stack
from blockio.driver.gate import AllowAll
from blockio.errors import OptionError
from blockio.img.converting import convert
from blockio.img.creating import create
from blockio.img.opening import Image
from blockio.objects import create_object

__all__ = ["MIB", "Scratch", "make_disk", "make_scratch"]

MIB: Final = 1 << 20
_SECRET: Final = "blockio-bench"


class Scratch(msgspec.Struct, frozen=True, kw_only=True):
    """What kind of disk is wanted."""

    format: str = "qcow2"
    size: int = 256 * MIB
    overlays: int = 0
    """How many empty qcow2 images stand above the one with the data."""
    compressed: bool = False
    encrypted: bool = False
    """As LUKS, whatever ``format`` says."""
    cache: str = "writeback"

    def __post_init__(self) -> None:
        """OptionError for what cannot be made."""
        if self.size <= 0:
            raise OptionError(f"Invalid size {self.size}")
        if self.overlays < 0:
            raise OptionError(f"Invalid number of overlays {self.overlays}")
        if self.compressed and (self.format != "qcow2" or self.encrypted):
            raise OptionError("Only qcow2 disks can be compressed here")
        if self.encrypted and self.overlays:
            raise OptionError("Overlays stand on disks that a file name opens; encrypted ones need a secret")

    @property
    def title(self) -> str:
        """``qcow2, compressed, 8 overlays``."""
        words = ["luks" if self.encrypted else self.format]
        words += ["compressed"] if self.compressed else []
        words += [f"{self.overlays} overlays"] if self.overlays else []
        words += ["O_DIRECT"] if self.cache == "none" else []
        return ", ".join(words)


def make_disk(path: Path, size: int, share: float) -> None:
    """A raw disk with runs of random bytes and of nothing, about *share* of it data. The same for the same size."""
    dice = random.Random(size)
    block = dice.randbytes(MIB)
    with path.open("wb") as disk:
        disk.truncate(size)
        for offset in range(0, size, MIB):
            if dice.random() < share:
                disk.seek(offset)
                # Never twice the same: no layer may find that it has seen this before.
                disk.write((offset.to_bytes(8, "big") + block[8:])[: size - offset])


def make_scratch(folder: Path, wanted: Scratch) -> tuple[Stack, Shared]:
    """The disk in *folder*, and the same for the peers: with a raw file of its bytes beside it. Blocks meanwhile.

    The secret of an encrypted one lives as long as the process, under a name of its own. Errors as those of
    ``img.create`` and ``img.convert``; a full file system is ENOSPC.
    """
    raw = folder / "disk.raw"
    make_disk(raw, wanted.size, 1.0)
    return run_loop(_make_image(folder, wanted, raw))


async def _make_image(folder: Path, wanted: Scratch, raw: Path) -> tuple[Stack, Shared]:
    image = Image(filename=str(raw), format="raw")
    words: tuple[str, ...] | None = ("-f", "raw", str(raw))
    if wanted.encrypted:
        image, words = await _encrypt(folder, image), None  # qemu-img bench takes no secrets
    elif wanted.format != "raw":
        path = folder / f"disk.{wanted.format}"
        await convert(image, str(path), wanted.format, compress=wanted.compressed)
        image, words = Image(filename=str(path), format=wanted.format), ("-f", wanted.format, str(path))
    for number in range(wanted.overlays):
        path = folder / f"overlay{number}.qcow2"
        await create(str(path), "qcow2", backing_file=image.filename, backing_format=image.format, gate=AllowAll())
        image, words = Image(filename=str(path), format="qcow2"), ("-f", "qcow2", str(path))
    image = msgspec.structs.replace(image, cache=wanted.cache, gate=AllowAll())
    shared = Shared(length=wanted.size, cache=wanted.cache, image=words, raw=str(raw), raw_length=wanted.size)
    return Stack(image=image), shared


async def _encrypt(folder: Path, source: Image) -> Image:
    path = folder / "disk.luks"
    secret = f"{_SECRET}-{folder.name.replace('.', '-')}"
    create_object({"qom-type": "secret", "id": secret, "data": "measured"})
    await convert(source, str(path), "luks", options={"key-secret": secret, "iter-time": 10})
    return Image(options={"driver": "luks", "key-secret": secret, "file": {"driver": "file", "filename": str(path)}})
