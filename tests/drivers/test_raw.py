"""raw: a window on its file."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from blockio.buffers import IoVector
from blockio.cli.io import main
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError, ReadOnly, UnsupportedFeature
from blockio.graph.mutate import attach_child, detach_child
from blockio.graph.open import open_node
from blockio.graph.reopen import reopen
from blockio.io import NodeIO
from blockio.testing.memory import MemoryChild, MemoryHost, MemoryOpener
from blockio.types import ExtentKind, OpenFlags, Perm, PreallocMode, Role, StatusFlags
from blockio_drivers.raw import RawCreateOptions, RawDriver, RawOptions
from tests.io.world import Rig, Top, pattern
from tests.support.qemu import qemu_img, qemu_img_json, qemu_io, without_timing

QCOW2_HEAD = b"QFI\xfb" + (3).to_bytes(4, "big") + bytes(504)


async def over(
    child: MemoryChild, *, probed: bool = False, read_only: bool = False, offset: int = 0, size: int | None = None
) -> tuple[RawDriver, MemoryHost]:
    host = MemoryHost(flags=OpenFlags(read_only=read_only))
    host.probed = probed
    driver = RawDriver(host)
    await driver.open(RawOptions(offset=offset, size=size), MemoryOpener(file=child))
    return driver, host


@asynccontextmanager
async def opened(path: Path, *, flags: OpenFlags | None = None, **options: Any) -> AsyncIterator[Rig]:
    node = await open_node(
        str(path) if "driver" not in options else None,
        options=options,
        flags=flags or OpenFlags(),
        gate=AllowAll(),
        path_factory=NodeIO,
    )
    top = Top()
    perm = Perm.CONSISTENT_READ if node.read_only else Perm.ALL
    try:
        edge = attach_child(top, node, "root", Role.FILTERED | Role.PRIMARY, perm, Perm.ALL)
        try:
            yield Rig(node, edge, top)
        finally:
            await detach_child(edge)
    finally:
        await node.unref()


def window(path: Path, **options: Any) -> dict[str, Any]:
    return {"driver": "raw", "file": {"driver": "file", "filename": str(path)}, **options}


# -- where the bytes are


async def test_requests_are_moved_by_the_offset() -> None:
    child = MemoryChild(pattern(8192))
    driver, _ = await over(child, offset=1000, size=2048)
    memory = bytearray(100)
    await driver.co_preadv(48, IoVector.of(memory), 0)
    assert memory == pattern(8192)[1048:1148]
    await driver.co_pwritev(0, IoVector.of(b"x" * 10), 0)
    await driver.co_pwrite_zeroes(100, 50, 0)
    await driver.co_pdiscard(512, 512)
    assert driver.try_preadv(0, [memory], 100)
    assert driver.try_pwritev(0, [b"yy"], 2)
    assert child.log == [("read", 1048, 100), ("write", 1000, 10), ("zero", 1100, 50), ("discard", 1512, 512),
                         ("write", 1000, 2)]  # fmt: skip
    extent = await driver.co_map(10, 500)
    assert extent == driver.try_map(10, 500) == (ExtentKind.DATA, 500, 1010, child)
    status = await driver.co_block_status(10, 500, want_zero=True)
    assert status.flags == StatusFlags.RAW | StatusFlags.OFFSET_VALID
    assert (status.host_offset, status.node_name) == (1010, child.node_name)


@pytest.mark.parametrize(
    ("file", "offset", "size", "length"),
    [
        (8192, 0, None, 8192),
        (1000, 0, None, 1024),
        (8192, 512, None, 7680),
        (8192, 100, None, 8192),
        (8192, 8192, None, 0),
        (8192, 100, 1024, 1024),
    ],
)
async def test_the_length_is_whole_sectors(file: int, offset: int, size: int | None, length: int) -> None:
    child = MemoryChild(bytes(file))
    driver, _ = await over(child, offset=offset, size=size)
    assert driver.length == length == await driver.co_getlength()


async def test_the_length_follows_the_file_within_the_window() -> None:
    child = MemoryChild(bytes(8192))
    driver, _ = await over(child)
    windowed, _ = await over(child, size=4096)
    child.data.extend(bytes(4096))
    assert await driver.co_getlength() == 12288
    assert await windowed.co_getlength() == 4096
    del child.data[2000:]
    assert await windowed.co_getlength() == 2000


# -- what is refused


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [
        (20000, None, r"Offset \(20000\) cannot be greater than size of the containing file \(10240\)"),
        (
            512,
            20000,
            r"The sum of offset \(512\) and size \(20000\) has to be smaller or equal to the  actual size of the "
            r"containing file \(10240\)",
        ),
        (0, 1000, "Specified size is not multiple of 512"),
    ],
)
async def test_impossible_windows(offset: int, size: int | None, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        await over(MemoryChild(bytes(10240)), offset=offset, size=size)
    assert caught.value.errno == errno.EINVAL


async def test_a_fixed_window_neither_grows_nor_shrinks() -> None:
    child = MemoryChild(bytes(8192))
    driver, _ = await over(child, size=4096)
    with pytest.raises(UnsupportedFeature, match="Cannot resize fixed-size raw disks"):
        await driver.co_truncate(512, exact=True, prealloc=PreallocMode.OFF, flags=0)
    requests = [
        driver.co_pwritev(4000, IoVector.of(bytes(97)), 0),
        driver.co_pwrite_zeroes(4096, 1, 0),
        driver.co_pdiscard(0, 4097),
    ]
    for request in requests:
        with pytest.raises(BlockError) as caught:
            await request
        assert caught.value.errno == errno.ENOSPC
    assert child.log == []


async def test_truncate_moves_the_files_end() -> None:
    child = MemoryChild(bytes(8192))
    driver, _ = await over(child, offset=512)
    await driver.co_truncate(1024, exact=True, prealloc=PreallocMode.OFF, flags=0)
    assert (len(child.data), driver.length) == (1536, 1024)
    with pytest.raises(BlockError, match="Disk size too large for the chosen offset") as caught:
        await driver.co_truncate(2**63 - 500, exact=True, prealloc=PreallocMode.OFF, flags=0)
    assert caught.value.errno == errno.EINVAL


# -- the first sector of a guessed disk


async def test_a_guessed_disk_warns_and_refuses_another_formats_head() -> None:
    child = MemoryChild(bytes(8192))
    driver, host = await over(child, probed=True)
    assert driver.limits().request_alignment == 512
    assert [event[0] for event in host.events] == ["report"]
    assert "probing guessed raw" in str(host.events[0][1])
    with pytest.raises(ReadOnly) as caught:
        await driver.co_pwritev(0, IoVector.of(QCOW2_HEAD + bytes(512)), 0)
    assert caught.value.errno == errno.EPERM
    assert child.log == []
    assert not driver.try_pwritev(0, [QCOW2_HEAD], 512)
    await driver.co_pwritev(512, IoVector.of(QCOW2_HEAD), 0)
    await driver.co_pwritev(0, IoVector.of(b"boot" * 256), 0)
    assert bytes(child.data[:1024]) == b"boot" * 256
    assert driver.try_pwritev(512, [b"y" * 512], 512)


async def test_what_was_looked_at_is_what_is_written() -> None:
    """The guest's memory may change behind the look; the copy that was looked at may not."""
    child = MemoryChild(bytes(8192))
    driver, _ = await over(child, probed=True)
    memory = bytearray(1024)

    def change(*_: object) -> None:
        memory[:512] = QCOW2_HEAD

    child.before = change
    await driver.co_pwritev(0, IoVector.of(memory), 0)
    assert not any(child.data[:1024])


