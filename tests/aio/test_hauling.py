"""Hauling: a stretch of one file copied into another by a worker, without its zeroes."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blockio.aio import hauling, syscalls
from blockio.aio.context import AioContext
from blockio.aio.engine import choose_engine
from blockio.aio.hauling import Haul, Part, Put, haul
from blockio.aio.threads import WorkerPool
from blockio.errors import BlockError, UnsupportedFeature
from tests.support.qemu import pattern

ALL = (Part(0, 64 << 10, 0),)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """A file of 64 KiB and an empty one."""
    (tmp_path / "source").write_bytes(pattern(64 << 10))
    source = os.open(tmp_path / "source", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    yield source, target
    os.close(source)
    os.close(target)


def hauled(job: Haul, content: bytes, offset: int, room: int, phase: int, *, packed: int) -> tuple[list[Put], bytes]:
    """What ``haul`` makes of a file with *content* behind *offset*, and of a target full of dots."""
    source, target = os.memfd_create("source"), os.memfd_create("target")
    try:
        os.ftruncate(source, offset + len(content))
        for at in range(0, len(content), 256):  # zeroes are holes as far as pages can be
            if any(content[at : at + 256]):
                os.pwrite(source, content[at : at + 256], offset + at)
        os.pwrite(target, b"." * (room + len(content)), 0)
        puts = haul(
            job,
            source,
            [Part(0, len(content), offset)],
            target,
            room,
            len(content),
            phase,
            packed=packed,
            reserve=False,
        )
        return puts, os.pread(target, 1 << 20, 0)
    finally:
        os.close(source)
        os.close(target)


@given(
    picture=st.text("0x.", min_size=1, max_size=20),
    step=st.sampled_from([512, 4096]),
    lead=st.integers(0, 511),
    tail=st.integers(0, 511),
    pieces=st.sampled_from([1, 2, 5, 24]),
    packed=st.booleans(),
)
@example(picture="0x0x", step=512, lead=100, tail=0, pieces=1, packed=True)
@example(picture="00x", step=4096, lead=1, tail=7, pieces=2, packed=True)
@example(picture="x0000x000", step=4096, lead=10, tail=5, pieces=2, packed=True)
@example(picture="x00", step=512, lead=0, tail=5, pieces=2, packed=False)
def test_what_is_not_zero_arrives_where_it_shall(
    picture: str, step: int, lead: int, tail: int, pieces: int, packed: bool
) -> None:
    """Each letter is a step of the disk; the stretch begins *lead* bytes into the first, and ends before the last's."""
    letters = {"0": bytes(step), "x": b"x" * step, ".": bytes(step - 2) + b".\0"}
    whole = b"".join(letters[letter] for letter in picture)
    content = whole[lead : len(whole) - (tail if len(picture) > 1 else 0)]
    steps = [whole[at : at + step] for at in range(0, len(whole), step)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hauling, "PIECE", pieces * step)
        patch.setattr(hauling._memory, "view", memoryview(bytearray(pieces * step)), raising=False)
        job = Haul(step)
        puts, found = hauled(
            job, content, 3 * step + lead, step + lead, step - lead, packed=len(content) if packed else 0
        )
    expected = bytearray(b"." * (step + lead + len(content)))
    put_bytes = at = moved = 0
    for number in range(len(steps)):
        start, stop = max(0, number * step - lead), min(len(content), (number + 1) * step - lead)
        part = content[start:stop]
        if any(part):
            at = step + lead + start - moved
            expected[at : at + len(part)] = part
            put_bytes += len(part)
        elif packed and not (number == 0 and lead):
            moved += stop - start
    assert found == expected
    assert sum(put.stop - put.start for put in puts) == put_bytes
    assert job.left_out == len(content) - put_bytes
    assert all(one.stop <= two.start for one, two in pairwise(puts))
    for put in puts:
        there = step + lead + put.at
        assert found[there : there + put.stop - put.start] == content[put.start : put.stop]


@pytest.mark.parametrize("reserve", [True, False])
def test_everything_is_written_where_no_zeroes_are_looked_for(pair: tuple[int, int], reserve: bool) -> None:
    source, target = pair
    os.pwrite(target, b"behind" * 100, 70_000)
    assert haul(Haul(0), source, [Part(0, 50_000, 4096)], target, 512, 50_000, 17, packed=0, reserve=reserve) == [
        Put(0, 50_000, 0)
    ]
    assert os.pread(target, 50_000, 512) == os.pread(source, 50_000, 4096)
    assert os.fstat(target).st_size == 70_600
    assert os.pread(target, 20, 70_000) == b"behindbehindbehindbe"


