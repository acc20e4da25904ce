"""Pipes in the place of images: what comes out is the same disk, and however it ends, it ends cleanly."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio import img
from blockio.driver.base import StreamRun
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, LimitExceeded, OptionError, UnsupportedFeature
from blockio.img.copying import CHUNK
from blockio.testing.driver import MemoryDisk
from blockio_drivers.qcow2.options import Qcow2CreateOptions
from blockio_drivers.qcow2.streaming import stream_image
from tests.support.cancel import cancelled_after
from tests.support.qemu import assert_clean, blocks, pattern, qemu_img

MIB = 1 << 20


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def image_of(disk: MemoryDisk) -> img.Image:
    return img.Image(options=disk.options(), label="source")


@asynccontextmanager
async def reader(path: Path) -> AsyncIterator[img.Pipe]:
    """A pipe whose other end somebody writes to *path* until it is closed."""
    out, into = os.pipe()

    def keep() -> None:
        with open(out, "rb") as source, path.open("wb") as file:
            while data := source.read(MIB):
                file.write(data)

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        yield img.Pipe(fd=into)
    finally:
        os.close(into)
        await asyncio.to_thread(thread.join)


@asynccontextmanager
async def writer(content: bytes, **how: Any) -> AsyncIterator[img.Pipe]:
    """A pipe out of which *content* comes."""
    out, into = os.pipe()

    def fill() -> None:
        left = memoryview(content)
        with suppress(BrokenPipeError):
            while left:
                left = left[os.write(into, left) :]
        os.close(into)

    thread = threading.Thread(target=fill)
    thread.start()
    try:
        yield img.Pipe(fd=out, **how)
    finally:
        os.close(out)
        await asyncio.to_thread(thread.join)


# -- into a pipe


@pytest.mark.both_loops
async def test_a_raw_disk_comes_out_in_order(tmp_path: Path) -> None:
    with MemoryDisk(0) as disk:
        disk.data[:] = pattern(5 * MIB) + bytes(4 * MIB) + pattern(3 * MIB + 512, seed=2)
        async with reader(tmp_path / "out") as pipe:
            result = await img.convert(image_of(disk), pipe, digest="sha256-64k")
        assert (tmp_path / "out").read_bytes() == disk.data
        assert result.digest == img.DigestResult(
            "-", "sha256-64k", (await img.digest(image_of(disk), "sha256-64k")).digest, len(disk.data)
        )
        assert (result.size, result.copied, result.filename) == (len(disk.data), len(disk.data), "-")


PICTURES = ["", "ABC----------D-", "-" * 40 + "Z"]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"compat": "0.10"},
    {"cluster_size": 512, "refcount_bits": 1},
    {"cluster_size": 4096, "refcount_bits": 64},
    {"extended_l2": True, "cluster_size": 16384},
    {"extended_l2": True, "lazy_refcounts": True, "compression_type": "zstd"},
]


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
async def test_a_qcow2_image_comes_out_in_one_pass_and_is_clean(options: dict[str, Any], tmp_path: Path) -> None:
    """On a disk whose parts are cut in the middle of sectors and clusters, for every picture."""
    source, out = tmp_path / "source.raw", tmp_path / "out.qcow2"
    for picture in PICTURES:
        content = blocks(picture, 48 * 1024 + 512)
        with source.open("wb") as file:
            for at, letter in enumerate(picture):
                if letter not in "0-":
                    file.seek(at * (48 * 1024 + 512))
                    file.write(letter.encode() * (48 * 1024 + 512))
            file.truncate(len(content))
        async with reader(out) as pipe:
            done = await img.convert(
                img.Image(filename=str(source), format="raw"), pipe, "qcow2", options=options, digest="sha256"
            )
        assert done.digest is not None
        assert done.digest.digest == hashlib.sha256(content).hexdigest()
        assert_clean(out)
        assert (await img.check(str(out))).clean
        await img.convert(img.Image(filename=str(out), format="qcow2"), str(tmp_path / "back.raw"))
        assert (tmp_path / "back.raw").read_bytes() == content, picture
        (tmp_path / "back.raw").unlink()
    # The last picture is a hole with one block behind it: the hole takes no room.
    assert out.stat().st_size <= 16 * 65536


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("options", [{}, {"compat": "0.10"}, {"extended_l2": True}], ids=str)
async def test_an_overlay_comes_out_with_the_zeroes_that_hide_what_lies_below(
    options: dict[str, Any], tmp_path: Path
) -> None:
    base, top, out = (tmp_path / name for name in ("base.raw", "top.qcow2", "out.qcow2"))
    base.write_bytes(b"b" * (2 * MIB))
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", "-o", "cluster_size=4k", top)
    import blockio  # beside its img, for this test alone

    async with blockio.open(str(top), format="qcow2", gate=AllowAll()) as blk:
        await blk.co_pwritev(100 * 1024, b"t" * 70_144)
        await blk.co_pwrite_zeroes(512 * 1024 + 4096, 300 * 1024)
        await blk.co_pwrite_zeroes(2 * MIB - 81920, 81920)
    source = img.Image(filename=str(top), format="qcow2", gate=AllowAll())
    async with reader(out) as pipe:
        await img.convert(
            source, pipe, "qcow2", options=options, backing_file=str(base), backing_format="raw", gate=AllowAll()
        )
    assert_clean(out)
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", top, out)
    assert out.stat().st_size < MIB + 512 * 1024, "what the backing file holds stays there"


@st.composite
def disks(draw: st.DrawFn) -> tuple[Qcow2CreateOptions, int, list[StreamRun]]:
    """Options, a length in bytes, and runs in order, all in sectors, with and without gaps."""
    extended = draw(st.booleans())
    options = Qcow2CreateOptions(
        cluster_size=draw(st.sampled_from((16384, 65536) if extended else (512, 1024, 4096))),
        compat="1.1" if extended else draw(st.sampled_from(("0.10", "1.1"))),
        extended_l2=extended,
        backing_file=draw(st.sampled_from((None, "base"))),
        backing_fmt="raw",
    )
    at, runs = 0, list[StreamRun]()
    for gap, nsectors, zero in draw(
        st.lists(st.tuples(st.integers(0, 40), st.integers(1, 200), st.booleans()), max_size=12)
    ):
        at += gap * 512
        runs.append(StreamRun(at, nsectors * 512, zero))
        at += nsectors * 512
    return options, at + draw(st.integers(0, 30)) * 512, runs


@given(disks())
def test_a_layout_holds_what_it_should_in_the_order_it_says(
    tmp_path_factory: pytest.TempPathFactory, disk: tuple[Qcow2CreateOptions, int, list[StreamRun]]
) -> None:
    options, length, runs = disk
    if options.backing_file is None:
        options = Qcow2CreateOptions(
            cluster_size=options.cluster_size, compat=options.compat, extended_l2=options.extended_l2
        )
    image = stream_image(options, length, runs)
    # The chain below is full of "b"; what the runs cover differs.
    below = b"b" if options.backing_file else b"\0"
    content = bytearray(below * length)
    for run in runs:
        content[run.offset : run.offset + run.nbytes] = b"\0" * run.nbytes if run.zero else b"d" * run.nbytes
    folder = tmp_path_factory.mktemp("layout")
    (folder / "base").write_bytes(below * length)
    written = b"".join(image.metadata) + b"".join(
        bytes(content[offset : offset + nbytes]).ljust(nbytes, b"\0") for offset, nbytes in image.data
    )
    assert len(written) == image.nbytes
    (folder / "x").write_bytes(written)

    async def judge() -> None:
        path = img.Image(filename=str(folder / "x"), format="qcow2", gate=AllowAll())
        assert (await img.check(path)).clean
        await img.convert(path, str(folder / "back"))

    asyncio.run(judge())
    assert (folder / "back").read_bytes() == content


@pytest.mark.peer("qemu-img")
async def test_a_new_empty_image_goes_into_a_pipe(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with reader(out) as pipe:
        await img.create(pipe, "qcow2", size=10 << 30, options={"cluster_size": 4096})
    assert_clean(out)
    assert (await img.info(str(out))).virtual_size == 10 << 30
    async with reader(out) as pipe:
        await img.create(pipe, "raw", size=3 * MIB)
    assert out.read_bytes() == bytes(3 * MIB)


async def test_several_sources_follow_one_another(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"1" * 1000)
    (tmp_path / "two").write_bytes(b"2" * (CHUNK + 512))
    async with reader(tmp_path / "out") as pipe:
        await img.convert([str(tmp_path / "one"), str(tmp_path / "two")], pipe)
    assert (tmp_path / "out").read_bytes() == b"1" * 1000 + bytes(24) + b"2" * (CHUNK + 512)


async def test_a_file_and_a_socket_do_as_well(tmp_path: Path) -> None:
    with MemoryDisk(0) as disk:
        disk.data[:] = pattern(3 * MIB)
        with (tmp_path / "file").open("wb") as file:
            await img.convert(image_of(disk), img.Pipe(fd=file.fileno()))
        assert (tmp_path / "file").read_bytes() == disk.data
        near, far = socket.socketpair()
        with near, far:
            received = asyncio.to_thread(_all_of, far)
            task = asyncio.create_task(received)
            await img.convert(image_of(disk), img.Pipe(fd=near.fileno()))
            near.shutdown(socket.SHUT_WR)
            assert await task == disk.data


def _all_of(peer: socket.socket) -> bytes:
    parts = []
    while part := peer.recv(MIB):
        parts.append(part)
    return b"".join(parts)


async def test_what_cannot_go_into_a_pipe_is_refused_by_name() -> None:
    with MemoryDisk(MIB) as disk:
        refusals: list[tuple[dict[str, Any], type[BlockError], str]] = [
            ({"compress": True, "format": "qcow2"}, UnsupportedFeature, "Compression cannot be had"),
            ({"bitmaps": True, "format": "qcow2"}, UnsupportedFeature, "Bitmaps cannot be had"),
            ({"copy_offload": True}, UnsupportedFeature, "Copy offloading cannot be had"),
            ({"create": False}, OptionError, "it does not exist yet"),
            (
                {"format": "luks", "options": {"key-secret": "x"}},
                UnsupportedFeature,
                "'luks' cannot be written to a pipe",
            ),
            ({"format": "qcow2", "options": {"preallocation": "full"}}, UnsupportedFeature, "Preallocation means"),
        ]
        out, into = os.pipe()
        try:
            for wanted, kind, message in refusals:
                with pytest.raises(kind, match=message):
                    await img.convert(image_of(disk), img.Pipe(fd=into), **wanted)
            os.set_blocking(out, False)
            with pytest.raises(BlockingIOError):
                os.read(out, 1)
        finally:
            os.close(out)
            os.close(into)


@pytest.mark.both_loops
@pytest.mark.parametrize("nbytes", [0, 1, 70_000, 300_000, 3 * MIB])
async def test_a_reader_who_leaves_is_told_of_and_everything_works_on(nbytes: int, tmp_path: Path) -> None:
    with MemoryDisk(0) as disk:
        disk.data[:] = pattern(6 * MIB)
        out, into = os.pipe()
        leaving = threading.Thread(target=_read_and_leave, args=(out, nbytes))
        leaving.start()
        try:
            with pytest.raises(BlockError, match="Broken pipe") as caught:
                await img.convert(image_of(disk), img.Pipe(fd=into), "qcow2")
            assert caught.value.errno == errno.EPIPE
        finally:
            os.close(into)
            await asyncio.to_thread(leaving.join)
        async with reader(tmp_path / "out") as pipe:
            await img.convert(image_of(disk), pipe)
        assert (tmp_path / "out").read_bytes() == disk.data


def _read_and_leave(fd: int, nbytes: int) -> None:
    while nbytes > 0:
        nbytes -= len(os.read(fd, min(nbytes, 65536)))
    os.close(fd)


@pytest.mark.both_loops
@pytest.mark.parametrize("turns", [0, 1, 3, 10, 40, 200])
async def test_cancelled_while_the_pipe_is_full_it_lets_go(turns: int, tmp_path: Path) -> None:
    with MemoryDisk(0) as disk:
        disk.data[:] = pattern(6 * MIB)
        out, into = os.pipe()
        try:
            assert await cancelled_after(turns, img.convert(image_of(disk), img.Pipe(fd=into)))
            assert os.get_blocking(into)
        finally:
            os.close(out)
            os.close(into)


async def test_what_cannot_be_read_ends_the_stream() -> None:
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = pattern(MIB)
        disk.fail = BlockError(errno=errno.EIO)
        out, into = os.pipe()
        try:
            with pytest.raises(BlockError, match="error while reading at byte 0: Input/output error"):
                await img.convert(image_of(disk), img.Pipe(fd=into))
        finally:
            os.close(out)
            os.close(into)


# -- out of a pipe


@pytest.mark.both_loops
async def test_a_disk_comes_out_of_a_pipe(tmp_path: Path) -> None:
    content = pattern(2 * MIB + 5) + bytes(2 * MIB) + b"end"
    async with writer(content, format="raw") as pipe:
        await img.convert(pipe, str(tmp_path / "x.qcow2"), "qcow2")
    await img.convert(str(tmp_path / "x.qcow2"), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content.ljust(-(-len(content) // 512) * 512, b"\0")
    async with writer((tmp_path / "x.qcow2").read_bytes()) as pipe:
        await img.convert(pipe, str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "back").read_bytes()


async def test_from_a_pipe_into_a_pipe(tmp_path: Path) -> None:
    content = pattern(MIB) + bytes(MIB)
    async with writer(content, format="raw") as source, reader(tmp_path / "out") as target:
        await img.convert(source, target, "qcow2")
    assert (tmp_path / "out").stat().st_size < MIB + 7 * 65536
    await img.convert(str(tmp_path / "out"), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content


async def test_a_file_in_the_place_of_a_pipe_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(pattern(MIB))
    with (tmp_path / "x").open("rb") as file:
        await img.convert(img.Pipe(fd=file.fileno(), format="raw", spool_limit=1), str(tmp_path / "y"))
    assert (tmp_path / "y").read_bytes() == pattern(MIB)


async def test_no_more_is_kept_than_was_allowed(tmp_path: Path) -> None:
    async with writer(bytes(3 * MIB), format="raw", spool_limit=2 * MIB) as pipe:
        with pytest.raises(LimitExceeded, match="Could not read '-': More than 2097152 bytes came out of the pipe"):
            await img.convert(pipe, str(tmp_path / "x"))
    async with writer(bytes(2 * MIB), format="raw", spool_limit=2 * MIB) as pipe:
        await img.convert(pipe, str(tmp_path / "x"))
    assert names_in(tmp_path) == ["x"]


@pytest.mark.both_loops
@pytest.mark.parametrize("kept", [0, 100, 70_000])
async def test_cancelled_while_nothing_comes_it_leaves_nothing(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    out, into = os.pipe()
    feeding = threading.Thread(target=_feed, args=(into, kept))
    feeding.start()
    try:
        task = asyncio.create_task(img.convert(img.Pipe(fd=out, format="raw"), str(tmp_path / "x")))
        await asyncio.to_thread(feeding.join)
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names_in(tmp_path) == []
    finally:
        os.close(out)
        os.close(into)


def _feed(fd: int, nbytes: int) -> None:
    while nbytes > 0:
        nbytes -= os.write(fd, bytes(min(nbytes, 65536)))


@pytest.mark.parametrize("break_it", [lambda fd: None, os.close], ids=["the wrong end", "closed"])
async def test_what_is_no_open_pipe_is_an_error(break_it: Callable[[int], None], tmp_path: Path) -> None:
    out, into = os.pipe()
    os.close(out)
    break_it(into)
    try:
        with pytest.raises(OSError, match=r"Could not read '-': Bad file descriptor|Bad file descriptor"):
            await img.convert(img.Pipe(fd=into, format="raw"), str(tmp_path / "x"))
    finally:
        if break_it is not os.close:
            os.close(into)
    assert names_in(tmp_path) == []