async def test_a_named_or_read_only_disk_is_not_watched() -> None:
    for probed, read_only in ((False, False), (True, True)):
        driver, host = await over(MemoryChild(bytes(8192)), probed=probed, read_only=read_only)
        assert host.events == []
    child = MemoryChild(bytes(8192))
    driver, _ = await over(child)
    assert driver.limits().request_alignment == 1
    await driver.co_pwritev(0, IoVector.of(QCOW2_HEAD), 0)
    assert child.data.startswith(QCOW2_HEAD)


# -- permissions, creation


async def test_a_new_image_is_as_zero_as_its_file() -> None:
    class Device(MemoryChild):
        def has_zero_init(self) -> bool:
            return False

    for child in (MemoryChild(bytes(512)), Device(bytes(512))):
        driver, _ = await over(child)
        assert driver.has_zero_init() is child.has_zero_init()


async def test_raw_asks_of_its_file_what_its_users_ask_of_it() -> None:
    for offset in (0, 512):
        driver, _ = await over(MemoryChild(bytes(8192)), offset=offset)
        role = Role.DATA | Role.PRIMARY if offset else Role.FILTERED | Role.PRIMARY
        wanted, _ = driver.child_perm("file", role, Perm.CONSISTENT_READ, Perm.ALL)
        assert wanted == Perm.CONSISTENT_READ
        wanted, _ = driver.child_perm("file", role, Perm.CONSISTENT_READ | Perm.WRITE, Perm.ALL)
        assert wanted == Perm.CONSISTENT_READ | Perm.WRITE


async def test_creation_is_a_file_of_that_size() -> None:
    class Target:
        file = MemoryChild()

    await RawDriver.co_create(Target(), RawCreateOptions(size=1000))  # type: ignore[arg-type]  # opens no image
    assert len(Target.file.data) == 1024
    with pytest.raises(OptionError, match="Image creation needs a size parameter"):
        await RawDriver.co_create(Target(), RawCreateOptions())  # type: ignore[arg-type]  # as above


# -- on real files, as the QEMU tools see them