def test_room_is_asked_for_before_it_is_filled(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """And where it is not to be had, not again: the writes say what is wrong, or that nothing is."""
    asked: list[tuple[int, int, int]] = []

    def fallocate(fd: int, mode: int, offset: int, nbytes: int) -> None:
        assert os.fstat(fd).st_size <= offset
        asked.append((mode, offset, nbytes))
        if len(asked) == 2:
            raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(syscalls, "fallocate", fallocate)
    monkeypatch.setattr(hauling, "PIECE", 16 << 10)
    assert haul(Haul(0), pair[0], ALL, pair[1], 0, 64 << 10, 0, packed=0, reserve=True) == [Put(0, 64 << 10, 0)]
    assert asked == [(syscalls.FALLOC_FL_KEEP_SIZE, at << 14, 16 << 10) for at in (0, 1)]
    assert os.pread(pair[1], 64 << 10, 0) == pattern(64 << 10)


def test_which_file_systems_want_to_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        monkeypatch.setattr(syscalls, "file_system", lambda _: 0xEF53)
        assert hauling.reserves_by_page(fd)
        monkeypatch.undo()
        assert syscalls.file_system(fd) > 0
    finally:
        os.close(fd)
    assert not hauling.reserves_by_page(fd)
    memory = os.memfd_create("memory")
    assert syscalls.file_system(memory) == 0x01021994  # tmpfs
    assert not hauling.reserves_by_page(memory)
    os.close(memory)


def test_a_source_that_ends_before(pair: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedFeature):
        haul(Haul(0), pair[0], [Part(0, 8 << 10, 60 << 10)], pair[1], 0, 8 << 10, 0, packed=0, reserve=False)


def test_a_source_that_holds_more_than_there_is_room_for(pair: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedFeature):
        haul(Haul(4096), pair[0], ALL, pair[1], 0, 64 << 10, 0, packed=60 << 10, reserve=False)
    assert os.fstat(pair[1]).st_size <= 60 << 10


def test_a_target_that_takes_no_more(pair: tuple[int, int]) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        haul(Haul(0), pair[0], ALL, full, 0, 4096, 0, packed=0, reserve=True)
    os.close(full)


async def test_an_engine_says_what_was_wrong_and_works_on(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(pattern(8192))
    (tmp_path / "target").touch()
    source, target = os.open(tmp_path / "source", os.O_RDONLY), os.open(tmp_path / "target", os.O_RDWR)
    blind = os.open(tmp_path / "target", os.O_RDONLY)
    one, two, three = (choose_engine(fd) for fd in (source, target, blind))
    try:
        with pytest.raises(BlockError) as caught:
            await one.haul(Haul(0), ALL, three, 0, 8192, 0, packed=0)
        assert caught.value.errno == errno.EBADF
        assert await one.haul(Haul(0), ALL, two, 0, 8192, 0, packed=0) == [Put(0, 8192, 0)]
        assert (tmp_path / "target").read_bytes() == pattern(8192)
    finally:
        for engine, fd in ((one, source), (two, target), (three, blind)):
            engine.close()
            os.close(fd)


async def test_cancelled_it_ends_with_the_piece_at_hand(pair: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """However often: the descriptors may be closed when CancelledError arrives."""
    one, two = (choose_engine(fd) for fd in pair)
    loop = asyncio.get_running_loop()
    begun, go = asyncio.Event(), threading.Event()
    pieces: list[int] = []

    def slow(_fd: int, offset: int, _view: memoryview) -> None:
        pieces.append(offset)
        loop.call_soon_threadsafe(begun.set)
        assert go.wait(60)

    monkeypatch.setattr(hauling, "PIECE", 4096)
    monkeypatch.setattr(hauling, "_store", slow)
    task = asyncio.create_task(one.haul(Haul(0), ALL, two, 0, 64 << 10, 0, packed=0))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pieces == [0]
    one.close()
    two.close()
    assert AioContext.current().shared(WorkerPool) is None


@given(
    cuts=st.lists(st.integers(0, 99), max_size=9, unique=True).map(sorted),
    step=st.sampled_from([512, 1024]),
    packed=st.booleans(),
)
def test_parts_from_anywhere_and_zeroes_between_them(cuts: list[int], step: int, packed: bool) -> None:
    """Every second stretch between two cuts is a part, the later the earlier in the source; 128 bytes are a unit."""
    unit, source, target = 128, os.memfd_create("source"), os.memfd_create("target")
    expected = bytearray(100 * unit)
    parts: list[Part] = []
    where = 100 * unit
    for start, stop in pairwise(cuts):
        if len(parts) % 2 == 0 or start == cuts[0]:
            where -= (stop - start) * unit
            data = pattern((stop - start) * unit, seed=start)
            os.pwrite(source, data, where)
            expected[start * unit : stop * unit] = data
            parts.append(Part(start * unit, stop * unit, where))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hauling, "PIECE", 2 * step)
        patch.setattr(hauling._memory, "view", memoryview(bytearray(2 * step)), raising=False)
        job = Haul(step)
        most = len(expected) if packed else 0
        puts = haul(job, source, parts, target, 0, len(expected), 0, packed=most, reserve=False)
    found = bytearray(len(expected))
    for put in puts:
        found[put.start : put.stop] = os.pread(target, put.stop - put.start, put.at)
    os.close(source)
    os.close(target)
    assert found == expected
    assert job.left_out == len(expected) - sum(put.stop - put.start for put in puts)
