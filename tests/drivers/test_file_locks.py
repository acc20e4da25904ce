"""Lock bytes: which are taken, who is kept out, and that QEMU's tools and this driver exclude each other."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from blockio.aio import syscalls
from blockio.buffers import IoVector
from blockio.driver.base import ReopenState
from blockio.errors import BlockError, ImageLocked
from blockio.types import OpenFlags, Perm, PreallocMode
from blockio_drivers.file import FileCreateOptions, FileDriver
from tests.drivers.file_rig import Host, content, open_driver
from tests.support.qemu import QemuIo, qemu_img, qemu_io

READ = Perm.CONSISTENT_READ
WRITER = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE
NO_WRITERS = Perm.ALL & ~(Perm.WRITE | Perm.RESIZE)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"disk" * 1024)
    return path


def locked(path: Path) -> set[int]:
    """The bytes of the file that anybody has locked."""
    fd = os.open(path, os.O_RDONLY)
    try:
        return {byte for byte in range(96, 212) if syscalls.ofd_locked(fd, fcntl.F_WRLCK, byte)}
    finally:
        os.close(fd)


def become(driver: FileDriver, perm: Perm, shared: Perm) -> None:
    driver.check_perm(perm, shared)
    driver.set_perm(perm, shared)


async def test_the_bytes_of_a_writable_qcow2(path: Path) -> None:
    async with open_driver(path) as driver:
        become(driver, WRITER, NO_WRITERS)
        assert locked(path) == {100, 101, 103, 201, 203}
        become(driver, READ, NO_WRITERS)
        assert locked(path) == {100, 201, 203}
        become(driver, Perm.NONE, Perm.ALL)
        assert locked(path) == set()
        become(driver, WRITER, NO_WRITERS)
    assert locked(path) == set()


async def test_an_aborted_transaction_goes_back(path: Path) -> None:
    async with open_driver(path) as driver:
        become(driver, READ, NO_WRITERS)
        driver.check_perm(WRITER, Perm.NONE)
        assert locked(path) == {100, 101, 103, 200, 201, 202, 203}
        driver.abort_perm()
        assert locked(path) == {100, 201, 203}


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ((WRITER, NO_WRITERS), (WRITER, NO_WRITERS), 'Failed to get "write" lock'),
        ((WRITER, NO_WRITERS), (READ, NO_WRITERS), 'Failed to get shared "write" lock'),
        ((READ, NO_WRITERS), (WRITER, Perm.ALL), 'Failed to get "write" lock'),
        ((READ, Perm.ALL & ~Perm.RESIZE), (WRITER, Perm.ALL), 'Failed to get "resize" lock'),
        ((READ, Perm.ALL & ~READ), (READ, Perm.ALL), 'Failed to get "consistent read" lock'),
        ((READ, NO_WRITERS), (READ, NO_WRITERS), None),
        ((WRITER, NO_WRITERS), (READ, Perm.ALL), None),  # force-share
    ],
)
async def test_two_users_of_one_file(
    path: Path, first: tuple[Perm, Perm], second: tuple[Perm, Perm], message: str | None
) -> None:
    async with open_driver(path) as one, open_driver(path) as two:
        become(one, *first)
        before = locked(path)
        if message is None:
            become(two, *second)
            return
        with pytest.raises(ImageLocked) as refused:
            two.check_perm(*second)
        assert refused.value.errno == errno.EAGAIN
        assert str(refused.value) == f"{message}\nIs another process using the image [{path}]?"
        assert locked(path) == before


async def test_no_locks_where_nobody_wants_them(path: Path) -> None:
    async with open_driver(path, locking="off") as one, open_driver(path) as two:
        become(one, WRITER, Perm.NONE)
        assert locked(path) == set()
        become(two, WRITER, NO_WRITERS)


@pytest.mark.parametrize("locking", ["auto", "on"])
async def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch, locking: str) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(syscalls, "ofd_lock", no_locks)
    async with open_driver(path, locking=locking) as driver:
        if locking == "auto":
            become(driver, WRITER, NO_WRITERS)
            return
        with pytest.raises(BlockError, match="Failed to lock byte 100: No locks available"):
            driver.check_perm(WRITER, NO_WRITERS)


async def test_locks_go_along_when_reopening(path: Path) -> None:
    async with open_driver(path) as driver:
        become(driver, READ, NO_WRITERS)
        host = driver.host
        assert isinstance(host, Host)
        state = ReopenState(host.flags.with_(read_only=True), None)
        await driver.reopen_prepare(state)
        driver.check_perm(READ, Perm.ALL & ~Perm.WRITE)
        driver.reopen_commit(state)
        host.flags = state.flags
        driver.set_perm(READ, Perm.ALL & ~Perm.WRITE)
        assert locked(path) == {100, 201}
        async with open_driver(path) as other:
            with pytest.raises(ImageLocked):
                other.check_perm(WRITER, Perm.ALL)


async def test_locks_that_cannot_go_along_stay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel has no room for more locks at the one moment that cannot fail: nobody comes in between."""
    locks = syscalls.ofd_lock
    left = 2

    def no_room(fd: int, kind: int, start: int, nbytes: int = 1) -> None:
        nonlocal left
        if kind == fcntl.F_RDLCK:
            left -= 1
            if left < 0:
                raise OSError(errno.ENOLCK, "No locks available")
        locks(fd, kind, start, nbytes)

    async with open_driver(path) as driver:
        driver.check_perm(WRITER, NO_WRITERS)
        driver.set_perm(WRITER, NO_WRITERS)
        host = driver.host
        assert isinstance(host, Host)
        held = locked(path)
        assert held
        for turn in range(3):
            if turn < 2:
                monkeypatch.setattr(syscalls, "ofd_lock", no_room)
            state = ReopenState(host.flags.with_(read_only=turn % 2 == 0), None)
            await driver.reopen_prepare(state)
            left = 2
            driver.reopen_commit(state)
            host.flags = state.flags
            assert locked(path) == held
            monkeypatch.setattr(syscalls, "ofd_lock", locks)
            memory = bytearray(4096)
            await driver.co_preadv(0, IoVector.of(memory), 0)
            assert memory == b"disk" * 1024
        driver.set_perm(READ, Perm.ALL)
        assert locked(path) == {100}
    assert locked(path) == set()


