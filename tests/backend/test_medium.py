"""Whether there is a medium: the root, the tray, the real device below."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest

from blockio.backend import BlockBackend, BlockDevOps, DeviceTrayMoved
from blockio.errors import BlockError, NoMedium
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.driver import MemoryDisk, MemoryDriver
from blockio.types import Perm


class Cdrom(BlockDevOps):
    """A tray that the guest moves and locks; ``refuse`` is raised by the next load."""

    id = "cd0"

    def __init__(self) -> None:
        self.open = False
        self.locked = False
        self.refuse: OSError | None = None
        self.told: list[str] = []

    def change_media(self, load: bool) -> None:
        self.told.append("load" if load else "unload")
        if self.refuse is not None:
            raise self.refuse
        self.open = not load

    def eject_request(self, force: bool) -> None:
        self.told.append(f"eject{'!' if force else '?'}")

    def is_tray_open(self) -> bool:
        return self.open

    def is_medium_locked(self) -> bool:
        return self.locked


REQUESTS: list[Callable[[BlockBackend], Awaitable[object]]] = [
    lambda blk: blk.co_preadv(0, bytearray(512)),
    lambda blk: blk.co_pwritev(0, bytes(512)),
    lambda blk: blk.co_pwrite_zeroes(0, 512),
    lambda blk: blk.co_pdiscard(0, 512),
    lambda blk: blk.co_flush(),
    lambda blk: blk.co_truncate(4096),
    lambda blk: blk.co_getlength(),
    lambda blk: blk.co_block_status(0, 512),
    lambda blk: blk.co_get_info(),
    lambda blk: blk.aio_preadv(0, bytearray(512)),
    lambda blk: blk.aio_flush(),
    lambda blk: asyncio.to_thread(blk.pread, 0, 512),
    lambda blk: asyncio.to_thread(blk.pwrite, 0, bytes(512)),
    lambda blk: asyncio.to_thread(blk.flush),
]


async def nothing_works(blk: BlockBackend) -> None:
    for request in REQUESTS:
        with pytest.raises(NoMedium):
            await request(blk)
    with pytest.raises(NoMedium):
        blk.getlength()
    assert not blk.try_preadv(0, bytearray(512))
    assert not blk.try_pwritev(0, bytes(512))


async def everything_works(blk: BlockBackend) -> None:
    for request in REQUESTS:
        await request(blk)


async def test_empty_there_is_no_medium(blk: BlockBackend) -> None:
    assert blk.is_inserted()
    assert blk.is_available()
    await everything_works(blk)
    await blk.remove_bs()
    assert not blk.is_inserted()
    assert not blk.is_available()
    await nothing_works(blk)


async def test_an_open_tray_hides_the_medium(blk: BlockBackend, disk: MemoryDisk) -> None:
    disk.fast = True
    device = Cdrom()
    blk.set_dev_ops(device)
    assert blk.try_preadv(0, bytearray(512))
    assert blk.try_pwritev(0, bytes(512))
    device.open = True  # the device tells nobody: it is asked
    assert blk.is_inserted()
    assert not blk.is_available()
    await nothing_works(blk)
    device.open = False
    await everything_works(blk)
    assert blk.try_preadv(0, bytearray(512))
    device.open = True
    blk.set_dev_ops(None)
    assert blk.try_preadv(0, bytearray(512))


async def test_a_request_that_parked_meets_the_open_tray(blk: BlockBackend) -> None:
    device = Cdrom()
    blk.set_dev_ops(device)
    async with blk.drained():
        parked = blk.aio_pwritev(0, b"x")
        device.open = True
    with pytest.raises(NoMedium):
        await parked


async def test_what_a_device_has(blk: BlockBackend) -> None:
    class Fixed(BlockDevOps):
        """Neither tray nor lock, and nothing to change."""

    def has() -> tuple[bool, bool, bool, bool]:
        return (
            blk.dev_has_removable_media(),
            blk.dev_has_tray(),
            blk.dev_is_tray_open(),
            blk.dev_is_medium_locked(),
        )

    assert has() == (True, False, False, False)  # without a device anything may be put in
    blk.attach_dev(blk)
    assert has() == (False, False, False, False)
    blk.set_dev_ops(Fixed())
    assert has() == (False, False, False, False)
    device = Cdrom()
    blk.set_dev_ops(device)
    assert has() == (True, True, False, False)
    device.open = device.locked = True
    assert has() == (True, True, True, True)
    await blk.detach_dev(blk)


async def test_change_of_media_and_the_tray(blk: BlockBackend) -> None:
    events: list[object] = []
    device = Cdrom()
    blk.listen(events.append)
    blk.monitor_add_blk("disk0")
    blk.dev_change_media_cb(True)  # nobody to tell
    blk.attach_dev(device)
    blk.set_dev_ops(device)
    blk.dev_change_media_cb(False)
    blk.dev_change_media_cb(False)  # open already: no event
    blk.dev_change_media_cb(True)
    assert device.told == ["unload", "unload", "load"]
    assert events == [DeviceTrayMoved("disk0", "cd0", True), DeviceTrayMoved("disk0", "cd0", False)]
    device.refuse = BlockError("wrong disc")
    device.open = True
    with pytest.raises(BlockError, match="wrong disc"):
        blk.dev_change_media_cb(True)
    assert device.open
    assert len(events) == 2
    with pytest.raises(RuntimeError, match="cannot refuse"):
        blk.dev_change_media_cb(False)
    blk.dev_eject_request(False)
    blk.dev_eject_request(True)
    assert device.told[-2:] == ["eject?", "eject!"]
    await blk.detach_dev(device)
    blk.dev_eject_request(True)  # nobody to ask
    assert device.told[-1] == "eject!"


class Drive(MemoryDriver):
    """A real device: a medium that can go, a tray, a lock."""

    name = "drive"
    inserted = True

    def __init__(self, host: object) -> None:
        super().__init__(host)  # type: ignore[arg-type]  # whatever the framework hands in
        self.told: list[str] = []

    def is_inserted(self) -> bool:
        return self.inserted

    def eject(self, eject_flag: bool) -> None:
        self.told.append("open" if eject_flag else "close")

    def lock_medium(self, locked: bool) -> None:
        self.told.append("lock" if locked else "unlock")


@pytest.fixture
def drive() -> Iterator[type[Drive]]:
    from blockio.driver.registry import register, unregister  # only this fixture needs them

    register(Drive)
    yield Drive
    unregister(Drive)


@pytest.mark.parametrize("through_a_window", [False, True])
async def test_the_real_device_below(disk: MemoryDisk, drive: type[Drive], through_a_window: bool) -> None:
    disk.fast = True
    options = disk.options(driver="drive")
    if through_a_window:
        options = {"driver": "raw", "file": options}
    events: list[object] = []
    async with await BlockBackend.new_open(options=options, resize=True) as blk:
        blk.listen(events.append)
        node = blk.bs
        assert node is not None
        while node.children:
            node = node.children["file"].node
        driver = node.driver
        assert isinstance(driver, Drive)
        blk.lock_medium(True)
        blk.lock_medium(False)
        blk.eject(True)
        blk.eject(False)
        assert driver.told == ["lock", "unlock", "open", "close"]
        assert events == [DeviceTrayMoved("", "", True), DeviceTrayMoved("", "", False)]

        device = Cdrom()
        blk.set_dev_ops(device)
        await everything_works(blk)
        driver.inserted = False
        driver.host.media_changed(False)
        assert device.told == ["unload"]
        device.open = False
        assert not blk.is_inserted()
        await nothing_works(blk)
        driver.inserted = True
        device.refuse = BlockError("too late to refuse")
        driver.host.media_changed(True)
        assert blk.is_available()
        await everything_works(blk)


async def test_the_real_device_of_a_throttled_backend(disk: MemoryDisk, drive: type[Drive]) -> None:
    async with await BlockBackend.new_open(options=disk.options(driver="drive")) as blk:
        blk.throttle.io_limits_enable("group")
        assert blk.bs is not None
        assert isinstance(blk.bs.driver, Drive)
        blk.bs.driver.inserted = False
        with pytest.raises(NoMedium):
            await blk.co_preadv(0, bytearray(512))
        await blk.throttle.io_limits_disable()


async def test_commands_without_a_real_device(blk: BlockBackend) -> None:
    events: list[object] = []
    blk.listen(events.append)
    blk.lock_medium(True)
    blk.eject(True)
    await blk.remove_bs()
    blk.lock_medium(False)
    blk.eject(False)  # the guest moves its tray whatever lies in it
    assert events == [DeviceTrayMoved("", "", True), DeviceTrayMoved("", "", False)]


async def test_a_medium_changed_under_a_device(disk: MemoryDisk) -> None:
    """As a monitor does it: open the tray, take the medium out, put another in, close the tray."""
    steps: list[str] = []
    device = Cdrom()
    with MemoryDisk(4096) as other:
        async with await BlockBackend.new_open(options=disk.options()) as blk:
            blk.attach_dev(device)
            blk.set_dev_ops(device)
            blk.add_remove_bs_notifier(lambda: steps.append(f"before removal {blk.is_inserted()}"))
            blk.add_insert_bs_notifier(lambda: steps.append(f"after insertion {blk.is_inserted()}"))
            await blk.co_pwritev(0, b"old")
            blk.dev_change_media_cb(False)
            await blk.remove_bs()
            node = await open_node(options=other.options(), flags=blk.get_flags(), path_factory=NodeIO)
            await blk.insert_bs(node)
            await node.unref()
            assert not blk.is_available()
            blk.dev_change_media_cb(True)
            await blk.co_pwritev(0, b"new")
            await blk.detach_dev(device)
        assert disk.data[:3] == b"old"
        assert other.data[:3] == b"new"
    assert steps == ["before removal True", "after insertion True", "before removal True"]
    assert device.told == ["unload", "load"]


async def test_counted_although_there_is_no_medium() -> None:
    async with BlockBackend(Perm.WRITE) as blk:
        request = blk.aio_pwritev(0, b"x")
        assert blk.in_flight == 1
        await blk.drain()
        assert blk.in_flight == 0
        with pytest.raises(NoMedium):
            await request
