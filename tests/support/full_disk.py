"""A file system that is soon full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

__all__ = ["enlarge", "small_file_system"]


@contextmanager
def small_file_system(where: Path, nbytes: int) -> Iterator[Path]:
    """A folder below *where* that takes *nbytes* and no more; skips the test where mounting is not allowed."""
    folder = where / "small"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={nbytes}", "none", folder], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def enlarge(folder: Path, nbytes: int) -> None:
    """Let the ``small_file_system`` at *folder* take *nbytes*: somebody made room."""
    subprocess.run(["mount", "-o", f"remount,size={nbytes}", folder], check=True)
