"""The list of all backends, the monitor's names, and what they may be."""

from __future__ import annotations

import gc

import pytest

from blockio.backend import BlockBackend, all_backends, by_name, named_backends
from blockio.errors import OptionError
from blockio.testing.driver import MemoryDisk


async def test_named_and_unnamed() -> None:
    async with BlockBackend() as one, BlockBackend() as two:
        assert one.name == ""
        one.monitor_add_blk("disk0")
        two.monitor_add_blk("disk1")
        assert (one.name, by_name("disk0")) == ("disk0", one)
        assert BlockBackend.by_name("disk1") is two
        assert named_backends() == [one, two]
        one.monitor_remove_blk()
        one.monitor_remove_blk()
        assert by_name("disk0") is None
        one.monitor_add_blk("disk0")
        assert named_backends() == [two, one]
    assert by_name("disk0") is None


async def test_walking_the_lists() -> None:
    async with BlockBackend() as one, BlockBackend() as two, BlockBackend() as three:
        three.monitor_add_blk("c")
        one.monitor_add_blk("a")
        assert BlockBackend.next() is three
        assert BlockBackend.next(three) is one
        assert BlockBackend.next(one) is None
        with pytest.raises(ValueError, match="not on the list"):
            BlockBackend.next(two)
        walked = []
        blk = BlockBackend.all_next()
        while blk is not None:
            walked.append(blk)
            blk = BlockBackend.all_next(blk)
        assert walked == all_backends() == [one, two, three]


@pytest.mark.parametrize("name", ["0disk", "-x", "a b", "a/b", "ünder", "a\n", "_a", "#block1"])
async def test_names_that_are_none(name: str) -> None:
    async with BlockBackend() as blk:
        with pytest.raises(OptionError) as caught:
            blk.monitor_add_blk(name)
        assert str(caught.value) == "Invalid device name"
        assert blk.name == ""


async def test_names_that_are_taken(disk: MemoryDisk) -> None:
    async with (
        await BlockBackend.new_open(options=disk.options(), node_name="node0") as one,
        BlockBackend() as two,
    ):
        one.monitor_add_blk("disk0")
        with pytest.raises(OptionError) as caught:
            two.monitor_add_blk("disk0")
        assert str(caught.value) == "Device with id 'disk0' already exists"
        with pytest.raises(OptionError) as caught:
            two.monitor_add_blk("node0")
        assert str(caught.value) == "Device name 'node0' conflicts with an existing node name"
        with pytest.raises(OptionError) as caught:
            await BlockBackend.new_open(options=disk.options(), node_name="disk0")
        assert str(caught.value) == "node-name=disk0 is conflicting with a device id"


async def test_mistakes() -> None:
    blk = BlockBackend()
    with pytest.raises(ValueError, match="empty"):
        blk.monitor_add_blk("")
    blk.monitor_add_blk("disk0")
    with pytest.raises(RuntimeError, match="monitor_remove_blk"):
        blk.monitor_add_blk("disk1")
    await blk.close()
    assert blk.name == ""
    with pytest.raises(RuntimeError, match="is closed"):
        blk.monitor_add_blk("disk0")


async def test_the_monitor_holds_what_it_names_nobody_holds_the_rest() -> None:
    BlockBackend().monitor_add_blk("kept")
    BlockBackend()
    gc.collect()
    (kept,) = all_backends()
    assert kept.name == "kept"
    await kept.close()
    assert all_backends() == []


def test_a_backend_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        BlockBackend()