async def test_reading_past_a_file_that_ends_inside_a_sector(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(pattern(1000))
    async with opened(path, **window(path)) as rig:
        assert rig.node.length == 1024
        assert await rig.read(990, 34) == pattern(1000)[990:] + bytes(24)
        await rig.write(512, b"z" * 512)
        assert rig.node.length == 1024
    assert path.read_bytes() == pattern(1000)[:512] + b"z" * 512


async def test_a_write_past_the_end_adds_whole_sectors(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(pattern(1000))
    async with opened(path, **window(path)) as rig:
        await rig.write(1024, b"z" * 100)
        assert (rig.node.length, rig.top.resizes) == (1536, 1)
        await rig.io.co_pwrite_zeroes(2000, 10)
        assert (rig.node.length, rig.top.resizes) == (2048, 2)
        assert await rig.read(1000, 1048) == bytes(24) + b"z" * 100 + bytes(924)
    assert path.stat().st_size == 2010


async def test_a_guessed_disk_through_the_whole_path(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(8192))
    async with opened(path) as rig:
        with pytest.raises(ReadOnly):
            await rig.write(0, QCOW2_HEAD)
        with pytest.raises(ReadOnly):
            await rig.write(0, QCOW2_HEAD[:16])  # a part of the sector is the whole sector, read and written back
        await rig.write(100, b"data")
        assert await rig.read(98, 8) == b"\0\0data\0\0"
    assert path.read_bytes() == bytes(100) + b"data" + bytes(8088)


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_windows_and_messages_are_qemus(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(pattern(10240))
    for options in ({"offset": 20000}, {"offset": 512, "size": 20000}, {"size": 1000}):
        spec = ",".join(f"{name}={value}" for name, value in options.items())
        told = qemu_img("info", "--image-opts", f"driver=raw,{spec},file.driver=file,file.filename={path}", check=False)
        with pytest.raises(OptionError) as caught:
            async with opened(path, **window(path, **options)):
                pass
        assert str(caught.value) in told.stderr
    for options in ({}, {"offset": 512}, {"offset": 100}, {"offset": 1024, "size": 2048}):
        spec = "".join(f",{name}={value}" for name, value in options.items())
        spec = f"driver=raw{spec},file.driver=file,file.filename={path}"
        info = qemu_img_json("info", "--output=json", "--image-opts", spec)
        async with opened(path, **window(path, **options)) as rig:
            assert rig.node.length == info["virtual-size"]


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_both_write_the_same_bytes(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.raw", tmp_path / "theirs.raw"
    for path in (ours, theirs):
        path.write_bytes(pattern(65536))
    async with opened(ours, **window(ours)) as rig:
        await rig.write(1000, b"\xaa" * 3000)
        await rig.io.co_pwrite_zeroes(8192, 8192)
        await rig.io.co_truncate(70144)
        await rig.io.co_flush()
    qemu_io(theirs, "write -P 0xaa 1000 3000", "write -z 8192 8192", "truncate 70144", format="raw")
    assert ours.read_bytes() == theirs.read_bytes()
    for path in (ours, theirs):
        told = qemu_img_json("map", "--output=json", "-f", "raw", path)
        async with opened(path, flags=OpenFlags(read_only=True), **window(path)) as rig:
            at = 0
            for entry in told:
                status = await rig.io.co_block_status(at, entry["length"])
                assert bool(status.flags & StatusFlags.ZERO) == entry["zero"]
                assert bool(status.flags & StatusFlags.DATA) == entry["data"]
                assert status.host_offset == entry["offset"]
                at += status.length


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    "option", ["offset=512", "offset=511", "size=64k", "offset=64k,size=1k", "offset=99M", "size=99M", "size=1000"]
)
def test_another_window_as_qemu_io_opens_it(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    commands = ["write -P 1 0 1k", f"reopen -o {option}", "length", "write -P 2 512 512", "read -P 9 1k 512", "length"]
    words = ["-f", "raw", *(word for command in commands for word in ("-c", command)), "d"]
    said = []
    for ours in (True, False):
        (tmp_path / "d").write_bytes(b"\x09" * (1 << 20))
        if ours:
            capfd.readouterr()
            status = main(words, "qemu-io")
            out, err = capfd.readouterr()
        else:
            done = subprocess.run(["qemu-io", *words], capture_output=True, text=True, check=False, timeout=60)
            status, out, err = done.returncode, done.stdout, done.stderr
        said.append((status, without_timing(out), err, (tmp_path / "d").read_bytes()))
    assert said[0] == said[1]


async def test_who_looks_through_the_window_hears_of_another_length(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_bytes(pattern(8192))
    async with opened(path, **window(path, size=4096)) as rig:
        heard = rig.top.resizes
        await reopen(rig.node, options={"offset": 1024})
        assert rig.top.resizes == heard, "as long as before"
        await reopen(rig.node, options={"offset": 1024, "size": 512})
        assert (rig.node.length, rig.top.resizes) == (512, heard + 1)
        with pytest.raises(OptionError, match="cannot be greater than size of the containing file"):
            await reopen(rig.node, options={"offset": 8704, "size": 512})
        data = bytearray(512)
        await rig.edge.co_preadv(0, IoVector.of(data))
        assert data == pattern(8192)[1024:1536]
