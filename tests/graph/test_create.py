"""New images: complete, or not there."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from blockio.errors import BlockError
from blockio.graph.create import create_image
from blockio.graph.node import all_nodes
from tests.graph.rig import MAGIC, Path, Store, world


async def create(filename: str = "toy-store:new", driver: str = "toy", **options: Any) -> None:
    await create_image(driver, filename, options or {"size": "1k"}, path_factory=Path)


async def test_an_image_is_written_through_the_graph() -> None:
    with world():
        await create(size="1.5k")
        assert len(Store.disks["new"]) == 512 + 1536
        assert Store.disks["new"].startswith(MAGIC)
        assert Store.log[0] == "create new"
        assert Store.log[-2:] == ["flush new", "close new"]


async def test_an_existing_file_is_overwritten() -> None:
    with world(new=b"old" * 1000):
        await create(size=1)
        assert len(Store.disks["new"]) == 513


async def test_plain_storage() -> None:
    with world():
        with pytest.raises(BlockError, match="Invalid parameter 'shape'"):
            await create(driver="toy-store", size=1, shape="round")
        await create_image("toy-store", "toy-store:new", {"size": "1k"}, path_factory=Path)
        assert Store.disks["new"] == bytes(1024)


async def test_what_only_the_storage_knows_is_its() -> None:
    with world():
        await create(size=1, colour="red")
        assert Store.colour == "red"
        await create_image("toy", "toy-store:new", {"size": 1}, file_options={"colour": "blue"}, path_factory=Path)
        assert Store.colour == "blue"
        assert len(Store.disks["new"]) == 513  # the format says how long, not the image's size


@pytest.mark.parametrize(
    ("driver", "filename", "options", "message"),
    [
        ("xyz", "toy-store:new", {}, "Unknown file format 'xyz'"),
        ("toy", "foo:bar", {}, "Unknown protocol 'foo'"),
        ("raw", "toy-store:new", {}, "Format driver 'raw' does not support image creation"),
        ("toy-filter", "toy-store:new", {}, "Format driver 'toy-filter' does not support image creation"),
        ("toy", "null-co://", {"size": 1}, "Protocol driver 'null-co' does not support image creation"),
        ("toy", "toy-store:new", {"size": 1, "foo": 1}, "Invalid parameter 'foo'"),
        ("toy", "toy-store:new", {}, "Parameter 'size' is missing"),
    ],
)
async def test_what_cannot_be_made(driver: str, filename: str, options: dict[str, Any], message: str) -> None:
    with world():
        with pytest.raises(BlockError) as caught:
            await create_image(driver, filename, options, path_factory=Path)
        assert caught.value.message == message
        assert Store.disks == {}


STEPS = ["create new", "created new", "open new", "check new", "write new", "read new"]


@pytest.mark.parametrize("failing", STEPS)
@pytest.mark.parametrize("existed", [False, True])
async def test_a_step_that_fails_leaves_no_new_file(failing: str, existed: bool) -> None:
    with world(**({"new": b"old"} if existed else {})):
        Store.fail[failing] = BlockError("disk full")
        with pytest.raises(BlockError, match="disk full"):
            await create()
        assert ("new" in Store.disks) == existed  # what was there before is not ours to remove
        assert all_nodes() == []
        Store.fail.clear()
        await create()


@pytest.mark.parametrize("existed", [False, True])
async def test_cancelled_at_every_await(existed: bool) -> None:
    with world():
        turns = 0
        while True:
            Store.disks = {"new": bytearray(b"old")} if existed else {}
            task = asyncio.ensure_future(create())
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = task.done()
            task.cancel()
            await asyncio.wait([task])
            assert ("new" in Store.disks) == (existed or not task.cancelled())
            assert all_nodes() == []
            assert Store.held == 0
            if ended:
                break
            turns += 1
        assert turns > 5
