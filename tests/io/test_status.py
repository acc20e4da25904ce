"""Block status: one layer, and a walk down the chain. Flags as letters: Data Zero Valid-offset Allocated Eof Raw."""

from __future__ import annotations

import pytest

from blockio.errors import OutOfRange
from blockio.io.status import block_status_above, is_allocated, is_allocated_above
from blockio.types import BlockLimits, BlockStatus, StatusFlags
from tests.io.world import Disk, DiskDriver, Rig, failing_after, in_format, on_disk, opened, pattern

K = 1024
LETTERS = {
    StatusFlags.DATA: "D",
    StatusFlags.ZERO: "Z",
    StatusFlags.OFFSET_VALID: "V",
    StatusFlags.RAW: "R",
    StatusFlags.ALLOCATED: "A",
    StatusFlags.EOF: "E",
    StatusFlags.RECURSE: "?",
    StatusFlags.COMPRESSED: "C",
}


def told(status: BlockStatus) -> tuple[str, int]:
    return "".join(letter for flag, letter in LETTERS.items() if status.flags & flag), status.length


async def test_a_disk_tells_what_its_driver_tells() -> None:
    disk = Disk(bytes(4 * K) + pattern(4 * K))
    async with opened(on_disk(disk)) as rig:
        first = await rig.io.co_block_status(100, 1 << 20)
        assert told(first) == ("ZVA", 4 * K - 100)
        assert (first.host_offset, first.node_name) == (100, rig.node.name)
        assert told(await rig.io.co_block_status(4 * K, 1 << 20)) == ("DVAE", 4 * K)
        assert told(await rig.io.co_block_status(8 * K, 10)) == ("E", 0)
        assert told(await rig.io.co_block_status(9 * K, 10)) == ("E", 0)
        assert told(await rig.io.co_block_status(0, 0)) == ("", 0)
        with pytest.raises(OutOfRange):
            await rig.io.co_block_status(-1, 10)
        rig.whole()


async def test_drivers_are_asked_about_whole_blocks() -> None:
    disk = Disk(pattern(4 * K), limits=BlockLimits(request_alignment=512))
    async with opened(on_disk(disk)) as rig:
        status = await rig.io.co_block_status(700, 100)
        assert told(status) == ("DVA", 100)
        assert status.host_offset == 700


async def test_a_format_tells_its_mapping() -> None:
    base = Disk(pattern(32 * K))
    async with opened(in_format(Disk(0), length=32 * K, backing=on_disk(base))) as rig:
        await rig.write(4 * K, pattern(4 * K))
        await rig.io.co_pwrite_zeroes(8 * K, 4 * K)
        assert told(await rig.io.co_block_status(0, 32 * K)) == ("", 4 * K)
        data = await rig.io.co_block_status(4 * K + 10, 32 * K)
        assert told(data) == ("DVA", 4 * K - 10)
        assert (data.host_offset, data.node_name) == (10, rig.node.children["file"].node_name)
        assert told(await rig.io.co_block_status(8 * K, 32 * K)) == ("ZA", 4 * K)
        assert told(await rig.io.co_block_status(31 * K, 32 * K)) == ("E", K)
        assert rig.format.readers == 0


async def test_without_a_backing_file_the_unallocated_is_zero_and_past_its_end_too() -> None:
    async with opened(in_format(Disk(0), length=32 * K)) as rig:
        assert told(await rig.io.co_block_status(0, K)) == ("Z", K)
    async with opened(in_format(Disk(0), length=32 * K, backing=on_disk(Disk(4 * K)))) as rig:
        assert told(await rig.io.co_block_status(0, K)) == ("", K)
        assert told(await rig.io.co_block_status(4 * K, K)) == ("Z", K)
        assert told(await rig.io.co_block_status(4 * K, K, want_zero=False)) == ("", K)


