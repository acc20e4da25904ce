"""Hauling: a long stretch of one file copied into another through a worker's memory, without its zeroes.

For whole disks. A request through the layers for every piece costs as much processor time as copying it out of the page
cache and back; here the layers are asked once where a stretch lies and where it shall go, and one worker does the rest,
its memory in the processor's cache. Two such jobs keep two processors busy.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from time import perf_counter
from typing import Final, NamedTuple

from blockio.aio import syscalls
from blockio.buffers import aligned_buffer, data_runs
from blockio.errors import UnsupportedFeature

__all__ = ["PIECE", "Haul", "Part", "Put", "haul", "reserves_by_page"]

PIECE: Final = 2 << 20
"""Bytes read and then written at a time: few system calls, and what one reads the next finds in the cache."""

_EXT4: Final = 0xEF53

_memory = threading.local()


class Haul:
    """One copy on its way down: what is asked for, and what became of it.

    Runs of ``step`` zero bytes, at multiples of it in the disk that is written, are left out, and holes of the source
    not even read; 0 writes everything. ``room`` bytes, from a multiple of the step on, are enough for what the source
    was seen to hold (0: nobody looked). ``stopped``: nobody waits for the rest any more.

    ``left_out`` counts what is left out, in bytes; ``reading`` and ``writing`` are the seconds that went into either.
    """

    __slots__ = ("left_out", "reading", "room", "step", "stopped", "writing")

    def __init__(self, step: int, room: int = 0) -> None:
        self.step = step
        self.room = room
        self.left_out = 0
        self.stopped = False
        self.reading = self.writing = 0.0


class Part(NamedTuple):
    """Bytes ``start`` to ``stop`` of a stretch lie at ``offset`` in the source. What no part has is zero."""

    start: int
    stop: int
    offset: int


class Put(NamedTuple):
    """Bytes ``start`` to ``stop`` of a stretch were written ``at`` bytes behind the place it was given."""

    start: int
    stop: int
    at: int


def reserves_by_page(fd: int) -> bool:
    """Whether its file system finds room for a write page by page, so that asking for all of it before pays.

    ext4 does, a fifth of what writing into the page cache costs. Others would do the same work twice.
    """
    try:
        return syscalls.file_system(fd) == _EXT4
    except OSError:
        return False


def haul(
    job: Haul,
    source: int,
    parts: Sequence[Part],
    target: int,
    target_offset: int,
    nbytes: int,
    phase: int,
    *,
    packed: int,
    reserve: bool,
) -> list[Put]:
    """Copy *nbytes* between descriptors; blocking, for a worker. What was put where, in order.

    *parts* are in order, and what is between them zero. *phase* is how far behind the beginning a multiple of
    ``job.step`` is, any of them. *packed*: what follows whole steps that are left out moves up by as much, and nothing
    goes further than so many bytes behind *target_offset*; 0: every byte keeps its distance from there. *reserve*: ask
    for the room before it is written, see ``reserves_by_page``.

    OSError of either side; UnsupportedFeature where the source ends before, or holds more than there is room for.
    """
    memory: memoryview | None = getattr(_memory, "view", None)
    if memory is None:
        memory = _memory.view = aligned_buffer(PIECE)
    step = job.step
    phase = phase % step if step else 0
    piece = PIECE // step * step if step else PIECE
    puts: list[Put] = []
    at = moved = 0
    known = 0 if step else nbytes  # up to here it is data, as far as anybody knows
    while at < nbytes:
        if at >= known:
            start, known = _next_data(source, parts, at, nbytes)
            known = min(nbytes, known + (phase - known) % step)  # up to a multiple of the step
            start -= (start - phase) % step
            if start > at:
                job.left_out += start - at
                if packed:
                    moved += max(0, start - max(at, phase))
                at = start
                continue
        if job.stopped:
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        # Every piece but the last ends at a multiple of the step.
        view = memory[: min(known - at, piece - (at - phase) % step if step else piece)]
        began = perf_counter()
        _fill(source, parts, at, view)
        read = perf_counter()
        job.reading += read - began
        for first, last, data in data_runs(view, at - phase, step) if step else ((0, view.nbytes, True),):
            start, stop = at + first, at + last
            if not data:
                job.left_out += stop - start
                if packed:
                    moved += max(0, stop - max(start, phase))
                continue
            put = start - moved
            if packed and put + stop - start > packed:
                raise UnsupportedFeature
            if reserve:
                reserve = _reserve(target, target_offset + put, stop - start)
            _store(target, target_offset + put, view[first:last])
            if puts and puts[-1].stop == start and puts[-1].at + start - puts[-1].start == put:
                puts[-1] = puts[-1]._replace(stop=stop)
            else:
                puts.append(Put(start, stop, put))
        job.writing += perf_counter() - read
        at += view.nbytes
    return puts


def _next_data(fd: int, parts: Sequence[Part], at: int, nbytes: int) -> tuple[int, int]:
    """Where data begins and ends, *at* or later; where there is none it is nothing, at the end, *nbytes*.

    The descriptor's position changes, which nobody uses.
    """
    for start, stop, offset in parts:
        if stop <= at:
            continue
        shift = start - offset
        begin = max(at, start)
        try:
            data = os.lseek(fd, begin - shift, os.SEEK_DATA) + shift
            if data < stop:
                return data, min(os.lseek(fd, data - shift, os.SEEK_HOLE) + shift, stop)
        except OSError as error:
            if error.errno != errno.ENXIO:  # else it is a hole up to the file's end, or was cut just now
                return begin, stop
    return nbytes, nbytes


def _fill(fd: int, parts: Sequence[Part], at: int, view: memoryview) -> None:
    end = at + view.nbytes
    reached = at
    for start, stop, offset in parts:
        if stop <= at:
            continue
        if start >= end:
            break
        first, last = max(start, at), min(stop, end)
        view[reached - at : first - at] = bytes(first - reached)
        _read(fd, offset + first - start, view[first - at : last - at])
        reached = last
    view[reached - at :] = bytes(end - reached)


def _read(fd: int, offset: int, view: memoryview) -> None:
    while view.nbytes:
        got = os.preadv(fd, (view,), offset)
        if not got:
            raise UnsupportedFeature
        offset += got
        view = view[got:]


def _store(fd: int, offset: int, view: memoryview) -> None:
    while view.nbytes:
        put = os.pwritev(fd, (view,), offset)
        if not put:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as in QEMU: a file that takes nothing is full
        offset += put
        view = view[put:]


def _reserve(fd: int, offset: int, nbytes: int) -> bool:
    """Ask for room, the file as long as it is; False where that is not to be had. Writing will say what is wrong."""
    try:
        syscalls.fallocate(fd, syscalls.FALLOC_FL_KEEP_SIZE, offset, nbytes)
    except OSError:
        return False
    return True
