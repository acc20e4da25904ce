"""Counting what a process holds, to show that nothing was lost."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Census", "no_leaks"]


@dataclass(frozen=True, slots=True)
class Census:
    """The open descriptors (each with what it leads to) and the living threads of this process."""

    descriptors: frozenset[tuple[int, str]]
    threads: frozenset[str]

    @classmethod
    def take(cls) -> Census:
        """What there is now. A descriptor that closes while it is looked at is not counted."""
        descriptors = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                descriptors.add((int(name), os.readlink(f"/proc/self/fd/{name}")))
            except OSError:
                continue  # the listing's own descriptor
        return cls(
            frozenset(descriptors), frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate())
        )

    def __sub__(self, earlier: Census) -> Census:
        """What is here and was not *earlier*."""
        return Census(self.descriptors - earlier.descriptors, self.threads - earlier.threads)

    def __bool__(self) -> bool:
        return bool(self.descriptors or self.threads)

    def __str__(self) -> str:
        parts = [f"fd {number} -> {target}" for number, target in sorted(self.descriptors)]
        parts += [f"thread {name}" for name in sorted(self.threads)]
        return ", ".join(parts) or "nothing"


@contextmanager
def no_leaks() -> Iterator[None]:
    """Fail where the body leaves a descriptor or thread behind."""
    before = Census.take()
    yield
    left = Census.take() - before
    assert not left, f"left behind: {left}"
