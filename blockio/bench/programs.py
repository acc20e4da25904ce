"""Running other programs, and what they are."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

__all__ = ["BLOCKIO", "Finished", "bench_seconds", "have", "measured", "said", "versions", "warm"]

BLOCKIO: Final = str(Path(sys.executable).with_name("blockio"))
_COMPLETED: Final = re.compile(r"Run completed in ([\d.]+) seconds")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program took: seconds on the wall, and bytes of memory at its peak.

    Linux counts what the process held before it became the program, so the peak is never less than this process's own.
    """

    seconds: float
    peak: int


def have(program: str) -> bool:
    """Whether *program* is installed."""
    return shutil.which(program) is not None


def warm(path: Path) -> None:
    """Bring all of *path* into the page cache (again: the kernel may take back what it thinks nobody wants)."""
    memory = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(memory):
            pass


def measured(argv: Sequence[str]) -> Finished:
    """Run *argv* to its end. RuntimeError with what it said where it failed."""
    started = time.perf_counter()
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    try:
        with process.stderr:
            complaint = process.stderr.read()
    except BaseException:
        process.kill()
        process.wait()
        raise
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {process.returncode}: {complaint.decode(errors='replace').strip()}")
    return Finished(seconds, usage.ru_maxrss * 1024)


def said(argv: Sequence[str]) -> str:
    """What *argv* prints. RuntimeError with what it complained of where it failed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{argv[0]}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def bench_seconds(argv: Sequence[str]) -> float:
    """Run a program that times itself and prints ``Run completed in N seconds``, as ``qemu-img bench`` does."""
    text = said(argv)
    found = _COMPLETED.search(text)
    if found is None:
        raise RuntimeError(f"{argv[0]}: it did not say how long it took: {text.strip()}")
    return float(found[1])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def versions() -> list[str]:
    """Everything whose version decides over the figures."""
    known = [f"blockio {version('blockio')}", f"Python {platform.python_version()}"]
    known += [f"{name} {number}" for name in ("uvloop", "aiofiles") if (number := _version(name))]
    if have("qemu-img"):
        known.append(said(["qemu-img", "--version"]).splitlines()[0].replace("version ", ""))
    if have("fio"):
        known.append(said(["fio", "--version"]).strip())
    return [*known, f"Linux {platform.release()}", f"{os.cpu_count()} cores"]