async def test_preallocated_metadata_looks_into_the_file() -> None:
    file = Disk(0)
    async with opened(in_format(file, length=32 * K)) as rig:
        await rig.write(0, pattern(4 * K))
        file.data[2 * K :] = bytes(2 * K)
        assert told(await rig.io.co_block_status(0, 4 * K)) == ("DVA", 4 * K)
        rig.format.may_be_hole = True
        assert told(await rig.io.co_block_status(0, 4 * K)) == ("DVA", 2 * K)
        assert told(await rig.io.co_block_status(2 * K, 2 * K)) == ("DZVA", 2 * K)
        assert told(await rig.io.co_block_status(0, 4 * K, want_zero=False)) == ("DVA", 4 * K)
        # Past the end of the file a format reads zeroes.
        del file.data[K:]
        rig.node.children["file"].node.driver.length = K  # type: ignore[union-attr]  # it is open
        assert told(await rig.io.co_block_status(K, K)) == ("DZVA", K)


async def chain(rig: Rig) -> str:
    """The depth at which each KiB of the top is found, and ``.`` where it is not."""
    depths = ""
    for at in range(0, rig.node.length, K):
        depth, length = await is_allocated_above(rig.node, None, at, K)
        assert length == K
        depths += str(depth) if depth else "."
    return depths


async def test_a_walk_down_the_chain() -> None:
    #        0123456789abcdef   KiB
    # top    11--..          16 KiB, clusters of 1 KiB
    # middle  22-            5 KiB long
    # base   333             3 KiB long
    base = Disk(pattern(3 * K))
    middle = in_format(Disk(0), length=5 * K, cluster=K, backing=on_disk(base))
    async with opened(in_format(Disk(0), length=16 * K, cluster=K, backing=middle)) as rig:
        under = rig.node.children["backing"].node
        await rig.write(0, pattern(2 * K))
        driver = under.driver
        assert driver is not None
        driver.table.update({1: 0, 2: driver.ZEROED})  # type: ignore[attr-defined]  # a ClusterFormat
        # 3 and 4: the base is short, so its zeroes count as allocated there; from 5 on the middle is.
        assert await chain(rig) == "112" + "33" + "2" * 11
        assert (await is_allocated(rig.node, 0, 16 * K)) == (True, K)
        assert (await is_allocated(rig.node, 2 * K, 16 * K)) == (False, K)
        assert (await is_allocated(rig.node, 16 * K, K)) == (False, 0)

        status = await block_status_above(rig.node, None, 2 * K, K)
        assert told(status) == ("ZA", K)
        assert status.depth == 2
        short = await block_status_above(rig.node, None, 3 * K, K)
        assert told(short) == ("ZA", K)
        assert short.depth == 3
        last = await block_status_above(rig.node, None, 15 * K, K)
        assert told(last) == ("ZAE", K)
        assert last.depth == 2
        assert told(await block_status_above(rig.node, under, 2 * K, K)) == ("", K)
        assert await is_allocated_above(rig.node, under, 2 * K, K) == (0, K)
        assert told(await block_status_above(rig.node, rig.node, 0, K)) == ("", K)
        rig.whole()


async def test_failing_to_look_into_the_file_changes_nothing() -> None:
    file = Disk(0)
    async with opened(in_format(file, length=32 * K)) as rig:
        await rig.write(0, pattern(4 * K))
        rig.format.may_be_hole = True
        edge = rig.node.children["file"]
        looked = 0

        async def broken(*_args: object, **_kwargs: object) -> BlockStatus:
            nonlocal looked
            looked += 1
            failing_after(0)()
            raise AssertionError

        edge.co_block_status = broken
        assert told(await rig.io.co_block_status(0, 4 * K)) == ("DVA", 4 * K)
        assert looked == 1


async def test_a_row_of_answers_reaches_no_further_than_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that reaches nowhere is the driver's fault: whoever walks over the disk would never end."""
    data = StatusFlags.DATA | StatusFlags.OFFSET_VALID
    lengths = [4 * K, 100 * K, 1]

    async def told(_driver: DiskDriver, offset: int, _nbytes: int) -> list[BlockStatus]:
        return [BlockStatus(data, length, offset, "") for length in lengths]

    monkeypatch.setattr(DiskDriver, "co_block_statuses", told)
    async with opened(on_disk(Disk(64 * K))) as rig:
        row = await rig.io.co_block_statuses(0, 16 * K)
        assert [group.lengths for group in row] == [[4 * K], [12 * K]]
        lengths[0] = 0
        with pytest.raises(RuntimeError, match="told nothing of the bytes at 0"):
            await rig.io.co_block_statuses(0, 16 * K)
        rig.whole()
