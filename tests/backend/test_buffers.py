"""Memory for requests: aligned, and really registered with the ring where there is one."""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from blockio.aio import uring
from blockio.aio.context import AioContext
from blockio.aio.registered import SLOTS
from blockio.aio.uring import Uring
from blockio.backend import BlockBackend
from blockio.buffers import aligned_buffers, is_zero
from blockio.types import OpenFlags, Perm

CONTENT = bytes(at % 251 for at in range(1 << 18))


def options(path: Path, aio: str) -> dict[str, object]:
    return {"driver": "raw", "file": {"driver": "file", "filename": str(path), "aio": aio}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(CONTENT)
    return path


def address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


async def test_aligned(blk: BlockBackend) -> None:
    for nbytes in (0, 1, 4096, 100_000, (2 << 20) + 5):  # the last in huge pages, where there are some
        memory = blk.blockalign(nbytes)
        assert memory.nbytes == nbytes
        if nbytes:
            assert address(memory) % mmap.PAGESIZE == 0
            assert is_zero(memory)
    async with BlockBackend(Perm.ALL) as empty:
        assert address(empty.blockalign(10)) % mmap.PAGESIZE == 0
        assert empty.try_blockalign(1 << 62) is None
        with pytest.raises(ValueError, match="-1"):
            empty.try_blockalign(-1)


def test_memory_for_many_requests_is_taken_at_once() -> None:
    for count, nbytes in ((1, 1), (3, 4096), (4, 5000), (3, 1 << 20), (2, 0), (0, 512)):
        pieces = aligned_buffers(count, nbytes)
        assert [piece.nbytes for piece in pieces] == [nbytes] * count
        for number, piece in enumerate(pieces):
            piece[:] = bytes([number + 1]) * nbytes
        assert [bytes(piece) for piece in pieces] == [bytes([number + 1]) * nbytes for number in range(count)]
        assert not nbytes or all(address(piece) % mmap.PAGESIZE == 0 for piece in pieces)


async def test_registered_memory_is_read_and_written_as_such(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        Uring.acquire(AioContext.current())
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    sent: list[int] = []
    submit = Uring._submit

    def noted(self: Uring, op: uring._Op) -> None:
        sent.append(op.entry[0])
        submit(self, op)

    monkeypatch.setattr(Uring, "_submit", noted)
    try:
        flags = OpenFlags(cache_direct=True)
        async with await BlockBackend.new_open(options=options(path, "io_uring"), flags=flags) as blk:
            memory, other = blk.blockalign(65536), blk.blockalign(4096)
            await blk.co_preadv(0, memory[:4096])
            assert blk.register_buf(memory)
            with pytest.raises(ValueError, match="already"):
                blk.register_buf(memory)
            await blk.co_preadv(4096, memory[8192:12288])
            await blk.co_preadv(4096, other)
            assert memory[8192:12288] == other == CONTENT[4096:8192]
            memory[:4096] = b"w" * 4096
            await blk.co_pwritev(8192, memory[:4096])
            blk.unregister_buf(memory)
            await blk.co_preadv(8192, memory[4096:8192])
            assert memory[4096:8192] == b"w" * 4096
            with pytest.raises(ValueError, match="never registered"):
                blk.unregister_buf(memory)
        plain, fixed = uring._OP_READ, uring._OP_READ_FIXED
        assert [op for op in sent if op != uring._OP_FSYNC] == [plain, fixed, plain, uring._OP_WRITE_FIXED, plain]
    finally:
        AioContext.current().unshare(Uring)


async def test_slots_come_back(path: Path) -> None:
    try:
        ring = Uring.acquire(AioContext.current())
    except OSError as error:
        pytest.skip(f"no io_uring here: {error}")
    try:
        async with await BlockBackend.new_open(options=options(path, "io_uring")) as blk:
            pages = [blk.blockalign(4096) for _ in range(SLOTS + 1)]
            took = [blk.register_buf(page) for page in pages]
            assert took == [True] * SLOTS + [False]
            for page in pages:
                blk.unregister_buf(page)
            assert blk.register_buf(pages[0])
            assert ring.buffers
            blk.unregister_buf(pages[0])
            assert not ring.buffers
    finally:
        AioContext.current().unshare(Uring)


async def test_told_where_nobody_gains(path: Path, blk: BlockBackend) -> None:
    memory = bytearray(4096)
    assert not blk.register_buf(memory)
    blk.unregister_buf(memory)
    async with await BlockBackend.new_open(options=options(path, "threads")) as other:
        assert not other.register_buf(memory)
        await other.co_preadv(0, memory)
        assert memory == CONTENT[:4096]
        other.unregister_buf(memory)
