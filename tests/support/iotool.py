"""The real qemu-io and ours, side by side: the images they work on, and lines for both."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tests.support.qemu import qemu_img, qemu_io, without_timing

__all__ = ["Both", "Case", "Outcome", "call", "copy_images", "each", "make_images", "on", "outcome", "theirs"]


class Case(NamedTuple):
    """One call of the tool."""

    words: tuple[str, ...]
    id: str

    @property
    def commands(self) -> list[str]:
        """What ``-c`` gives."""
        return [word for flag, word in zip(self.words, self.words[1:], strict=False) if flag == "-c"]


class Outcome(NamedTuple):
    """All that a user can see of a call."""

    status: int
    out: str
    err: str
    files: dict[str, str]


Both: TypeAlias = Callable[[tuple[str, ...]], tuple[Outcome, Outcome]]


def on(image: str, *commands: str, options: str = "") -> Case:
    """The *commands* on *image*, whose format its name tells, with more *options*."""
    words = ["-f", image.partition(".")[2], *options.split()]
    for command in commands:
        words += ["-c", command]
    return Case((*words, image), f"{image} {options} {' | '.join(commands)}"[:90])


def call(*words: str) -> Case:
    """A call with just these *words*."""
    return Case(words, " ".join(words)[:90] or "nothing")


def each(image: str, *commands: str, options: str = "") -> list[Case]:
    """A case for each of *commands*."""
    return [on(image, command, options=options) for command in commands]


def make_images(folder: Path) -> None:
    """Fill *folder* with every image that the cases work on."""
    (folder / "folder").mkdir()
    (folder / "nothing").touch()
    (folder / "pattern").write_bytes(b"abc\n")
    (folder / "empty.raw").touch()
    (folder / "odd.raw").write_bytes(b"o" * 1000)
    raw = folder / "disk.raw"
    raw.write_bytes(b"A" * 65536 + bytes(range(256)) * 256)
    os.truncate(raw, 1 << 20)
    qemu_img("create", "-q", "-f", "qcow2", folder / "disk.qcow2", "1M")
    qemu_io(folder / "disk.qcow2", "write -P 65 0 128k", "write -P 66 256k 1", "write -z 512k 64k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "overlay.qcow2", "2M", cwd=folder)
    qemu_io(folder / "overlay.qcow2", "write -P 66 0 64k", format="qcow2")
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", "gone.qcow2", "-F", "qcow2", folder / "lonely.qcow2", "1M")
    (folder / "torn.qcow2").write_bytes((folder / "disk.qcow2").read_bytes()[:50])


def copy_images(words: tuple[str, ...], images: Path, folder: Path) -> None:
    """Put into the new *folder* what *words* speak of."""
    said = " ".join(words)
    folder.mkdir()
    for path in images.iterdir():
        if path.name in said or (path.name == "disk.qcow2" and "overlay.qcow2" in said):
            shutil.copytree(path, folder / path.name) if path.is_dir() else shutil.copy(path, folder)


_NODE_NAME = re.compile(r"#block\d+")


def outcome(folder: Path, status: int, out: str, err: str) -> Outcome:
    """What a call printed, without times and generated names, and the files it left in *folder*."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return Outcome(status, without_timing(out), _NODE_NAME.sub("#block", err), files)


def theirs(words: tuple[str, ...], folder: Path) -> Outcome:
    """The real tool's answer in *folder*."""
    done = subprocess.run(
        ["qemu-io", *words], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    return outcome(folder, done.returncode, done.stdout, done.stderr)
