"""What the driver serves without a coroutine: data, zeroes and what lies below, down a whole chain of overlays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio import BlockBackend, img
from blockio import open as open_image
from blockio.driver.gate import AllowAll
from blockio.errors import NoMedium
from blockio.graph.mutate import set_backing
from blockio.graph.open import open_node
from blockio.io import NodeIO
from tests.support.explore import few
from tests.support.qemu import assert_clean, pattern

K = 1024
CLUSTER = 64 * K
SIZE = 16 * CLUSTER
LAYERS = 6


async def overlay(path: Path, below: Path | None, *, size: int = SIZE, **options: str) -> Path:
    await img.create(
        str(path),
        "qcow2",
        size=size,
        options=options,
        backing_file=str(below) if below else None,
        backing_format=below.suffix[1:] if below else None,
        open_backing=False,
        gate=AllowAll(),
    )
    return path


@asynccontextmanager
async def opened(path: Path, **more: object) -> AsyncIterator[BlockBackend]:
    async with open_image(str(path), format="qcow2", gate=AllowAll(), **more) as blk:  # type: ignore[arg-type]  # options
        yield blk


def fast(blk: BlockBackend, offset: int, nbytes: int) -> bytes | None:
    """What the fast lane says; None where it leaves the request to the slow one."""
    memory = bytearray(b"\xee" * nbytes)
    return bytes(memory) if blk.try_preadv(offset, memory) else None


async def slow(blk: BlockBackend, offset: int, nbytes: int) -> bytes:
    blk.set_lanes("slow")
    memory = bytearray(b"\xee" * nbytes)
    await blk.co_preadv(offset, memory)
    blk.set_lanes("auto")
    return bytes(memory)


async def warm(blk: BlockBackend) -> None:
    """Every layer's tables in memory."""
    await slow(blk, 0, blk.getlength())


@pytest.mark.parametrize("extended", ["off", "on"])
async def test_bytes_of_every_layer_zeroes_and_nothing(tmp_path: Path, extended: str) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(pattern(SIZE))
    path = base
    for layer in range(LAYERS):
        path = await overlay(tmp_path / f"{layer}.qcow2", path, extended_l2=extended)
        async with opened(path) as blk:
            await blk.co_pwritev(layer * CLUSTER, bytes([layer + 1]) * CLUSTER)
    async with opened(path) as blk:
        await blk.co_pwrite_zeroes(LAYERS * CLUSTER, CLUSTER)
        await warm(blk)
        for layer in range(LAYERS):
            assert fast(blk, layer * CLUSTER + 512, 4096) == bytes([layer + 1]) * 4096
        assert fast(blk, LAYERS * CLUSTER, 4096) == bytes(4096)
        far = (LAYERS + 1) * CLUSTER + 100
        assert fast(blk, far, 4096) == pattern(SIZE)[far : far + 4096]
        assert fast(blk, CLUSTER - 10, 20) is None, "two layers are two requests"


async def test_nothing_below_reads_as_zeroes_and_never_opens_an_engine(tmp_path: Path) -> None:
    path = await overlay(tmp_path / "alone.qcow2", None)
    async with opened(path) as blk:
        assert fast(blk, 100, 5000) == bytes(5000), "no table, no cluster, no file"
        view = memoryview(bytes(10))
        assert not blk.try_preadv(0, view), "memory that cannot be written is the slow lane's to refuse"
        with pytest.raises(TypeError):
            await blk.co_preadv(0, view)