async def test_creating_over_a_file_in_use(path: Path) -> None:
    async with open_driver(path) as driver:
        become(driver, READ, NO_WRITERS)
        with pytest.raises(ImageLocked, match='Failed to get "write" lock'):
            await FileDriver.co_create_file(str(path), FileCreateOptions(size=0, preallocation=PreallocMode.OFF))
        assert content(path) == b"disk" * 1024


# -- against the real thing


@pytest.mark.peer("qemu-io")
async def test_kept_out_by_qemu_io(path: Path) -> None:
    with QemuIo(path, format="raw"):
        async with open_driver(path) as driver:
            assert locked(path) >= {100, 101}
            with pytest.raises(ImageLocked, match='Failed to get shared "write" lock'):
                driver.check_perm(READ, NO_WRITERS)
            become(driver, WRITER, Perm.ALL)  # raw images may be shared
    async with open_driver(path) as driver:
        become(driver, WRITER, NO_WRITERS)


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_kept_out_by_qemu_io_on_qcow2(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    with QemuIo(path):
        assert locked(path) == {100, 101, 103, 201, 203}
        async with open_driver(path) as driver:
            with pytest.raises(ImageLocked, match='Failed to get "write" lock'):
                driver.check_perm(WRITER, NO_WRITERS)
            become(driver, READ, Perm.ALL)


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_qemu_io_is_kept_out(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    async with open_driver(path, OpenFlags()) as driver:
        become(driver, WRITER, NO_WRITERS)
        writer = qemu_io(path, "length", check=False)
        assert 'Failed to get "write" lock' in writer.stderr
        assert f"Is another process using the image [{path}]?" in writer.stderr
        reader = qemu_io(path, "length", options=("-r",), check=False)
        assert 'Failed to get shared "write" lock' in reader.stderr
        assert qemu_io(path, "length", options=("-r", "-U")).returncode == 0
    assert qemu_io(path, "length").returncode == 0
