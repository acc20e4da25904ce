"""The memory that callers bring along with their requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.buffers import IoVector

if TYPE_CHECKING:
    from blockio.buffers import BufferLike

__all__ = ["readable_vector", "writable_vector"]


def writable_vector(iov: BufferLike) -> IoVector:
    """The memory of a read. TypeError where it is not memory or may not be written to."""
    vector = IoVector.of(iov)
    for view in vector.views:
        if view.readonly:
            raise TypeError("a read needs writable memory (bytearray, memoryview of one, mmap)")
    return vector


def readable_vector(iov: BufferLike) -> IoVector:
    """The memory of a write. TypeError where it is not memory."""
    return IoVector.of(iov)
