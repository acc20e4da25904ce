"""The filter ``copy-on-read``: what is kept, down to where, and what may not change meanwhile."""

from __future__ import annotations

import asyncio
import errno
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from blockio.backend import BlockBackend
from blockio.buffers import IoVector
from blockio.driver.gate import AllowAll
from blockio.driver.registry import register, unregister
from blockio.errors import BlockError, OptionError, ReadOnly
from blockio.graph.mutate import append_node, drop_node, replace_child, set_backing
from blockio.graph.node import BlockNode, find_node
from blockio.graph.open import open_node
from blockio.io.node_io import NodeIO
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.faults import FaultFilter, FaultPlan, for_every_fault
from blockio.types import RequestFlags
from tests.support.qemu import assert_clean, qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

K = 1024
CLUSTER = 64 * K
PREFETCH = RequestFlags.PREFETCH
LAYERS = ("base", "mid", "top")


def make_chain(folder: Path) -> None:
    """Three images of eight clusters; base holds the first four, mid the third and fourth, top the fourth."""
    for index, name in enumerate(LAYERS):
        below = ("-b", f"{LAYERS[index - 1]}.qcow2", "-F", "qcow2") if index else ()
        qemu_img("create", "-q", "-f", "qcow2", *below, f"{name}.qcow2", "512k", cwd=folder)
        start = (0, 2, 3)[index]
        qemu_io(folder / f"{name}.qcow2", f"write -P {index + 1} {start * 64}k {(4 - start) * 64}k", format="qcow2")


