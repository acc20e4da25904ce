"""FileEngine over every step of the ladder: bytes, short transfers, refusals, cancellation, contexts."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest

from blockio.aio import syscalls, threads, uring
from blockio.aio.context import AioContext, IOThread
from blockio.aio.engine import FileEngine, choose_engine
from blockio.aio.flight import ASYNC_TRANSFER
from blockio.aio.threads import WorkerPool, in_worker
from blockio.aio.uring import Uring
from blockio.buffers import aligned_buffer
from blockio.errors import BlockError, OptionError
from tests.support.qemu import pattern

Aio = Literal["threads", "io_uring"]


def _ring_works() -> bool:
    async def probe() -> bool:
        context = AioContext.current()
        try:
            Uring.acquire(context)
        except OSError:
            return False
        context.unshare(Uring)
        return True

    return asyncio.run(probe())


needs_ring = pytest.mark.skipif(not _ring_works(), reason="the kernel has no io_uring for us")
both_steps = pytest.mark.parametrize("aio", ["threads", pytest.param("io_uring", marks=needs_ring)])

SIZE = 1 << 20
CONTENT = pattern(SIZE)
STREAM = (1 << 64) - 1
"""The offset of what has no positions, such as a pipe."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(CONTENT)
    return path


def content(path: Path) -> bytes:
    return path.read_bytes()


