"""A process that converts, is killed at its first step, goes on, begins anew, is killed at its second step …

``python -m tests.support.killed FOLDER OPTIONS``: prints, for each step, how much had been done when it went on. Each
image is compared, checked and put away as ``before`` in the folder's parent. Steps are the system calls that change
files, as far as Python makes them, and the pieces that are written. Each run is a fork of one process that has loaded
everything, so that hundreds of them take seconds.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

from blockio import img
from blockio.img.copying import Copier
from tests.support.interrupting import interrupting

_STEPS: Final = ("open", "ftruncate", "pwrite", "fdatasync", "fsync", "rename", "unlink")


def _killing(nth: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What makes a function count, and be the last one when the count has reached *nth*."""
    count = itertools.count(1)

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if next(count) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    return wrapped


def _convert(folder: Path, options: dict[str, Any]) -> img.ConvertResult:
    """In small pieces, each of which waits for the journal to keep up: a step is the same in each run."""
    with interrupting(lambda: None, after=0) as steps:
        return asyncio.run(
            img.convert(str(folder / "source.raw"), str(folder / "new"), resume=True, limit=steps, workers=2, **options)
        )


def _killed(folder: Path, options: dict[str, Any], nth: int) -> bool:
    """Whether there were *nth* steps."""
    child = os.fork()
    if not child:
        kill = _killing(nth)
        for name in _STEPS:
            mock.patch.object(os, name, kill(getattr(os, name))).start()
        mock.patch.object(Copier, "_write", kill(Copier._write)).start()
        _convert(folder, options)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def main(folder: Path, options: dict[str, Any]) -> None:
    """See the module."""
    target = folder / "new"
    resumed: list[int] = []
    digests: set[str | None] = set()
    for nth in itertools.count(1):
        if not _killed(folder, options, nth):
            break
        result = _convert(folder, options)
        resumed.append(result.resumed)
        found = asyncio.run(img.compare(str(folder / "source.raw"), str(target)))
        assert found.identical, (nth, found)
        assert sorted(os.listdir(folder)) == ["new", "source.raw"], (nth, os.listdir(folder))
        if options["format"] != "raw":
            assert asyncio.run(img.check(str(target))).clean, nth
        digests.add(None if result.digest is None else result.digest.digest)
        target.rename(folder.parent / "before")
    assert len(digests) == 1
    print(json.dumps(resumed))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
