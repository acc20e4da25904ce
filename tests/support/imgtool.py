"""The real qemu-img and ours, side by side on equal folders."""

from __future__ import annotations

import filecmp
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from blockio.cli.img import main
from tests.support.qemu import CHANCE, CHANCES, qemu_img

__all__ = ["PASSPHRASE", "Outcome", "Said", "capture", "contents", "ours", "run_both"]


PASSPHRASE: Final = "passphrase"
"""What opens the encrypted images of all tests that compare folders."""


class Said(NamedTuple):
    """What one call of a tool told its caller."""

    status: int
    out: str
    err: str


class Outcome(NamedTuple):
    """What a script of calls told and left behind."""

    said: list[Said]
    files: dict[str, str]


def capture(argv: list[str], folder: Path, capsys_dir: Path, prog: str = "qemu-img") -> Said:
    """Run our tool in this process, in *folder*; descriptors 1 and 2 go to files in *capsys_dir*."""
    paths = [capsys_dir / "stdout", capsys_dir / "stderr"]
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    here = os.getcwd()
    try:
        for fd, path in zip((1, 2), paths, strict=True):
            with path.open("wb") as file:
                os.dup2(file.fileno(), fd)
        os.chdir(folder)
        status = main(argv, prog)
    finally:
        os.chdir(here)
        for fd, old in zip((1, 2), kept, strict=True):
            os.dup2(old, fd)
            os.close(old)
    out, err = (_text(path.read_bytes()) for path in paths)
    return Said(status, out, err)


def ours(line: str, folder: Path, aside: Path) -> Said:
    """One *line*, as a shell splits it, through our tool."""
    return capture(shlex.split(line), folder, aside)


def _theirs(line: str, folder: Path) -> Said:
    for _ in range(CHANCES):
        # Not as text: that would turn carriage returns into line feeds.
        done = subprocess.run(
            ["qemu-img", *shlex.split(line)], cwd=folder, capture_output=True, stdin=subprocess.DEVNULL, check=False
        )
        if CHANCE.encode() not in done.stderr:
            break
    return Said(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def contents(folder: Path, *known: tuple[Path, str]) -> dict[str, str]:
    """Every file in *folder*, and what is in it: a raw file's bytes, a qcow2 image's description, health and disk.

    *known*: folders, each with what is to be said of a file that is there byte for byte.
    """
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = path.relative_to(folder)
            said = (what for other, what in known if _same(path, other / name))
            found[str(name)] = next(said, "") or _content(path)
    return found


def _same(one: Path, other: Path) -> bool:
    return other.exists() and filecmp.cmp(one, other, shallow=False)


def _content(path: Path) -> str:
    with path.open("rb") as file:
        if file.read(4) != b"QFI\xfb":
            file.seek(0)
            return f"{path.stat().st_size} bytes {hashlib.file_digest(file, 'sha256').hexdigest()}"
    described = qemu_img("info", "-U", "--output=json", "-f", "qcow2", path.name, check=False, cwd=path.parent)
    facts = json.loads(described.stdout) if described.returncode == 0 else {}
    facts.pop("actual-size", None)
    named = _named(path, facts)
    for snapshot in facts.get("snapshots", ()):
        del snapshot["date-sec"], snapshot["date-nsec"]
    health = qemu_img("check", "-U", *named, check=False, cwd=path.parent)
    return f"{json.dumps(facts, sort_keys=True)} check {health.returncode} {_layers(path, named)} {_disk(path, named)}"


def _named(path: Path, facts: dict[str, Any]) -> list[str]:
    """How the tools are told to open the image; what of its encryption is random or measured leaves *facts*."""
    encrypt = facts.get("format-specific", {}).get("data", {}).get("encrypt")
    if encrypt is None:
        return ["-f", "qcow2", path.name]
    encrypt.pop("uuid", None)
    encrypt.pop("master-key-iters", None)
    for slot in encrypt.get("slots", ()):
        slot.pop("iters", None)
    spec = f"driver=qcow2,file.filename={path.name},encrypt.key-secret=s"
    return ["--object", f"secret,id=s,data={PASSPHRASE}", "--image-opts", spec]


def _layers(path: Path, named: list[str]) -> list[tuple[int, int, bool, bool]]:
    """Runs of (length, depth, present, data): which clusters there are, not where."""
    mapped = qemu_img("map", "-U", "--output=json", *named, check=False, cwd=path.parent)
    runs: list[tuple[int, int, bool, bool]] = []
    for entry in json.loads(mapped.stdout) if mapped.returncode == 0 else []:
        kind = (entry["depth"], entry["present"], entry["data"])
        if runs and runs[-1][1:] == kind:
            runs[-1] = (runs[-1][0] + entry["length"], *kind)
        else:
            runs.append((entry["length"], *kind))
    return runs


def _disk(path: Path, named: list[str]) -> str:
    """A digest of what a guest sees, whatever its size: of all data, as they are read."""
    with tempfile.TemporaryDirectory() as folder:
        done = qemu_img("convert", "-U", *named, f"{folder}/disk", check=False, cwd=path.parent)
        if done.returncode != 0:
            return "cannot be read"
        with open(f"{folder}/disk", "rb") as file:
            if os.fstat(file.fileno()).st_size > 64 << 20:
                return "too long to look at"
            return hashlib.file_digest(file, "sha256").hexdigest()


def _copy(names: Iterable[str], template: Path, folder: Path) -> None:
    """Copy with holes and all: they are what ``map`` shows."""
    (folder / "sub").mkdir(parents=True)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (template / name).open("rb") as source, path.open("xb") as target:
            _copy_data(source.fileno(), target.fileno())
        shutil.copystat(template / name, path)


def _copy_data(source: int, target: int) -> None:
    size = os.fstat(source).st_size
    os.truncate(target, size)
    end = 0
    while end < size:
        try:
            at = os.lseek(source, end, os.SEEK_DATA)
        except OSError:  # nothing but a hole until the end
            return
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            at += os.copy_file_range(source, target, end - at, at, at)


def run_both(script: list[str], names: Iterable[str], template: Path, scratch: Path) -> tuple[Outcome, Outcome]:
    """Run the lines of *script* through both tools, each beside its own copies of *names*: (theirs, ours).

    What both left byte for byte alike is not described: qemu-img would say the same of it.
    """
    left, right, aside = scratch / "theirs", scratch / "ours", scratch / "aside"
    names = list(names)
    for folder in (left, right):
        _copy(names, template, folder)
    aside.mkdir()
    theirs = [_theirs(line, left) for line in script]
    mine = [ours(line, right, aside) for line in script]
    as_it_was = (template, "as it was")
    return (
        Outcome(theirs, contents(left, as_it_was, (right, "the same in both"))),
        Outcome(mine, contents(right, as_it_was, (left, "the same in both"))),
    )