def image(folder: Path, name: str, below: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The options of one layer, which is also the node's name."""
    file = {"driver": "file", "filename": str(folder / f"{name}.qcow2")}
    return {"driver": "qcow2", "node-name": name, "file": file, "backing": below}


def chain(folder: Path) -> dict[str, Any]:
    """The options of all three."""
    return image(folder, "top", image(folder, "mid", image(folder, "base")))


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[BlockBackend]:
    """The chain under the filter; all images are clean afterwards."""
    await asyncio.to_thread(make_chain, folder)
    spec = {"driver": "copy-on-read", "file": chain(folder), **options}
    async with await BlockBackend.new_open(options=spec, resize=True) as blk:
        yield blk
        assert blk.in_flight == 0
    for name in LAYERS:
        await asyncio.to_thread(assert_clean, folder / f"{name}.qcow2")


async def held(name: str) -> str:
    """The clusters that the node *name* itself holds, as a picture: ``A`` or ``-``."""
    node = find_node(name)
    assert node is not None
    picture = ""
    for offset in range(0, 8 * CLUSTER, CLUSTER):
        below = None if node.layer_below is None else node.layer_below.node
        depth, _ = await node.path.co_is_allocated_above(below, offset, CLUSTER)
        picture += "A" if depth else "-"
    return picture


async def read(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    memory = bytearray(b"?" * nbytes)
    await blk.co_preadv(offset, memory)
    return bytes(memory)


@pytest.mark.parametrize("bottom", [False, True])
async def test_conformance(tmp_path: Path, bottom: bool) -> None:
    numbers = itertools.count()

    async def make(length: int) -> Mapping[str, Any]:
        number = next(numbers)
        base, top = tmp_path / f"base{number}", tmp_path / f"top{number}"
        await asyncio.to_thread(qemu_img, "create", "-q", "-f", "qcow2", base, str(length))
        await asyncio.to_thread(qemu_img, "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
        below = {"driver": "qcow2", "node-name": f"n{number}", "file": {"driver": "file", "filename": str(base)}}
        spec = {"driver": "qcow2", "file": {"driver": "file", "filename": str(top)}, "backing": below}
        return {"driver": "copy-on-read", "file": spec, **({"bottom": f"n{number}"} if bottom else {})}

    # Each check makes its disk anew with the real tool; these are those in which a read filter could go wrong.
    for only in ("lives", "reads", "zero", "lanes", "cancel", "fault", "flush", "refuses", "read_only", "drain"):
        report = await check_driver(make, Traits(read_only=False), only=only)
        assert report.ok, f"\n{report}"


async def test_reads_are_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as blk:
        assert not blk.try_preadv(0, bytearray(512))
        assert await read(blk, CLUSTER - 10, 20) == b"\1" * 20
        assert await held("top") == "AA-A----"
        assert await read(blk, 2 * CLUSTER, CLUSTER) == b"\2" * CLUSTER
        assert await read(blk, 5 * CLUSTER, 10) == bytes(10)
        assert await held("top") == "AAAA-A--"
        assert await held("mid") == "--AA----"


@pytest.mark.parametrize(("bottom", "kept"), [("top", "---A----"), ("mid", "--AA----"), ("base", "AAAA----")])
async def test_down_to_the_bottom(tmp_path: Path, bottom: str, kept: str) -> None:
    """One read over all of it; what lies below the bottom, or nowhere, is only read."""
    async with opened(tmp_path, bottom=bottom) as blk:
        want = b"\1" * 2 * CLUSTER + b"\2" * CLUSTER + b"\3" * CLUSTER + bytes(4 * CLUSTER)
        assert await read(blk, 0, 8 * CLUSTER) == want
        assert await held("top") == kept
        assert await read(blk, 0, 8 * CLUSTER) == want


@pytest.mark.parametrize(("bottom", "kept"), [(None, "AA-A----"), ("mid", "---A----"), ("base", "AA-A----")])
async def test_prefetch(tmp_path: Path, bottom: str | None, kept: str) -> None:
    """It keeps what a read would, without memory for the data, and does nothing where it has nothing to do."""
    options = {} if bottom is None else {"bottom": bottom}
    async with opened(tmp_path, **options) as blk:
        node = blk.bs
        assert node is not None
        assert isinstance(node.path, NodeIO)
        await node.path.co_preadv(100, IoVector([], 2 * CLUSTER - 200), PREFETCH)
        assert await held("top") == kept
        await node.path.co_preadv(8 * CLUSTER, IoVector([], CLUSTER), PREFETCH)
        assert await held("top") == kept


async def test_a_disk_longer_than_its_backing_file(tmp_path: Path) -> None:
    """Past the end of all layers below there are zeroes (QEMU 7.2 leaves the caller's memory as it was)."""
    async with opened(tmp_path, bottom="base") as blk:
        await blk.co_truncate(16 * CLUSTER)
        assert await read(blk, 7 * CLUSTER, 4 * CLUSTER) == bytes(4 * CLUSTER)


async def test_the_frozen_part_cannot_be_changed(tmp_path: Path) -> None:
    async with opened(tmp_path, bottom="mid") as blk:
        cor, top, mid, base = (blk.bs, *(find_node(name) for name in ("top", "mid", "base")))
        assert cor is not None
        assert top is not None
        assert mid is not None
        assert base is not None
        changes: list[Callable[[], Awaitable[None]]] = [
            lambda: set_backing(top, None),
            lambda: set_backing(top, base),
            lambda: replace_child(cor.children["file"], base),
            lambda: drop_node(cor),
            lambda: drop_node(top),
        ]
        for change in changes:
            with pytest.raises(BlockError, match=r"Cannot change '\w+' link from '.*' to '(mid|top)'") as caught:
                await change()
            assert caught.value.errno == errno.EPERM
        again = {"driver": "copy-on-read", "bottom": "mid", "file": "top"}
        with pytest.raises(BlockError, match="Cannot change 'backing' link from 'top' to 'mid'"):
            await open_node(options=again, path_factory=NodeIO)
        base.ref()
        await set_backing(mid, None)  # below the bottom everybody may do as they like
        assert await read(blk, 0, CLUSTER) == bytes(CLUSTER)
        await set_backing(mid, base)
        await base.unref()


async def test_let_go_it_can(tmp_path: Path) -> None:
    async with opened(tmp_path) as blk:
        top = find_node("top")
        mid = find_node("mid")
        assert top is not None
        assert mid is not None
        node = await open_node(options={"driver": "copy-on-read", "bottom": "mid", "file": "top"}, path_factory=NodeIO)
        await node.unref()
        mid.ref()
        await set_backing(top, None)
        assert await read(blk, 0, 10) == bytes(10)
        await set_backing(top, mid)
        await mid.unref()


async def test_put_into_a_live_chain_and_taken_out_again(tmp_path: Path) -> None:
    await asyncio.to_thread(make_chain, tmp_path)
    async with await BlockBackend.new_open(options=chain(tmp_path)) as blk:
        assert isinstance(blk.bs, BlockNode)
        top = blk.bs
        cor = await open_node(options={"driver": "copy-on-read", "file": "top"}, path_factory=NodeIO)
        await append_node(cor, top)
        assert blk.bs is cor
        await read(blk, 0, 10)
        await drop_node(cor)
        await cor.unref()
        await read(blk, CLUSTER, 10)
        assert await held("top") == "A--A----"


@pytest.mark.parametrize(
    ("bottom", "message"),
    [
        ("nope", "Bottom node 'nope' not found"),
        ("filter", "Bottom node 'filter' is a filter"),
        ("other", "Bottom node 'other' is not in the backing chain of '#block"),
    ],
)
async def test_bad_bottoms(tmp_path: Path, bottom: str, message: str) -> None:
    await asyncio.to_thread(make_chain, tmp_path)
    other = await open_node(options={"driver": "null-co", "node-name": "other"}, path_factory=NodeIO)
    below = {"driver": "copy-on-read", "node-name": "filter", "file": chain(tmp_path)}
    with pytest.raises(OptionError, match=message):
        await BlockBackend.new_open(options={"driver": "copy-on-read", "bottom": bottom, "file": below})
    await other.unref()
    assert find_node("top") is None


async def test_an_image_names_no_bottom(tmp_path: Path) -> None:
    """A backing file may be named with options, but it is read-only, and what it names is not looked for."""
    await asyncio.to_thread(make_chain, tmp_path)
    spec = 'json:{"driver":"copy-on-read","bottom":"mine","file":{"driver":"qcow2","file":{"driver":"file",'
    spec += f'"filename":"{tmp_path}/base.qcow2"}}}}}}'
    await asyncio.to_thread(qemu_img, "rebase", "-u", "-b", spec, "-F", "qcow2", tmp_path / "mid.qcow2")
    mine = await open_node(options={"driver": "null-co", "node-name": "mine"}, path_factory=NodeIO)
    with pytest.raises(BlockError, match="Could not open backing file: Block node is read-only"):
        await BlockBackend.new_open(str(tmp_path / "mid.qcow2"), options={"driver": "qcow2"}, gate=AllowAll())
    await mine.unref()


async def test_it_must_be_able_to_write(tmp_path: Path) -> None:
    await asyncio.to_thread(make_chain, tmp_path)
    with pytest.raises(ReadOnly, match="Block node is read-only"):
        await BlockBackend.new_open(options={"driver": "copy-on-read", "read-only": True, "file": chain(tmp_path)})


async def test_a_fault_at_every_operation(tmp_path: Path) -> None:
    """Each read fails or shows what was there; what was kept is right."""
    await asyncio.to_thread(make_chain, tmp_path)
    register(FaultFilter)
    plan = FaultPlan()
    top = tmp_path / "top.qcow2"
    blank = await asyncio.to_thread(top.read_bytes)

    async def scenario() -> None:
        await asyncio.to_thread(top.write_bytes, blank)
        options = chain(tmp_path)
        options["file"] = {"driver": FaultFilter.name, "plan": plan.name, "file": options["file"]}
        nth, plan.nth = plan.nth, 0
        blk = await BlockBackend.new_open(options={"driver": "copy-on-read", "bottom": "base", "file": options})
        plan.arm(nth)
        for offset, want in ((100, b"\1"), (2 * CLUSTER, b"\2")):
            try:
                assert await read(blk, offset, 5000) == want * 5000
            except BlockError:
                plan.nth = 0
                assert await read(blk, offset, 5000) == want * 5000
        with suppress(BlockError):
            await blk.close()

    try:
        with plan:
            assert await for_every_fault(plan, scenario) > 3
    finally:
        unregister(FaultFilter)


async def test_cancelled_at_every_await(tmp_path: Path) -> None:
    async with opened(tmp_path, bottom="base") as blk:

        async def scenario() -> None:
            await read(blk, 0, 3 * CLUSTER)

        async def afterwards(_nth: int) -> None:
            assert blk.in_flight == 0
            assert await read(blk, 3 * CLUSTER - 5, 10) == b"\2" * 5 + b"\3" * 5

        assert await cancel_at_every_await(scenario, afterwards) >= 1
        assert await read(blk, 0, CLUSTER) == b"\1" * CLUSTER
