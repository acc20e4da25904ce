"""The request path's own memory: bounce buffers for whole blocks, and zeroes to write."""

from __future__ import annotations

from functools import cache
from typing import Final

from blockio.buffers import IoVector, aligned_buffer

__all__ = ["block_memory", "zero_vector"]

_ZERO_BYTES: Final = 1 << 20


def block_memory(nbytes: int, alignment: int) -> memoryview:
    """*nbytes* of zeroed memory, fit for a node whose requests or memory are aligned to *alignment* bytes."""
    # Whoever asks for alignment serves O_DIRECT, which wants pages; the others need no mmap.
    return memoryview(bytearray(nbytes)) if alignment <= 1 else aligned_buffer(nbytes)


@cache
def _zeroes() -> memoryview:
    # Anonymous memory that nobody writes is the kernel's one zero page over and over: it costs no memory.
    return aligned_buffer(_ZERO_BYTES).toreadonly()


def zero_vector(nbytes: int) -> IoVector:
    """*nbytes* zero bytes to write from; all such vectors share the same memory, at most 1 MiB of it."""
    zeroes = _zeroes()
    views = [zeroes] * (nbytes // _ZERO_BYTES)
    if nbytes % _ZERO_BYTES:
        views.append(zeroes[: nbytes % _ZERO_BYTES])
    return IoVector(views, nbytes)
