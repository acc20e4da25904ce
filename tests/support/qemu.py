"""QEMU's own tools, as oracles and as neighbours.

Tests that call anything here carry ``@pytest.mark.peer("qemu-img")`` (or ``"qemu-io"``). The calls block: a test
has its loop to itself.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

__all__ = [
    "CHANCE",
    "CHANCES",
    "QemuIo",
    "assert_clean",
    "blocks",
    "pattern",
    "qemu_img",
    "qemu_img_json",
    "qemu_io",
    "without_timing",
]

StrPath: TypeAlias = str | os.PathLike[str]
Result: TypeAlias = subprocess.CompletedProcess[str]
_ENV: Final = {**os.environ, "LC_ALL": "C"}
_TIMEOUT: Final = 120
# Making a LUKS header, qemu-img times its key derivation by the thread's CPU clock and gives up when that has not
# ticked meanwhile: chance, not an answer.
CHANCE: Final = "Unable to get accurate CPU usage"
CHANCES: Final = 20


def _run(*argv: StrPath, check: bool, input: str | None = None, cwd: StrPath | None = None) -> Result:
    for _ in range(CHANCES):
        done = subprocess.run(
            [os.fspath(word) for word in argv],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=_TIMEOUT,
            env=_ENV,
            cwd=cwd,
            check=False,
        )
        if CHANCE not in done.stderr:
            break
    if check:
        assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def qemu_img(*args: StrPath, check: bool = True, cwd: StrPath | None = None) -> Result:
    """``qemu-img ARGS``. With *check* a failure fails the test; without, the caller looks at ``returncode``."""
    return _run("qemu-img", *args, check=check, cwd=cwd)


def qemu_img_json(*args: StrPath) -> Any:
    """``qemu-img ARGS --output=json``, parsed."""
    return json.loads(qemu_img(*args, "--output=json").stdout)


def qemu_io(
    path: StrPath,
    *commands: str,
    format: str | None = None,
    options: tuple[str, ...] = (),
    check: bool = True,
    cwd: StrPath | None = None,
) -> Result:
    """``qemu-io [-f FORMAT] [OPTIONS] -c COMMAND … PATH``; *check* also refuses a failed pattern verification."""
    argv = ["qemu-io", *(["-f", format] if format else []), *options]
    for command in commands:
        argv += ["-c", command]
    return _run(*argv, path, check=check, cwd=cwd)


def assert_clean(path: StrPath, *, format: str = "qcow2") -> None:
    """``qemu-img check`` finds neither corruption nor leak in the image at *path*."""
    done = qemu_img("check", "-f", format, path, check=False)
    assert done.returncode == 0, f"qemu-img check {os.fspath(path)}: exit {done.returncode}\n{done.stdout}{done.stderr}"


def pattern(nbytes: int, seed: int = 1) -> bytes:
    """*nbytes* bytes that repeat nowhere within 64 KiB of themselves: a block in the wrong place shows."""
    step = bytes((seed + index * 7 + (index >> 8) * 13) & 0xFF for index in range(65521))
    return (step * (nbytes // len(step) + 1))[:nbytes]


def blocks(picture: str, unit: int = 64 * 1024) -> bytes:
    """The bytes of a disk drawn as a picture: ``A`` is a unit full of 0x41, ``0`` and ``-`` are units of zeroes."""
    return b"".join(bytes(unit) if letter in "0-" else letter.encode() * unit for letter in picture)


_CLOCK = re.compile(r"\d+:\d+:\d+\.\d+|\d+:\d+\.\d+|\d+\.\d+ sec")
_RATE = re.compile(r"\(\S+ (?:\S+)/sec and \S+ ops/sec\)")
_MACHINE = re.compile(r"^(\d+,\d+),[\d:.]+,[\d.]+,[\d.]+$", re.MULTILINE)


def without_timing(text: str) -> str:
    """*text* of qemu-io with what a clock decides replaced: times, rates and the figures of ``-C`` lines."""
    return _RATE.sub("(RATE)", _CLOCK.sub("TIME", _MACHINE.sub(r"\1,TIME,RATE,RATE", text)))


class QemuIo:
    """A ``qemu-io`` that stays, holding its image open (and locked) between commands.

    Entered, it has the image open: the first prompt has come. ``command`` waits for the next prompt.
    """

    PROMPT: Final = "qemu-io> "

    def __init__(
        self, path: StrPath, *, format: str | None = None, options: tuple[str, ...] = (), spec: str | None = None
    ) -> None:
        """With *spec*, which names the image, instead of *path* (``--image-opts`` is among the *options*)."""
        self._argv = ["qemu-io", *(["-f", format] if format else []), *options, spec or os.fspath(Path(path))]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_ENV
        )
        self._until_prompt()
        return self

    def _until_prompt(self) -> str:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        text = b""
        while not text.endswith(self.PROMPT.encode()):
            byte = os.read(self._process.stdout.fileno(), 1)
            if not byte:
                raise AssertionError(f"{self._argv} ended: {self._process.stderr.read().decode()}")
            text += byte
        return text[: -len(self.PROMPT)].decode()

    def command(self, line: str) -> str:
        """What *line* prints on standard output."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()
        return self._until_prompt()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        with self._process:  # closes the pipes: qemu-io sees the end of its input, closes the image and ends
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(_TIMEOUT)
