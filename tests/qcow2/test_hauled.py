"""Hauling into qcow2 images: only what holds data gets clusters, whatever fails or is cancelled on the way."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import blockio
from blockio import img
from blockio.aio import hauling
from blockio.aio.hauling import Haul
from blockio.backend import BlockBackend
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, UnsupportedFeature
from blockio.io import copy
from tests.support.cancel import cancelled_after
from tests.support.explore import few
from tests.support.qemu import assert_clean, pattern, qemu_img

if TYPE_CHECKING:
    from blockio.graph.edge import Edge

CLUSTER = 4096
SIZE = 40 * CLUSTER
LAYOUT = "xx00x.0x" * 5
"""Of a disk, a letter a cluster: data, zeroes, or zeroes with data at the end."""
LETTERS = {"0": bytes(CLUSTER), "x": pattern(CLUSTER, seed=3), ".": bytes(CLUSTER - 8) + b"the end."}


def disk_of(layout: str) -> bytes:
    return b"".join(LETTERS[letter] for letter in layout)


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is hauled is several of them."""
    monkeypatch.setattr(hauling, "PIECE", 3 * CLUSTER)
    monkeypatch.setattr(copy, "_WORTH_HAULING", CLUSTER)


def create(path: Path, *options: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", "-o", ",".join((f"cluster_size={CLUSTER}", *options)), path, str(SIZE))


@asynccontextmanager
async def opened(folder: Path, layout: str = LAYOUT) -> AsyncIterator[tuple[BlockBackend, BlockBackend]]:
    """A raw disk with *layout*, and the image ``folder/target``."""
    (folder / "source").write_bytes(disk_of(layout))
    async with (
        blockio.open(str(folder / "source"), format="raw", read_only=True) as source,
        blockio.open(str(folder / "target"), format="qcow2", gate=AllowAll()) as target,
    ):
        yield source, target


def edges(*backends: BlockBackend) -> list[Edge]:
    return [edge for blk in backends if (edge := blk.root) is not None]


async def haul(source: BlockBackend, target: BlockBackend, job: Haul, start: int = 0, nbytes: int = SIZE) -> None:
    one, two = edges(source, target)
    await one.co_copy_range_to(start, two, start, nbytes, job)


async def content(blk: BlockBackend) -> bytes:
    found = bytearray(SIZE)
    await blk.co_preadv(0, found)
    return bytes(found)


def at_rest(*backends: BlockBackend) -> bool:
    nodes = [edge.node for edge in edges(*backends)]
    return not any(node.path.in_flight for node in (*nodes, *(c.node for n in nodes for c in n.children.values())))


@pytest.mark.peer("qemu-img")
@few(12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    layout=st.text("x0.", min_size=40, max_size=40),
    start=st.integers(0, 20 * CLUSTER // 512).map(lambda sector: sector * 512),
    nbytes=st.integers(1, 20 * CLUSTER // 512).map(lambda sectors: sectors * 512),
    step=st.sampled_from([0, CLUSTER, 2 * CLUSTER]),
    exact=st.booleans(),
)
async def test_the_disk_is_that_of_the_source_and_zeroes_have_no_clusters(
    layout: str, start: int, nbytes: int, step: int, exact: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("hauled")
    create(folder / "target")
    async with opened(folder, layout) as (source, target):
        expected = bytes(start) + disk_of(layout)[start : start + nbytes] + bytes(SIZE - start - nbytes)
        steps = [
            expected[max(at, start) : min(at + (step or SIZE), start + nbytes)]
            for at in range(start - start % (step or SIZE), start + nbytes, step or SIZE)
        ]
        # The first is taken whether it holds anything or not.
        job = Haul(step, step * (1 + sum(map(any, steps[1:]))) if exact else 0)
        await haul(source, target, job, start, nbytes)
        assert await content(target) == expected
        assert job.left_out == nbytes - sum(len(part) for part in steps if not step or any(part))
        assert at_rest(source, target)
        await target.co_flush()
        clusters = {at // CLUSTER for at in range(start, start + nbytes, 512) if any(expected[at : at + 512])}
        holding = (await img.check(img.Image(filename=str(folder / "target"), format="qcow2", force_share=True))).result
        assert holding.corruptions == 0
        if step == CLUSTER:
            assert holding.allocated_clusters == len(clusters)
        await target.co_pwritev(0, b"on and on" * 1000)
    assert_clean(folder / "target")


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("call", ["preadv", "pwritev"])
async def test_whichever_call_fails_nothing_is_lost_and_nothing_is_kept(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(tmp_path / "target")
    real: Callable[..., int] = getattr(os, call)
    left = 0

    def failing(*args: Any) -> int:
        nonlocal left
        left -= 1
        if not left:
            raise OSError(errno.EIO, "broken")
        return real(*args)

    async with opened(tmp_path) as (source, target):
        await target.co_pwritev(SIZE - CLUSTER, b"K" * CLUSTER)
        before = await content(target)
        number = 0
        done = False
        reasons: set[int | None] = set()
        while not done:
            number += 1
            left = number
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, call, failing)
                try:
                    await haul(source, target, Haul(CLUSTER), 0, SIZE - CLUSTER)
                except BlockError as error:
                    reasons.add(error.errno)
                else:
                    done = True
            assert done or await content(target) == before
            assert at_rest(source, target)
        assert number > 10
        assert reasons == {errno.EIO}
        assert await content(target) == disk_of(LAYOUT)[:-CLUSTER] + b"K" * CLUSTER
    assert_clean(tmp_path / "target")


@pytest.mark.peer("qemu-img")
async def test_cancelled_at_any_moment(tmp_path: Path) -> None:
    create(tmp_path / "target")
    async with opened(tmp_path) as (source, target):
        turns = 0
        while await cancelled_after(turns, haul(source, target, Haul(CLUSTER))):
            turns += 1
            assert at_rest(source, target)
            assert await content(target) in (bytes(SIZE), disk_of(LAYOUT))
            await target.co_pwrite_zeroes(0, SIZE)
            await target.co_pdiscard(0, SIZE)
            turns += turns // 8
        assert await content(target) == disk_of(LAYOUT)
    assert_clean(tmp_path / "target")


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    "options", ["extended_l2=on,cluster_size=16k", "data_file={}/data.raw", "preallocation=metadata"]
)
async def test_where_leaving_zeroes_out_could_show_what_lies_there_it_is_refused(options: str, tmp_path: Path) -> None:
    """And with none to be left out it is not. Nothing has happened before."""
    create(tmp_path / "target", options.format(tmp_path))
    async with opened(tmp_path) as (source, target):
        with pytest.raises(UnsupportedFeature):
            await haul(source, target, Haul(CLUSTER))
        assert await content(target) == bytes(SIZE)
        await haul(source, target, Haul(0))
        assert await content(target) == disk_of(LAYOUT)
        assert at_rest(source, target)
    assert_clean(tmp_path / "target")


@pytest.mark.peer("qemu-img")
async def test_what_may_be_hauled(tmp_path: Path) -> None:
    """Only mappings may stand between a node and its file: no filter is passed by, no cipher, no O_DIRECT."""
    create(tmp_path / "target")
    target = str(tmp_path / "target")
    file = {"driver": "file", "filename": target}
    stacks: list[tuple[dict[str, Any], bool]] = [
        ({"driver": "qcow2", "file": file}, True),
        ({"driver": "raw", "file": file}, True),
        (file, True),
        ({"driver": "qcow2", "file": {"driver": "blkdebug", "image": file}}, False),
        ({"driver": "copy-on-read", "file": {"driver": "qcow2", "file": file}}, False),
        ({"driver": "raw", "file": {**file, "cache": {"direct": True}}}, False),
        ({"driver": "null-co", "size": 1 << 20}, False),
    ]
    for options, expected in stacks:
        async with blockio.open(options=options) as blk:
            assert copy.can_haul(edges(blk)[0].node) is expected, options


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("backing", [False, True])
async def test_from_an_image_whose_clusters_lie_in_any_order(backing: bool, tmp_path: Path) -> None:
    """One job takes them from all over the file; with data in a backing file it is one job for each run."""
    disk = disk_of(LAYOUT)
    base = b"b" * SIZE if backing else bytes(SIZE)
    (tmp_path / "base").write_bytes(base)
    create(tmp_path / "target")
    create(tmp_path / "image", *((f"backing_file={tmp_path}/base", "backing_fmt=raw") if backing else ()))
    image, target = str(tmp_path / "image"), str(tmp_path / "target")
    async with (
        blockio.open(image, format="qcow2", gate=AllowAll()) as source,
        blockio.open(target, format="qcow2") as into,
    ):
        for at in reversed(range(0, SIZE // 2, CLUSTER)):
            await source.co_pwritev(at, disk[at : at + CLUSTER])
        job = Haul(CLUSTER)
        await haul(source, into, job)
        assert await content(into) == await content(source) == disk[: SIZE // 2] + base[SIZE // 2 :]
        assert job.left_out == (disk[: SIZE // 2].count(LETTERS["0"]) * CLUSTER + (0 if backing else SIZE // 2))
        assert at_rest(source, into)
    assert_clean(tmp_path / "target")