async def test_a_backing_file_that_ends_early(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(pattern(CLUSTER + 1024))
    async with opened(await overlay(tmp_path / "top.qcow2", base)) as blk:
        whole = pattern(CLUSTER + 1024) + bytes(SIZE)
        assert fast(blk, CLUSTER, 1024) == whole[CLUSTER : CLUSTER + 1024]
        assert fast(blk, CLUSTER, 1025) is None, "two requests: some below, some nowhere"
        assert fast(blk, CLUSTER + 1024, 3000) == bytes(3000)
        assert await slow(blk, CLUSTER, 4096) == whole[CLUSTER : CLUSTER + 4096]


async def test_a_layer_that_is_lost_is_no_layer_that_ends_early(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(pattern(SIZE))
    middle = await overlay(tmp_path / "middle.qcow2", base)
    async with opened(await overlay(tmp_path / "top.qcow2", middle)) as blk:
        assert fast(blk, CLUSTER, 512) == pattern(SIZE)[CLUSTER : CLUSTER + 512]
        root = blk.root
        assert root is not None
        edge = root.node.backing
        assert edge is not None
        io = edge.node.path
        assert isinstance(io, NodeIO)
        async with io.request(0, CLUSTER, serialising=True):
            assert fast(blk, CLUSTER, 512) is None, "somebody is at work below"
        edge.node.corrupted("on purpose", fatal=True)
        assert fast(blk, CLUSTER, 512) is None
        assert fast(blk, 0, 512) is None
        with pytest.raises(NoMedium):
            await blk.co_preadv(CLUSTER, bytearray(512))


async def test_a_chain_longer_than_a_call_stack(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(pattern(SIZE))
    path = base
    for layer in range(70):
        path = await overlay(tmp_path / f"{layer}.qcow2", path, cluster_size="512")
    async with opened(path) as blk:
        memory = bytearray(4096)
        for offset in (0, 4096, 700_000):
            await blk.co_preadv(offset, memory)
            assert memory == pattern(SIZE)[offset : offset + 4096]


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("compat", ["0.10", "1.1"])
async def test_zeroes_hide_a_backing_file_that_came_later(tmp_path: Path, compat: str) -> None:
    """A live snapshot's overlay gets its backing file while it is open: every part of the driver must know."""
    base = tmp_path / "base.raw"
    base.write_bytes(b"\xaa" * SIZE)
    path = await overlay(tmp_path / "top.qcow2", None, compat=compat)
    async with opened(path) as blk:
        below = await open_node(str(base), options={"driver": "raw"}, path_factory=NodeIO, gate=AllowAll())
        root = blk.root
        assert root is not None
        await set_backing(root.node, below)
        await below.unref()
        assert fast(blk, 0, 4096) == b"\xaa" * 4096
        await blk.co_pwrite_zeroes(0, CLUSTER)
        await blk.co_pwrite_zeroes(3 * CLUSTER + 5, 1000)
        await warm(blk)
        assert await slow(blk, 0, CLUSTER + 1) == bytes(CLUSTER) + b"\xaa"
        assert fast(blk, 512, 4096) == bytes(4096)
        assert await slow(blk, 3 * CLUSTER, 2000) == b"\xaa" * 5 + bytes(1000) + b"\xaa" * 995
        await set_backing(root.node, None)
        assert await slow(blk, CLUSTER, 10) == bytes(10)
        assert fast(blk, CLUSTER, 10) == bytes(10)
    assert_clean(path)


async def test_a_corrupt_image_serves_nothing(tmp_path: Path) -> None:
    path = await overlay(tmp_path / "wrong.qcow2", None)
    async with opened(path) as blk:
        await blk.co_pwritev(0, b"x" * CLUSTER)
    with path.open("r+b") as file:
        l1_offset = int.from_bytes(file.read(48)[40:48], "big")
        file.seek(l1_offset)
        file.seek(int.from_bytes(file.read(8), "big") & (2**56 - 512))
        file.write((1 << 63 | 0x1234).to_bytes(8, "big"))
    async with opened(path) as blk:
        assert fast(blk, SIZE - 512, 512) is None, "its table is not in memory"
        with pytest.raises(OSError, match="unaligned"):
            await blk.co_preadv(0, bytearray(512))
        assert fast(blk, SIZE - 512, 512) is None
        assert fast(blk, 0, 512) is None


@few(6)
@given(st.data())
async def test_the_lanes_agree(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Random overlays; whatever a lane serves is what the slow one reads."""
    folder = tmp_path_factory.mktemp("agree")
    small = 4 * K
    size = 64 * small
    base = folder / "base.raw"
    base.write_bytes(pattern(data.draw(st.integers(1, size), "base")))
    model = bytearray(base.read_bytes().ljust(size, b"\0"))
    path: Path = base
    places = st.tuples(st.integers(0, size - 1), st.integers(1, 5 * small), st.sampled_from(["write", "zero"]))
    for layer in range(data.draw(st.integers(1, 3), "layers")):
        path = await overlay(folder / f"{layer}.qcow2", path, size=size, cluster_size=str(small))
        async with opened(path) as blk:
            for offset, nbytes, what in data.draw(st.lists(places, max_size=4), "changes"):
                end = min(size, offset + nbytes)
                new = pattern(end - offset, layer) if what == "write" else bytes(end - offset)
                model[offset:end] = new
                if what == "write":
                    await blk.co_pwritev(offset, new)
                else:
                    await blk.co_pwrite_zeroes(offset, len(new))
    async with opened(path, read_only=True) as blk:
        assert await slow(blk, 0, size) == model
        for offset in range(0, size, small // 2):
            found = fast(blk, offset, small // 2)
            assert found is None or found == model[offset : offset + small // 2]
        offset = data.draw(st.integers(0, size - 1), "at")
        nbytes = data.draw(st.integers(1, min(9 * small, size - offset)), "of")
        assert fast(blk, offset, nbytes) in {None, bytes(model[offset : offset + nbytes])}
        for lane in ("fast", "started"):
            blk.set_lanes(lane)
            memory = bytearray(nbytes)
            await blk.co_preadv(offset, memory)
            assert memory == model[offset : offset + nbytes]


async def test_a_started_read_is_in_flight_at_every_node_of_the_chain(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(pattern(SIZE))
    path = await overlay(tmp_path / "b.qcow2", await overlay(tmp_path / "a.qcow2", base))
    async with opened(path, read_only=True) as blk:
        await warm(blk)
        edge = blk.root
        assert edge is not None
        memory = bytearray(4096)
        flight = edge.start_preadv(8192, [memory], 4096)
        if flight is None:  # no ring here: the slow lane does it
            await blk.co_preadv(8192, memory)
        else:
            nodes = [edge.node]
            while nodes[-1].backing is not None:
                nodes.append(nodes[-1].backing.node)
            assert len(nodes) == 3
            assert [node.path.in_flight for node in nodes] == [1, 1, 1]
            assert await flight.land()
            assert [node.path.in_flight for node in nodes] == [0, 0, 0]
        assert memory == pattern(SIZE)[8192 : 8192 + 4096]
