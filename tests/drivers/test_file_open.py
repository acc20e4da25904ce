"""Opening files: what is refused and in which words, read-only files, reopening, names."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from blockio.aio import syscalls, uring
from blockio.driver.base import ReopenState
from blockio.errors import BlockError, OptionError, ReadOnly
from blockio.testing.memory import MemoryOpener
from blockio.types import OpenFlags
from blockio_drivers.file import FileDriver, FileOptions, HostDeviceDriver
from tests.drivers.file_rig import Host, content, device, open_driver, read, write
from tests.support.qemu import qemu_io

READ_ONLY = OpenFlags(read_only=True)


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    (tmp_path / "disk").write_bytes(b"disk" * 256)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    ("driver", "name", "flags", "code"),
    [
        ("file", "missing", OpenFlags(), errno.ENOENT),
        ("file", "dangling", OpenFlags(), errno.ENOENT),
        ("file", "disk/below", OpenFlags(), errno.ENOTDIR),
        ("file", "loop", OpenFlags(), errno.ELOOP),
        ("file", "folder", OpenFlags(), errno.EISDIR),
        ("file", "folder", READ_ONLY, errno.EINVAL),
        ("file", "/dev/null", OpenFlags(), errno.EINVAL),
        ("host_device", "disk", OpenFlags(), errno.EINVAL),
        ("host_device", "missing", OpenFlags(), errno.ENOENT),
        ("file", "x" * 300, OpenFlags(), errno.ENAMETOOLONG),
    ],
)
async def test_what_cannot_be_opened_is_refused_as_by_qemu(
    zoo: Path, driver: str, name: str, flags: OpenFlags, code: int
) -> None:
    where = zoo / name
    opened = open_driver(where, flags) if driver == "file" else device(where, flags)
    with pytest.raises(BlockError) as refused:
        async with opened:
            raise AssertionError("not reached")
    theirs = qemu_io(
        f'json:{{"driver":"{driver}","filename":"{where}"}}',
        "length",
        options=("-r",) if flags.read_only else (),
        check=False,
    ).stderr
    assert refused.value.errno == code
    assert theirs.strip().endswith(f": {refused.value}")


@pytest.mark.parametrize("flags", [OpenFlags(), READ_ONLY])
async def test_a_fifo_is_refused_and_not_waited_for(zoo: Path, flags: OpenFlags) -> None:
    with pytest.raises(BlockError, match="fifo' to be a regular file"):
        async with open_driver(zoo / "fifo", flags):
            raise AssertionError("not reached")


async def test_a_name_with_a_nul(zoo: Path) -> None:
    with pytest.raises(BlockError, match="No such file"):
        async with open_driver("disk\0", OpenFlags()):
            raise AssertionError("not reached")


def refuse_writers(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    real = os.open

    def guarded(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags & os.O_RDWR:
            raise OSError(code, os.strerror(code))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", guarded)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
async def test_a_file_that_may_only_be_read(zoo: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    refuse_writers(monkeypatch, code)
    path = zoo / "disk"
    with pytest.raises(ReadOnly) as refused:
        async with open_driver(path):
            raise AssertionError("not reached")
    assert str(refused.value) == f"Could not open '{path}': {os.strerror(code)}"
    assert refused.value.errno == code
    async with open_driver(path, OpenFlags(auto_read_only=True)) as driver:
        assert driver.host.flags.read_only
        assert await read(driver, 0, 4) == b"disk"


async def test_other_failures_do_not_fall_back(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_writers(monkeypatch, errno.EMFILE)
    with pytest.raises(BlockError, match="Too many open files"):
        async with open_driver(zoo / "disk", OpenFlags(auto_read_only=True)):
            raise AssertionError("not reached")


async def test_native_aio_without_direct_io(zoo: Path) -> None:
    with pytest.raises(OptionError, match=r"aio=native was specified, but it requires cache\.direct=on"):
        async with open_driver(zoo / "disk", aio="native"):
            raise AssertionError("not reached")


async def test_io_uring_asked_for_and_forbidden(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(entries: int, params: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(uring, "sys_setup", forbidden)
    async with open_driver(zoo / "disk") as driver:
        assert driver.aio == "threads"
        assert await read(driver, 0, 4) == b"disk"
        with pytest.raises(BlockError, match="Unable to use io_uring"):
            async with open_driver(zoo / "disk", aio="io_uring"):
                raise AssertionError("not reached")


# -- direct I/O


async def test_a_file_system_without_direct_io(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_direct(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "open", no_direct)
    with pytest.raises(BlockError, match="filesystem does not support O_DIRECT"):
        async with open_driver(zoo / "disk", OpenFlags(cache_direct=True)):
            raise AssertionError("not reached")


@pytest.mark.parametrize(("works_from", "found"), [(512, 512), (4096, 4096), (8192, None)])
async def test_alignment_is_tried_where_the_kernel_does_not_tell(
    zoo: Path, monkeypatch: pytest.MonkeyPatch, works_from: int, found: int | None
) -> None:
    def preadv(fd: int, views: list[memoryview], offset: int) -> int:
        address = syscalls.address_of(views[0])
        if address % works_from or views[0].nbytes % works_from:
            raise OSError(errno.EINVAL, "Invalid argument")
        return 0

    monkeypatch.setattr(syscalls, "dio_alignment", lambda fd: None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", preadv)
        if found is None:
            with pytest.raises(BlockError, match="Could not find working O_DIRECT alignment"):
                async with open_driver(zoo / "disk", OpenFlags(cache_direct=True)):
                    raise AssertionError("not reached")
            return
        async with open_driver(zoo / "disk", OpenFlags(cache_direct=True)) as driver:
            assert (driver.limits().request_alignment, driver.limits().min_mem_alignment) == (found, found)


# -- names


@pytest.mark.parametrize(
    ("name", "meant"),
    [("a.img", "a.img"), ("file:a.img", "a.img"), ("file:///tmp/a", "///tmp/a"), ("file:file:x", "file:x")],
)
def test_names(name: str, meant: str) -> None:
    assert FileDriver.parse_filename(name) == {"filename": meant}
    assert HostDeviceDriver.parse_filename("host_device:/dev/x") == {"filename": "/dev/x"}


# -- reopening


async def reopen(driver: FileDriver, *, commit: bool = True, **changes: bool) -> None:
    host = driver.host
    assert isinstance(host, Host)
    state = ReopenState(host.flags.with_(**changes), None)
    await driver.reopen_prepare(state)
    if commit:
        driver.reopen_commit(state)
        host.flags = state.flags
    else:
        driver.reopen_abort(state)


async def test_reopening_read_only_and_back(zoo: Path) -> None:
    path = zoo / "disk"
    async with open_driver(path) as driver:
        await write(driver, 0, b"1")
        await reopen(driver, read_only=True)
        with pytest.raises(BlockError) as refused:
            await write(driver, 0, b"2")
        assert refused.value.errno == errno.EBADF
        await reopen(driver, read_only=False)
        await write(driver, 1, b"3")
        assert await read(driver, 0, 4) == b"13sk"
        await reopen(driver, cache_direct=True)
        assert driver.limits().request_alignment > 1
        await reopen(driver, cache_direct=False)
        assert driver.limits().request_alignment == 1


async def test_a_reopen_that_is_called_off_changes_nothing(zoo: Path) -> None:
    async with open_driver(zoo / "disk") as driver:
        before = set(os.listdir("/proc/self/fd"))
        await reopen(driver, commit=False, read_only=True)
        assert set(os.listdir("/proc/self/fd")) == before
        await write(driver, 0, b"still")
    assert content(zoo / "disk")[:5] == b"still"


async def test_a_reopen_that_fails_changes_nothing(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_driver(zoo / "disk", READ_ONLY) as driver:
        with monkeypatch.context() as patch:
            refuse_writers(patch, errno.EACCES)
            with pytest.raises(ReadOnly):
                await reopen(driver, read_only=False)
        assert await read(driver, 0, 4) == b"disk"


async def test_a_name_that_leads_elsewhere_is_not_reopened(zoo: Path) -> None:
    """What was written until now is in the file that was opened, and the rest must go there too."""
    async with open_driver(zoo / "disk") as driver:
        before = set(os.listdir("/proc/self/fd"))
        (zoo / "disk").rename(zoo / "moved")
        (zoo / "disk").write_bytes(bytes(4096))
        with pytest.raises(BlockError, match="it is another file now") as refused:
            await reopen(driver, read_only=True)
        assert refused.value.errno == errno.ESTALE
        assert set(os.listdir("/proc/self/fd")) == before
        await write(driver, 0, b"still")
    assert content(zoo / "moved")[:5] == b"still"


async def test_a_failed_open_holds_nothing(zoo: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    driver = FileDriver(Host())
    with pytest.raises(OptionError):
        await driver.open(FileOptions(filename=str(zoo / "disk"), aio="native"), MemoryOpener())
    assert set(os.listdir("/proc/self/fd")) == before
