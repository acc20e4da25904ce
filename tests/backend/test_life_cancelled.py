"""Life, medium and migration, cancelled at each of their awaits: afterwards it is one or the other, and works."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockio import img
from blockio.backend import BlockBackend, activate_all, all_backends, inactivate_all, top_nodes
from blockio.graph.node import all_nodes
from blockio.graph.open import open_node
from blockio.io import NodeIO
from blockio.testing.cancel import cancel_at_every_await


class Machine:
    """A backend on a fresh qcow2 image: closing and inactivating it have much to write back, in many steps."""

    blk: BlockBackend

    def __init__(self, folder: Path) -> None:
        self.image = folder / "disk.qcow2"

    async def begin(self, _number: int) -> None:
        await img.create(str(self.image), "qcow2", size=1 << 20)
        self.blk = await BlockBackend.new_open(str(self.image), options={"driver": "qcow2"})
        self.blk.monitor_add_blk("disk0")
        await self.blk.co_pwritev(65536, b"before")

    async def works(self, _number: int) -> None:
        """It reads what was written, writes, closes, and leaves a clean image and nothing else behind."""
        blk = self.blk
        await blk.drain()  # what the scenario sent may still be under way
        assert blk.in_flight == 0
        assert not blk.quiesced
        assert blk.get_refcnt() == 1
        memory = bytearray(6)
        await blk.co_preadv(65536, memory)
        assert memory == b"before"
        await blk.co_pwritev(131072, b"after")
        await blk.close()
        await self.gone()

    async def gone(self) -> None:
        assert all_nodes() == []
        assert all_backends() == []
        assert (await img.check(img.Image(filename=str(self.image), format="qcow2"))).clean


async def test_giving_the_last_reference_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    async def scenario() -> None:
        request = machine.blk.aio_flush()
        await machine.blk.close()
        await request

    async def afterwards(number: int) -> None:
        if machine.blk.closed:
            await machine.gone()
        else:
            assert machine.blk.name == "disk0"
            await machine.works(number)

    assert await cancel_at_every_await(scenario, afterwards, before=machine.begin) > 1


async def test_changing_the_medium(tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    async def opened() -> None:
        node = await open_node(str(machine.image), options={"driver": "qcow2"}, path_factory=NodeIO)
        try:
            await machine.blk.insert_bs(node)
        finally:
            await node.unref()

    async def scenario() -> None:
        await machine.blk.remove_bs()
        await opened()

    async def afterwards(number: int) -> None:
        if machine.blk.bs is None:
            assert all_nodes() == []
            await opened()
        await machine.works(number)

    assert await cancel_at_every_await(scenario, afterwards, before=machine.begin) > 1


@pytest.mark.parametrize("everything", [False, True])
async def test_handing_the_image_over_and_back(tmp_path: Path, everything: bool) -> None:
    machine = Machine(tmp_path)

    async def scenario() -> None:
        if everything:
            await inactivate_all()
            await activate_all()
        else:
            await machine.blk.inactivate_root()
            await machine.blk.invalidate_cache()

    async def afterwards(number: int) -> None:
        node = machine.blk.bs
        assert node is not None
        assert node.children["file"].node.flags.inactive == node.flags.inactive
        await machine.blk.invalidate_cache()
        await machine.works(number)

    assert await cancel_at_every_await(scenario, afterwards, before=machine.begin) > 1


async def test_detaching_the_device_that_holds_it_last(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    device = object()

    async def begin(number: int) -> None:
        await machine.begin(number)
        machine.blk.attach_dev(device)

    async def scenario() -> None:
        request = machine.blk.aio_flush()
        await machine.blk.close()
        await machine.blk.detach_dev(device)
        await request

    async def afterwards(number: int) -> None:
        if machine.blk.get_attached_dev() is not None:
            await machine.blk.detach_dev(device)
        assert machine.blk.closed
        await machine.gone()

    assert await cancel_at_every_await(scenario, afterwards, before=begin) == 1  # from there on it goes to its end


async def test_walking(tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    async def scenario() -> None:
        async for node in top_nodes():
            assert node is machine.blk.bs

    async def afterwards(number: int) -> None:
        assert machine.blk.bs is not None
        assert machine.blk.bs.refcnt == 1
        await machine.works(number)

    await cancel_at_every_await(scenario, afterwards, before=machine.begin)