@contextmanager
def opened(path: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    fd = os.open(path, flags)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def engine_on(path: Path, aio: Aio | None = None, flags: int = os.O_RDWR, **options: Any) -> Iterator[FileEngine]:
    with opened(path, flags) as fd:
        engine = choose_engine(fd, aio=aio, **options)
        try:
            yield engine
        finally:
            engine.close()


def no_inline(monkeypatch: pytest.MonkeyPatch, engine: FileEngine) -> None:
    """Nothing is in the page cache, as far as *engine* can see."""
    monkeypatch.setattr(engine, "try_preadv", lambda *_: False)


# -- bytes


@pytest.mark.both_loops
@both_steps
async def test_vectors_are_read_and_written_in_place(path: Path, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path, aio) as engine:
        no_inline(monkeypatch, engine)
        one, many = bytearray(4096), [memoryview(bytearray(n)) for n in (1, 511, 4096, 3)]
        assert await engine.preadv(8192, [memoryview(one)]) == 4096
        assert one == CONTENT[8192:12288]
        assert await engine.preadv(100, many) == 4611
        assert b"".join(many) == CONTENT[100:4711]
        # bytes are read-only memory; both kinds in one vector
        assert await engine.pwritev(7, [memoryview(b"abc"), memoryview(bytearray(b"def"))]) == 6
        assert await engine.pwritev(20, [memoryview(b"xyz")[1:]], dsync=True) == 2
        await engine.fdatasync()
    assert content(path)[:24] == CONTENT[:7] + b"abcdef" + CONTENT[13:20] + b"yz" + CONTENT[22:24]


@both_steps
async def test_the_end_of_the_file(path: Path, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path, aio) as engine:
        no_inline(monkeypatch, engine)
        view = memoryview(bytearray(100))
        assert await engine.preadv(SIZE - 60, [view[:50], view[50:]]) == 60
        assert view[:60] == CONTENT[-60:]
        assert await engine.preadv(SIZE, [view]) == 0
        assert await engine.preadv(SIZE + 5, [view]) == 0
        assert await engine.preadv(0, []) == 0
        assert await engine.pwritev(SIZE + 10, [memoryview(b"grown")]) == 5
    assert len(content(path)) == SIZE + 15


@both_steps
async def test_more_buffers_than_one_call_takes(path: Path, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path, aio) as engine:
        no_inline(monkeypatch, engine)
        views = [memoryview(bytearray(10)) for _ in range(2500)]
        assert await engine.preadv(5, views) == 25000
        assert b"".join(views) == CONTENT[5:25005]
        assert await engine.pwritev(0, views) == 25000
    assert content(path)[:25000] == CONTENT[5:25005]


@pytest.mark.both_loops
@both_steps
async def test_many_at_once(path: Path, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    """More requests than the ring has entries, and than there are workers."""
    with engine_on(path, aio) as engine:
        no_inline(monkeypatch, engine)
        buffers = [bytearray(512) for _ in range(300)]
        got = await asyncio.gather(
            *(engine.preadv(512 * number, [memoryview(buffer)]) for number, buffer in enumerate(buffers))
        )
        assert got == [512] * 300
        assert b"".join(buffers) == CONTENT[: 300 * 512]
        await asyncio.gather(
            *(engine.pwritev(512 * number, [memoryview(bytes([number & 255]) * 512)]) for number in range(300))
        )
    written = content(path)
    assert all(written[512 * number] == number & 255 for number in range(300))


@both_steps
async def test_space_is_given_back_and_taken(path: Path, aio: Aio) -> None:
    with engine_on(path, aio) as engine:
        await engine.fallocate(syscalls.FALLOC_FL_PUNCH_HOLE | syscalls.FALLOC_FL_KEEP_SIZE, 0, 8192)
        await engine.fallocate(0, SIZE, 4096)
        with pytest.raises(BlockError) as refused:
            await engine.fallocate(0x4000, 0, 4096)
        assert refused.value.errno == errno.ENOTSUP
        assert await engine.run(os.lseek, engine.fd, 0, os.SEEK_DATA) == 8192
    assert len(content(path)) == SIZE + 4096


async def test_copying_inside_the_kernel(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.touch()
    with engine_on(path) as source, engine_on(other) as target:
        done = 0
        while done < 10000:
            done += await source.copy_file_range(500 + done, target, done, 10000 - done)
        assert await source.copy_file_range(SIZE, target, 0, 10) == 0
    assert content(other) == CONTENT[500:10500]
    reader, writer = os.pipe()
    try:
        with engine_on(path) as source:
            pipe = FileEngine(writer, AioContext.current())
            with pytest.raises(BlockError) as cannot:
                await source.copy_file_range(0, pipe, 0, 10)
            assert cannot.value.errno == errno.ENOTSUP
    finally:
        os.close(reader)
        os.close(writer)


# -- the inline step


async def test_cached_pages_are_read_in_place(path: Path) -> None:
    with engine_on(path) as engine:
        os.pread(engine.fd, SIZE, 0)
        buffer = bytearray(4096)
        assert engine.try_preadv(4096, [buffer], 4096)
        assert buffer == CONTENT[4096:8192]
        assert not engine.try_preadv(SIZE - 10, [buffer], 4096)
        assert "undecided" in repr(engine)  # the kernel was not asked for a ring


class Faked:
    """Stands in for ``os.preadv`` or ``os.pwritev``: each call does the next of *deeds*, then the real thing."""

    def __init__(self, real: Callable[..., int], *deeds: int | OSError) -> None:
        self.real = real
        self.deeds = list(deeds)
        self.calls: list[tuple[int, int]] = []

    def __call__(self, fd: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        self.calls.append((offset, sum(memoryview(buffer).nbytes for buffer in buffers)))
        if not self.deeds:
            return self.real(fd, buffers, offset, flags)
        deed = self.deeds.pop(0)
        if isinstance(deed, OSError):
            raise deed
        return self.real(fd, [memoryview(buffers[0])[:deed]], offset, flags) if deed else 0


@pytest.mark.parametrize(
    ("deed", "again"),
    [(BlockingIOError(errno.EAGAIN, "again"), True), (100, True), (OSError(errno.EOPNOTSUPP, "no"), False)],
)
async def test_inline_answers_no(path: Path, monkeypatch: pytest.MonkeyPatch, deed: int | OSError, again: bool) -> None:
    fake = Faked(os.preadv, deed)
    monkeypatch.setattr(os, "preadv", fake)
    with engine_on(path) as engine:
        assert not engine.try_preadv(0, [bytearray(512)], 512)
        engine.try_preadv(0, [bytearray(512)], 512)
        # EAGAIN is about these pages; EOPNOTSUPP about the file, and is remembered
        assert len(fake.calls) == (2 if again else 1)


async def test_inline_directions_are_remembered_apart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "pwritev", Faked(os.pwritev, OSError(errno.EOPNOTSUPP, "ext4 says so")))
    with engine_on(path) as engine:
        os.pread(engine.fd, 4096, 0)
        assert not engine.try_pwritev(0, [b"x"], 1)
        assert engine.try_preadv(0, [bytearray(512)], 512)


async def test_inline_is_over_when_the_engine_is(path: Path) -> None:
    with opened(path) as fd:
        engine = choose_engine(fd)
        os.pread(fd, 4096, 0)
        bound = engine.try_preadv
        assert bound(0, [bytearray(10)], 10)
        engine.close()
        assert not bound(0, [bytearray(10)], 10)
        assert not engine.try_preadv(0, [bytearray(10)], 10)
        engine.close()


async def test_no_inline_step_under_direct_io(path: Path) -> None:
    with engine_on(path, flags=os.O_RDWR | os.O_DIRECT, direct=True) as engine:
        assert not engine.try_preadv(0, [aligned_buffer(4096)], 4096)
        assert not engine.try_pwritev(0, [aligned_buffer(4096)], 4096)


async def test_threads_look_into_the_page_cache_first(path: Path) -> None:
    with engine_on(path, "threads") as engine:
        os.pread(engine.fd, 4096, 0)
        assert await engine.preadv(0, [memoryview(bytearray(512))]) == 512
        before = engine._pool
        assert engine.name == "threads"
        assert await engine.preadv(0, [memoryview(bytearray(512))]) == 512
        assert before is None
        assert engine._pool is not None
        assert engine._pool._threads == []  # no worker was needed


async def test_what_the_page_cache_serves_decides_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path) as engine:
        monkeypatch.setattr(engine, "try_preadv", lambda *_: True)
        assert await engine.preadv(0, [memoryview(bytearray(512))]) == 512
        before = engine._slow
        no_inline(monkeypatch, engine)
        assert await engine.preadv(0, [memoryview(bytearray(512))]) == 512
        assert before is None
        assert engine._slow is not None


# -- short transfers and errors


class ShortRing:
    """Every transfer moves at most *limit* bytes, as a kernel may decide."""

    def __init__(self, slow: Any, limit: int) -> None:
        self.slow = slow
        self.limit = limit
        self.name = slow.name
        self.calls = 0

    def _cut(self, views: list[memoryview]) -> list[memoryview]:
        return [views[0][: self.limit]]

    async def read(self, fd: int, offset: int, views: list[memoryview], batch: int) -> int:
        self.calls += 1
        result: int = await self.slow.read(fd, offset, self._cut(views), batch)
        return result

    async def write(self, fd: int, offset: int, views: list[memoryview], rwf: int, batch: int) -> int:
        self.calls += 1
        result: int = await self.slow.write(fd, offset, self._cut(views), rwf, batch)
        return result


@both_steps
async def test_short_transfers_are_continued(path: Path, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path, aio) as engine:
        no_inline(monkeypatch, engine)
        slow = engine._step()
        short = ShortRing(slow, 700)
        engine._slow = short  # type: ignore[assignment]  # stands in for either step
        views = [memoryview(bytearray(n)) for n in (1000, 1, 999)]
        assert await engine.preadv(50, views) == 2000
        assert b"".join(views) == CONTENT[50:2050]
        assert short.calls == 5  # 700 + 300, 1, 700 + 299
        assert await engine.pwritev(0, views) == 2000
        engine._slow = slow
    assert content(path)[:2000] == CONTENT[50:2050]


async def test_a_file_that_takes_nothing_is_full(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path, "threads") as engine:
        monkeypatch.setattr(os, "pwritev", Faked(os.pwritev, 10, 0))
        with pytest.raises(BlockError) as full:
            await engine.pwritev(0, [memoryview(bytes(100))])
        assert full.value.errno == errno.ENOSPC


@both_steps
async def test_errors_are_the_kernels(path: Path, aio: Aio) -> None:
    with engine_on(path, aio, os.O_RDONLY) as engine:
        with pytest.raises(BlockError) as refused:
            await engine.pwritev(0, [memoryview(b"x")])
        assert refused.value.errno == errno.EBADF
    with engine_on(Path("/dev/full"), aio) as engine:
        with pytest.raises(BlockError) as refused:
            await engine.pwritev(0, [memoryview(b"x")])
        assert refused.value.errno == errno.ENOSPC
        assert str(refused.value) == "No space left on device"


async def test_a_direct_read_cut_short_in_the_middle_is_no_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """O_DIRECT refuses to go on from inside a block; what is missing then must not be taken for zeroes."""
    with engine_on(path, "threads", direct=True) as engine:
        slow = engine._step()
        engine._slow = short = ShortRing(slow, 700)  # type: ignore[assignment]  # stands in for it

        async def read(fd: int, offset: int, views: list[memoryview], batch: int) -> int:
            if offset % 512:
                raise OSError(errno.EINVAL, "not aligned")
            return await ShortRing.read(short, fd, offset, views, batch)

        monkeypatch.setattr(short, "read", read)
        with pytest.raises(BlockError) as caught:
            await engine.preadv(0, [memoryview(bytearray(8192))])
        assert caught.value.errno == errno.EINVAL
        engine._slow = slow


async def test_direct_reads_end_inside_a_block(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(CONTENT[:5000])
    with engine_on(path, "threads", os.O_RDWR | os.O_DIRECT, direct=True) as engine:
        view = aligned_buffer(8192)
        assert await engine.preadv(0, [view]) == 5000
        assert view[:5000] == CONTENT[:5000]


# -- which step


@needs_ring
async def test_the_ring_is_taken_where_it_can_be_had(path: Path) -> None:
    with engine_on(path) as engine, engine_on(path) as other:
        assert engine.name == "io_uring"
        assert engine._step() is other._step()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM, errno.EACCES, errno.ENOMEM])
async def test_a_forbidden_ring_means_threads(path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    asked = []

    def refuse(entries: int, params: object) -> int:
        asked.append(entries)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(uring, "sys_setup", refuse)
    with engine_on(path) as engine, engine_on(path) as other:
        assert engine.name == other.name == "threads"
        assert len(asked) == 1  # a context asks once
        view = memoryview(bytearray(10))
        assert await engine.preadv(0, [view]) == 10
        assert view == CONTENT[:10]
        with opened(path) as fd, pytest.raises(BlockError) as forced:
            choose_engine(fd, aio="io_uring")
        assert str(forced.value) == f"Unable to use io_uring: failed to init linux io_uring ring: {os.strerror(code)}"
        assert forced.value.errno == code
        with (
            opened(path) as fd,
            pytest.raises(BlockError, match="native AIO: failed to create linux AIO context"),
        ):
            choose_engine(fd, aio="native", direct=True)


@pytest.mark.parametrize("missing", ["operations", "features"])
async def test_an_old_kernel_means_threads(path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    real_setup, real_register = uring.sys_setup, uring.sys_register

    def setup(entries: int, params: Any) -> int:
        fd = real_setup(entries, params)
        if missing == "features":
            import ctypes

            ctypes.memset(ctypes.addressof(params) + 20, 0, 4)
        return fd

    def register(fd: int, opcode: int, argument: Any, count: int) -> int:
        real_register(fd, opcode, argument, count)
        if missing == "operations":
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(uring, "sys_setup", setup)
    monkeypatch.setattr(uring, "sys_register", register)
    with engine_on(path) as engine:
        assert engine.name == "threads"


@needs_ring
async def test_an_older_kernel_interrupts_us(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_setup = uring.sys_setup
    asked: list[int] = []

    def setup(entries: int, params: Any) -> int:
        (flags,) = struct.unpack_from("=I", params, 8)
        asked.append(flags)
        if flags & uring._SETUP_COOP_TASKRUN:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real_setup(entries, params)

    monkeypatch.setattr(uring, "sys_setup", setup)
    with engine_on(path, "io_uring") as engine:
        view = memoryview(bytearray(10))
        assert await engine.preadv(0, [view]) == 10
        assert view == CONTENT[:10]
    assert asked == [uring._SETUP_CLAMP | uring._SETUP_COOP_TASKRUN, uring._SETUP_CLAMP]


async def test_native_needs_direct_io(path: Path) -> None:
    with opened(path) as fd, pytest.raises(OptionError) as refused:
        choose_engine(fd, aio="native")
    assert str(refused.value) == ("aio=native was specified, but it requires cache.direct=on, which was not specified.")


# -- cancellation


@pytest.fixture
async def pipe() -> AsyncIterator[tuple[int, int]]:
    """A pipe's ends: reading from it stays under way until something is written."""
    reader, writer = os.pipe()
    try:
        yield reader, writer
    finally:
        os.close(reader)
        os.close(writer)


@needs_ring
@pytest.mark.both_loops
async def test_a_read_in_the_kernel_is_awaited_before_cancellation_goes_on(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    context = AioContext.current()
    ring = Uring.acquire(context)
    try:
        buffer = bytearray(5)
        task = asyncio.create_task(ring.read(reader, STREAM, [memoryview(buffer)]))
        await asyncio.sleep(0)
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        with pytest.raises(BufferError):
            buffer.clear()  # the memory is the kernel's
        os.write(writer, b"hello")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert buffer == b"hello"
        assert ring._in_flight == 0
    finally:
        context.unshare(Uring)


@needs_ring
async def test_a_read_that_was_not_submitted_is_withdrawn(path: Path) -> None:
    with engine_on(path, "io_uring") as engine:
        ring = engine._step()
        assert isinstance(ring, Uring)
        buffer = bytearray(512)
        engine.plug()
        task = asyncio.create_task(engine.preadv(0, [memoryview(buffer)]))
        await asyncio.sleep(0)
        assert len(ring._queue) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        engine.unplug()
        assert (len(ring._queue), ring._in_flight) == (0, 0)
        assert buffer == bytes(512)
        assert await engine.preadv(0, [memoryview(buffer)]) == 512
        assert buffer == CONTENT[:512]


async def test_a_worker_is_awaited_before_cancellation_goes_on(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    context = AioContext.current()
    pool = context.share(WorkerPool, lambda: WorkerPool(context))
    try:
        begun = asyncio.Event()

        def read() -> bytes:
            context.schedule_bh(begun.set)
            return os.read(reader, 5)

        task = asyncio.create_task(pool.run(read))
        await begun.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        os.write(writer, b"hello")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert pool._active == 0
        assert await pool.run(str, 5) == "5"
    finally:
        context.unshare(WorkerPool)


async def test_a_call_no_worker_has_begun_is_withdrawn(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.setattr(threads, "MAX_WORKERS", 1)
    context = AioContext.current()
    pool = context.share(WorkerPool, lambda: WorkerPool(context))
    called: list[int] = []
    try:
        first = asyncio.create_task(pool.run(os.read, reader, 1))
        await asyncio.sleep(0)
        second = asyncio.create_task(pool.run(called.append, 1))
        await asyncio.sleep(0)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        os.write(writer, b"x")
        assert await first == b"x"
        await pool.run(called.append, 2)
        assert called == [2]
        assert pool._active == 0
    finally:
        context.unshare(WorkerPool)


async def test_a_workers_error_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_worker(lambda: 1 // 0)
    with pytest.raises(FileNotFoundError):
        await in_worker(os.stat, "/nowhere/at/all")


# -- batches, and what the ring does when the kernel hesitates


class Enter:
    """Counts ``io_uring_enter`` and can fail it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ring: Uring) -> None:
        self.real = ring._enter
        self.batches: list[int] = []
        self.errors: list[int] = []
        monkeypatch.setattr(ring, "_enter", self)

    def __call__(self, fd: int, to_submit: int) -> int:
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        self.batches.append(to_submit)
        return self.real(fd, to_submit)


@contextmanager
def ring_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FileEngine, Uring, Enter]]:
    with engine_on(path, "io_uring") as engine:
        ring = engine._step()
        assert isinstance(ring, Uring)
        yield engine, ring, Enter(monkeypatch, ring)


async def reads(engine: FileEngine, count: int) -> None:
    """Read that many blocks at once, from back to front so that they are not merged."""
    buffers = [bytearray(512) for _ in range(count)]
    await asyncio.gather(*(engine.preadv(512 * i, [memoryview(buffers[i])]) for i in reversed(range(count))))
    assert b"".join(buffers) == CONTENT[: 512 * count]


@needs_ring
async def test_a_plugged_batch_goes_in_one_submission(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ring_on(path, monkeypatch) as (engine, _, enter):
        engine.plug()
        engine.plug()
        task = asyncio.create_task(reads(engine, 20))
        for _ in range(4):
            await asyncio.sleep(0)
        assert enter.batches == []
        engine.unplug()
        assert enter.batches == []
        engine.unplug()
        assert enter.batches == [20]
        await task
        with pytest.raises(RuntimeError, match="unplug without plug"):
            engine.unplug()


@needs_ring
async def test_the_first_goes_alone_and_the_turns_others_together(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow() -> None:
        reader, writer = os.pipe()
        try:
            task = asyncio.create_task(ring.read(reader, STREAM, [memoryview(bytearray(1))]))
            await asyncio.sleep(0)
            await reads(engine, 10)
            os.write(writer, b"x")
            await task
        finally:
            os.close(reader)
            os.close(writer)

    with ring_on(path, monkeypatch) as (engine, ring, enter):
        await slow()
        assert enter.batches == [1, 10]


@needs_ring
async def test_a_large_transfer_waits_for_nobody_and_nobody_copies_as_much_in_place_meanwhile(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbytes = ASYNC_TRANSFER
    os.truncate(path, 2 * nbytes)
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        os.pread(engine.fd, 2 * nbytes, 0)
        large, small = bytearray(nbytes), bytearray(512)
        assert engine.try_preadv(0, [large], nbytes)
        reader, writer = os.pipe()
        try:
            held = asyncio.create_task(ring.read(reader, STREAM, [memoryview(bytearray(1))]))
            await asyncio.sleep(0)
            assert Uring.busy(AioContext.current())
            assert not engine.try_preadv(0, [large], nbytes)
            assert engine.try_preadv(0, [small], 512)
            tasks = [asyncio.create_task(engine.preadv(nbytes * i, [memoryview(bytearray(nbytes))])) for i in range(2)]
            await asyncio.sleep(0)
            assert enter.batches == [1, 1, 1]
            assert await asyncio.gather(*tasks) == [nbytes, nbytes]
            os.write(writer, b"x")
            await held
        finally:
            os.close(reader)
            os.close(writer)
        assert not Uring.busy(AioContext.current())
        assert engine.try_preadv(0, [large], nbytes)
        for start, worker in ((engine.start_preadv, uring._SQE_ASYNC), (engine.start_pwritev, 0)):
            flight = start(nbytes, [large], nbytes)
            assert isinstance(flight, uring._Op)
            assert flight.entry[1] == worker, "a buffered write goes to a kernel's worker by itself"
            assert await flight.land()


@needs_ring
async def test_a_batch_is_no_larger_than_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with engine_on(path, "io_uring", max_batch=4) as engine:
        ring = engine._step()
        assert isinstance(ring, Uring)
        enter = Enter(monkeypatch, ring)
        ring._inline_left = 0
        await reads(engine, 10)
        assert enter.batches == [4, 4, 2]


@needs_ring
async def test_inline_completions_give_the_loop_its_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, _):
        os.pread(engine.fd, SIZE, 0)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        ticker = asyncio.create_task(others())
        view = memoryview(bytearray(512))
        for _ in range(10 * uring.INLINE_RUN):
            await engine.preadv(0, [view])
        ticker.cancel()
        assert turns >= 9
        assert ring._in_flight == 0


@needs_ring
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EBUSY, errno.EINTR])
async def test_a_submission_the_kernel_puts_off_is_repeated(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        enter.errors = [code, code]
        await reads(engine, 5)
        assert (ring._unsent, ring._in_flight) == (0, 0)


@needs_ring
@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EINTR])
async def test_a_request_the_kernel_was_disturbed_in_is_repeated(
    path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, _enter):
        real, disturbed = ring._complete, 3

        def complete(slot: int, result: int) -> None:
            nonlocal disturbed
            disturbed -= 1
            real(slot, -code if disturbed >= 0 else result)

        monkeypatch.setattr(ring, "_complete", complete)
        await reads(engine, 5)
        assert disturbed < 0
        assert (len(ring._queue), ring._in_flight, len(ring._free)) == (0, 0, uring.ENTRIES)
        disturbed = 1
        task = asyncio.ensure_future(engine.preadv(0, [memoryview(bytearray(10))]))
        await asyncio.sleep(0)
        task.cancel()  # between two attempts, where the kernel knows nothing of it
        await asyncio.wait([task])
        assert task.cancelled()
        assert (len(ring._queue), ring._in_flight) == (0, 0)


@needs_ring
async def test_a_submission_the_kernel_refuses_fails_its_requests_only(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        enter.errors = [errno.ENXIO]
        with pytest.raises(BlockError) as failed:
            await engine.preadv(0, [memoryview(bytearray(10))])
        assert failed.value.errno == errno.ENXIO
        assert (ring._unsent, ring._in_flight, len(ring._free)) == (0, 0, uring.ENTRIES)
        await reads(engine, 5)


@needs_ring
async def test_a_submission_taken_in_part_is_continued(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ring_on(path, monkeypatch) as (engine, ring, enter):
        real = enter.real
        monkeypatch.setattr(ring, "_enter", lambda fd, count: real(fd, min(count, 2)))
        ring._inline_left = 0
        await reads(engine, 7)
        assert ring._unsent == 0


# -- contexts


@both_steps
async def test_an_engine_moves_to_another_context(path: Path, aio: Aio, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as fd:
        engine = choose_engine(fd, aio=aio)
        view = memoryview(bytearray(512))
        assert await engine.preadv(0, [view]) == 512
        engine.detach()
        assert not engine.try_preadv(0, [view], 512)
        async with IOThread() as thread:

            async def there() -> None:
                engine.attach(AioContext.current())
                no_inline(monkeypatch, engine)
                assert await engine.preadv(512, [view]) == 512
                assert engine.name == aio
                engine.close()

            await thread.context.run(there())
        assert view == CONTENT[512:1024]


@needs_ring
async def test_a_plug_does_not_outlive_its_engine(path: Path) -> None:
    with engine_on(path, "io_uring") as other, opened(path) as fd:
        engine = choose_engine(fd, aio="io_uring")
        engine.plug()
        engine.close()
        await reads(other, 3)
