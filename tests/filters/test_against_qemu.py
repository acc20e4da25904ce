"""The filters ``copy-on-read``, ``compress`` and ``preallocate`` beside the real qemu-io and qemu-img.

The same command line in two copies of one folder: what is said, how it ends, and what the images hold afterwards.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from blockio.backend import BlockBackend
from blockio.cli.img import main as img_main
from blockio.cli.io import main as io_main
from blockio.driver.options import parse_image_opts
from tests.support.qemu import QemuIo, assert_clean, qemu_img, qemu_img_json, qemu_io, without_timing

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


class Said(NamedTuple):
    """What a call of a tool showed."""

    status: int
    out: str
    err: str


BASE = "driver=qcow2,node-name=base,file.filename=base.qcow2"
MID = "driver=qcow2,node-name=mid,file.filename=mid.qcow2"
TOP = "file.driver=qcow2,file.node-name=top,file.file.filename=top.qcow2"


def under(prefix: str, options: str) -> str:
    """*options* of a child called *prefix*."""
    return ",".join(f"{prefix}.{option}" for option in options.split(","))


CHAIN = f"{TOP},{under('file.backing', MID)},{under('file.backing.backing', BASE)}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chain of three images, each with data of its own, a raw disk and an image of an odd length."""
    folder = tmp_path_factory.mktemp("images")
    qemu_img("create", "-q", "-f", "qcow2", "base.qcow2", "1M", cwd=folder)
    qemu_io(folder / "base.qcow2", "write -P 1 0 512k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "mid.qcow2", cwd=folder)
    qemu_io(folder / "mid.qcow2", "write -P 2 128k 128k", "write -z 256k 64k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "mid.qcow2", "-F", "qcow2", "top.qcow2", "2M", cwd=folder)
    qemu_io(folder / "top.qcow2", "write -P 3 192k 64k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "alone.qcow2", "1M", cwd=folder)
    qemu_img("create", "-q", "-f", "qcow2", "odd.qcow2", "100k", cwd=folder)
    (folder / "disk.raw").write_bytes(b"r" * 65536)
    return folder


def both(images: Path, scratch: Path, capfd: pytest.CaptureFixture[str], words: list[str]) -> tuple[Said, Said]:
    """*words* through ours in ``scratch/a`` and through theirs in ``scratch/b``."""
    ours, theirs = scratch / "a", scratch / "b"
    for folder in (ours, theirs):
        if not folder.exists():
            shutil.copytree(images, folder)
    before = Path.cwd()
    os.chdir(ours)
    try:
        capfd.readouterr()
        status = {"qemu-io": io_main, "qemu-img": img_main}[words[0]](tuple(words[1:]), words[0])
        shown = capfd.readouterr()
    finally:
        os.chdir(before)
    done = subprocess.run(
        words, cwd=theirs, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
    )
    return (
        Said(status, without_timing(shown.out), shown.err),
        Said(done.returncode, without_timing(done.stdout), done.stderr),
    )


def io_words(options: str, *commands: str) -> list[str]:
    """``qemu-io -c … --image-opts OPTIONS``."""
    words = ["qemu-io", "-d", "unmap"]
    for command in commands:
        words += ["-c", command]
    return [*words, "--image-opts", options]


READS = ("read -P 1 64k 4k", "read -P 2 130k 1k", "read -P 3 200k 300", "read -P 0 300k 4k", "read -P 0 900k 8k")

CASES = {
    "cor": (f"driver=copy-on-read,{CHAIN}", *READS, "read -P 1 0 64k", "read -P 0 1500k 8k", "map"),
    "cor to the middle": (f"driver=copy-on-read,bottom=mid,{CHAIN}", *READS, "read -P 1 0 512", "map"),
    "cor to the end": (f"driver=copy-on-read,bottom=base,{CHAIN}", *READS, "read -P 1 0 512", "map"),
    "cor, one read over everything": (f"driver=copy-on-read,bottom=mid,{CHAIN}", "read 0 1M", "map"),
    "cor and writes": (
        f"driver=copy-on-read,{CHAIN}",
        "read 64k 1k",
        "write -P 9 70k 3k",
        "write -z 128k 64k",
        "discard 192k 64k",
        "flush",
        "map",
    ),
    "cor under raw": (f"driver=raw,file.driver=copy-on-read,{under('file', CHAIN)}", "read 0 128k", "map"),
    "cor over a throttle-less filter": (
        f"driver=copy-on-read,file.driver=copy-on-read,{under('file', CHAIN)}",
        "read 0 64k",
        "map",
    ),
    "cor, no bottom": (f"driver=copy-on-read,bottom=nope,{CHAIN}", "map"),
    "cor, a filter as bottom": (
        f"driver=copy-on-read,bottom=f,file.driver=copy-on-read,file.node-name=f,{under('file', CHAIN)}",
        "map",
    ),
    "cor, read-only": (f"driver=copy-on-read,read-only=on,{CHAIN}", "map"),
    "cor, unknown option": (f"driver=copy-on-read,top=mid,{CHAIN}", "map"),
    "cor, no file": ("driver=copy-on-read,bottom=mid", "map"),
    "compress raw": ("driver=compress,file.driver=raw,file.file.filename=disk.raw", "map"),
    "compress file": ("driver=compress,file.driver=file,file.filename=disk.raw", "map"),
    "compress null": ("driver=compress,file.driver=null-co", "map"),
    "compress nothing": ("driver=compress", "map"),
    "preallocate, bad align": ("driver=preallocate,prealloc-align=1000,file.filename=disk.raw", "length"),
    "preallocate, bad size": ("driver=preallocate,prealloc-size=x,file.filename=disk.raw", "length"),
    "preallocate": (
        "driver=qcow2,file.driver=preallocate,file.prealloc-size=1M,file.file.filename=alone.qcow2",
        "write -P 7 0 64k",
        "write -P 8 300k 100",
        "write -z 512k 64k",
        "discard 0 64k",
        "flush",
        "truncate 3M",
        "write -P 7 2M 64k",
        "map",
    ),
    "preallocate alone": (
        "driver=preallocate,prealloc-size=128k,prealloc-align=64k,file.filename=disk.raw",
        "read -P 114 0 64k",
        "write -P 1 60k 4k",
        "write -P 1 64k 1k",
        "truncate 100k",
        "length",
        "write -P 2 70k 20k",
        "truncate -m falloc 150k",
        "truncate -m full 180k",
        "write -z 120k 10k",
        "length",
        "truncate 130k",
        "read -P 2 70k 20k",
        "read -P 0 120k 10k",
    ),
    "preallocate, reopened read-only": (
        "driver=preallocate,prealloc-size=128k,file.filename=disk.raw",
        "truncate 100k",
        "write -P 2 70k 20k",
        "reopen -r",
        "length",
        "read -P 2 70k 20k",
        "reopen -w",
        "write -P 3 70k 20k",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_is_said_and_done(name: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options, *commands = CASES[name]
    ours, theirs = both(images, tmp_path, capfd, io_words(options, *commands))
    assert ours == theirs
    for path in sorted(images.iterdir()):
        mine, other = tmp_path / "a" / path.name, tmp_path / "b" / path.name
        if path.suffix == ".qcow2":
            assert_clean(mine)
            qemu_img("compare", "-f", "qcow2", "-F", "qcow2", mine, other)
            assert qemu_img_json("map", "-f", "qcow2", mine) == qemu_img_json("map", "-f", "qcow2", other)
        else:
            assert mine.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    "options",
    [f"driver=copy-on-read,{CHAIN}", f"driver=copy-on-read,bottom=mid,{CHAIN}", "driver=compress,file.driver=null-co"],
)
def test_the_image_tool_says_the_same(
    options: str, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = both(images, tmp_path, capfd, ["qemu-img", "info", "--image-opts", options])
    assert ours == theirs


async def test_the_room_ahead_is_there_while_the_disk_is_open(tmp_path: Path) -> None:
    """After each write the file is as long as theirs."""
    writes = ((0, 65536), (1 << 20, 65536), (3 << 20, 65536), (9 << 20, 65536))
    mine, other = tmp_path / "mine.qcow2", tmp_path / "other.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", other, "10M")
    shutil.copy(other, mine)
    spec = "driver=qcow2,file.driver=preallocate,file.prealloc-size=100k,file.prealloc-align=64k,file.file.driver=file"
    theirs = await asyncio.to_thread(_lengths, other, spec, writes)
    lengths = []
    options = parse_image_opts(f"{spec},file.file.filename={mine}")
    async with await BlockBackend.new_open(options=options) as blk:
        for offset, nbytes in writes:
            await blk.co_pwritev(offset, b"x" * nbytes)
            lengths.append(mine.stat().st_size)
    assert lengths == theirs
    assert mine.stat().st_size == other.stat().st_size
    assert_clean(mine)


def _lengths(path: Path, spec: str, writes: tuple[tuple[int, int], ...]) -> list[int]:
    lengths = []
    with QemuIo(path, options=("--image-opts",), spec=f"{spec},file.file.filename={path}") as tool:
        for offset, nbytes in writes:
            assert "wrote" in tool.command(f"write {offset} {nbytes}")
            lengths.append(path.stat().st_size)
    return lengths
