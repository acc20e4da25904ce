"""Another backing file below an overlay, whose disk stays what it is (the work of ``qemu-img rebase``).

Where the overlay holds nothing itself, what shows is the backing file's. So wherever the old chain and the new one
differ, the old content is written into the overlay. From then on the overlay is the same disk on either chain, and the
name in its header can change. **The written data is stable before the header changes, and that is one atomic step: a
crash, a failure or a cancellation at any moment leaves an image that names one of the two chains, and the same disk.**
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from blockio.backend.operation import Operation
from blockio.buffers import IoVector
from blockio.errors import BlockError, NoMedium, UnsupportedFeature
from blockio.graph.drain import drained
from blockio.graph.mutate import attach_child, detach_child, set_backing
from blockio.io.driver_calls import change_backing_file
from blockio.io.shield import shielded
from blockio.io.status import block_status_above, is_allocated, is_allocated_above
from blockio.io.workers import Workers
from blockio.types import Perm, RequestFlags, Role, StatusFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["CopyFailed", "rebase", "rename_backing"]

_CHUNK: Final = 2 << 20
_LONGEST: Final = 1 << 38
_SECTOR: Final = 512
_ZERO: Final = int(StatusFlags.ZERO)
_UNCHANGED: Final = int(RequestFlags.WRITE_UNCHANGED)
_WHERE: Final = ("error while reading from old backing file", "error while reading from new backing file")


class CopyFailed(BlockError):
    """The chains could not be compared, or what differs could not be written. The image names the old one."""


async def rebase(
    node: BlockNode,
    backing: BlockNode | None,
    name: str | None,
    format: str | None,
    *,
    pace: Callable[[int], Awaitable[object]] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Let *backing* be *node*'s backing file, in the graph and, as *name* of *format*, in the image; None: nothing.

    What the two chains hold may differ in content and length: the disk stays the same. *backing* may be one of the
    layers below *node*; then only what the layers between hold is looked at. *node* is drained meanwhile. *pace* is
    awaited with each number of bytes before they are read; *progress* is told how many bytes are done, and of how many.

    NoMedium; BlockError EINVAL for a name without a format; CopyFailed; UnsupportedFeature for a format whose images
    name no backing file, BlockError ENOSPC where the header has no room, and what ``attach_child`` raises. Failed or
    cancelled: see above, and the graph is as it was.
    """
    if node.driver is None:
        raise NoMedium
    if name and not format:
        raise _unchangeable(name, BlockError(errno=errno.EINVAL), format)
    if not node.driver.capabilities.backing:
        raise _unchangeable(name, UnsupportedFeature(), format)
    async with drained(node):
        if node.backing is not None or backing is not None:
            edge = attach_child(Operation("rebase"), node, "rebase", Role.DATA, Perm.WRITE_UNCHANGED)
            try:
                await _Copy(node, backing, edge, pace, progress).run()
                await edge.co_flush()
            finally:
                await detach_child(edge)
        # Cancelled in between, the image would name another chain than the graph has.
        await shielded(_switch(node, backing, name, format))


async def _switch(node: BlockNode, backing: BlockNode | None, name: str | None, format: str | None) -> None:
    edge = node.backing
    old = None if edge is None else edge.node
    if old is backing:
        await rename_backing(node, name, format)
        return
    was_named = edge is not None and edge.named_by_image
    if old is not None:
        old.ref()  # the graph changes first, for that can be undone
    try:
        await set_backing(node, backing)
        try:
            await rename_backing(node, name, format)
        except BaseException:
            await set_backing(node, old)
            if node.backing is not None:
                node.backing.named_by_image = was_named
            raise
        if node.backing is not None:
            node.backing.named_by_image = bool(name)
    finally:
        if old is not None:
            await old.unref()


async def rename_backing(node: BlockNode, name: str | None, format: str | None) -> None:
    """Let *node*'s image name another backing file, and trust that the disk stays the same; the graph does.

    NoMedium; BlockError EINVAL for a name without a format; UnsupportedFeature, ENOSPC as ``rebase``.
    """
    async with drained(node):
        try:
            await change_backing_file(node, name or None, format if name else None)
        except BlockError as error:
            raise _unchangeable(name, error, format) from error


def _unchangeable(name: str | None, error: BlockError, format: str | None) -> BlockError:
    """*error* in the words of the QEMU tools, which say of most errors only their number's text."""
    if error.errno == errno.ENOSPC:
        why = "No space left in the file header"
    elif error.errno == errno.EINVAL and name and not format:
        why = "backing format must be specified"
    else:
        why = os.strerror(error.errno or errno.EIO)
    kind = UnsupportedFeature if isinstance(error, UnsupportedFeature) else BlockError
    return kind(f"Could not change the backing file to '{name or ''}': {why}", error.errno)


