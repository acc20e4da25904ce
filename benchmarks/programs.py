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
from importlib.metadata import version
from pathlib import Path
from typing import Final

__all__ = ["BLOCKIO", "Finished", "bench_seconds", "have", "measured", "versions", "warm"]

BLOCKIO: Final = str(Path(sys.executable).with_name("blockio"))
_COMPLETED: Final = re.compile(r"Run completed in ([\d.]+) seconds")


@dataclass(frozen=True, slots=True)
class Finished:
    """What a program took: seconds on the wall, and bytes of memory at its peak."""

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
    with process.stderr:
        said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {process.returncode}: {said.decode(errors='replace').strip()}")
    return Finished(seconds, usage.ru_maxrss * 1024)


def bench_seconds(argv: Sequence[str]) -> float:
    """Run a program that times itself and prints ``Run completed in N seconds``, as ``qemu-img bench`` does."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    found = _COMPLETED.search(done.stdout)
    if done.returncode or found is None:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {(done.stderr or done.stdout).strip()}")
    return float(found[1])


def versions() -> list[str]:
    """Everything whose version decides over the figures."""
    known = [f"blockio {version('blockio')}", f"Python {platform.python_version()}"]
    known += [f"{name} {version(name)}" for name in ("uvloop", "aiofiles")]
    if have("qemu-img"):
        said = subprocess.run(["qemu-img", "--version"], capture_output=True, text=True, check=False).stdout
        known.append(said.splitlines()[0].replace("version ", "") if said else "qemu-img ?")
    return [*known, f"Linux {platform.release()}", f"{os.cpu_count()} cores"]