class _Side:
    """The old chain or the new one, zeroes past its end; *node* None: nothing but zeroes."""

    def __init__(self, node: BlockNode | None, what: str) -> None:
        self._node = node
        self._what = what
        self.length = 0 if node is None else node.length

    async def zeroes(self, offset: int, nbytes: int) -> tuple[bool, int]:
        """Whether it is known that the first bytes from *offset* are zeroes, and for how many bytes that is so."""
        if self._node is None or offset >= self.length:
            return True, nbytes
        status = await block_status_above(self._node, None, offset, min(nbytes, self.length - offset))
        end = offset + status.length
        if end == self.length:
            end = -(-end // _SECTOR) * _SECTOR  # the rest of the last sector reads as zeroes
        return bool(status.flags & _ZERO), min(nbytes, end - offset)

    async def read(self, offset: int, memory: memoryview) -> None:
        """Fill *memory* from *offset*."""
        inside = max(0, min(memory.nbytes, self.length - offset))
        if inside < memory.nbytes:
            memory[inside:] = bytes(memory.nbytes - inside)
        if inside and self._node is not None:
            try:
                await self._node.path.co_preadv(offset, IoVector.of(memory[:inside]))
            except BlockError as error:
                raise CopyFailed(self._what, error.errno) from error


class _Copy:
    """The moving of the bytes: several pieces at a time, each with memory of its own."""

    def __init__(
        self,
        node: BlockNode,
        backing: BlockNode | None,
        edge: Edge,
        pace: Callable[[int], Awaitable[object]] | None,
        progress: Callable[[int, int], object] | None,
    ) -> None:
        self._node = node
        self._edge = edge
        below = None if node.backing is None else node.backing.node
        self._old, self._new = (_Side(side, what) for side, what in zip((below, backing), _WHERE, strict=True))
        self._below = below
        self._shared = backing if below is not None and backing in list(_layers(below)) else None
        self._pace = pace
        self._progress = progress
        self._free: list[bytearray] = []
        self._done = 0

    async def run(self) -> None:
        length = self._node.length
        unit = await self._unit()
        old_end = -(-self._old.length // _SECTOR) * _SECTOR
        self._advance(0)
        offset = 0
        async with Workers() as workers:
            while offset < length:
                same, nbytes = await self._same(offset, min(_LONGEST, length - offset))
                if same:
                    self._advance(nbytes)
                    offset += nbytes
                    continue
                # A piece ends where the next one is aligned, and where the old disk does: zeroes are written past that.
                end = min(offset + nbytes, (offset // _CHUNK + 1) * _CHUNK)
                if offset < old_end < end:
                    end = old_end
                if self._pace is not None:
                    await self._pace(end - offset)
                await workers.add(self._compare(offset, end - offset, unit))
                offset = end

    async def _unit(self) -> int:
        """How many bytes the overlay takes room for at a time."""
        try:
            info = await self._node.path.co_get_info()
        except UnsupportedFeature:
            return _SECTOR
        return max(info.subcluster_size, _SECTOR)

    async def _same(self, offset: int, nbytes: int) -> tuple[bool, int]:
        """Whether metadata tells that the disk's first bytes do not depend on the chain, and for how many bytes."""
        try:
            allocated, nbytes = await is_allocated(self._node, offset, nbytes)
            if allocated:
                return True, nbytes
            if self._shared is not None and offset < self._old.length:
                assert self._below is not None
                depth, found = await is_allocated_above(self._below, self._shared, offset, nbytes)
                if found:
                    nbytes = found
                    if not depth:
                        return True, nbytes
            old, nbytes = await self._old.zeroes(offset, nbytes)
            new, nbytes = await self._new.zeroes(offset, nbytes)
        except BlockError as error:
            raise CopyFailed(f"error while reading image metadata: {os.strerror(error.errno or 0)}") from error
        return old and new, nbytes

    async def _compare(self, offset: int, nbytes: int, unit: int) -> None:
        # Comparing memoryviews goes byte by byte; a bytearray's startswith() is memcmp.
        memory = self._free.pop() if self._free else bytearray(_CHUNK)
        other = self._free.pop() if self._free else bytearray(_CHUNK)
        old, new = memoryview(memory), memoryview(other)
        await self._old.read(offset, old[:nbytes])
        await self._new.read(offset, new[:nbytes])
        for start, end in _differences(memory, new, offset, nbytes, unit):
            try:
                if offset >= self._old.length:
                    await self._edge.co_pwrite_zeroes(offset + start, end - start)
                else:
                    await self._edge.co_pwritev(offset + start, IoVector.of(old[start:end]), _UNCHANGED)
            except BlockError as error:
                raise CopyFailed(f"Error while writing to COW image: {error.message}", error.errno) from error
        self._free += (memory, other)
        self._advance(nbytes)

    def _advance(self, nbytes: int) -> None:
        self._done += nbytes
        if self._progress is not None:
            self._progress(self._done, self._node.length)


def _differences(old: bytearray, new: memoryview, offset: int, nbytes: int, unit: int) -> Iterator[tuple[int, int]]:
    """Runs of whole units, counted from the disk's beginning, in which the first *nbytes* of the two differ."""
    if old.startswith(new[:nbytes]):
        return
    start = 0
    run: int | None = None
    while start < nbytes:
        end = min(nbytes, start + unit - (offset + start) % unit)
        if old.startswith(new[start:end], start):
            if run is not None:
                yield run, start
                run = None
        elif run is None:
            run = start
        start = end
    if run is not None:
        yield run, nbytes


def _layers(node: BlockNode) -> Iterator[BlockNode]:
    """*node* and what shows through it, down to the last."""
    yield node
    while (edge := node.layer_below) is not None:
        node = edge.node
        yield node
