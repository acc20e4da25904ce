"""``img.commit``: where the bytes go, what is emptied, and what is left when it does not end well."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockio import img
from blockio.backend import BlockBackend
from blockio.driver.gate import AllowAll
from blockio.errors import OptionError, UnsupportedFeature
from blockio.img.limiting import RateLimit
from tests.support.cancel import cancelled_after
from tests.support.qemu import assert_clean, pattern

KIB = 1024
MIB = 1 << 20
SIZE = 5 * MIB


def layer(path: Path) -> img.Image:
    return img.Image(filename=str(path), format="qcow2", gate=AllowAll())


@pytest.fixture
async def chain(tmp_path: Path) -> Path:
    """The folder of ``base.qcow2``, ``mid.qcow2`` on it and ``top.qcow2`` on that, each with data of its own."""
    below: str | None = None
    for seed, name in enumerate(("base", "mid", "top")):
        path = str(tmp_path / f"{name}.qcow2")
        await img.create(
            path, "qcow2", size=SIZE, backing_file=below, backing_format=below and "qcow2", gate=AllowAll()
        )
        async with await BlockBackend.new_open(path, options={"driver": "qcow2"}, gate=AllowAll()) as blk:
            await blk.co_pwritev(seed * 700 * KIB + 1000, pattern(3 * MIB - seed * 900 * KIB, seed=seed + 1))
            await blk.co_pwrite_zeroes(seed * MIB, 128 * KIB)
        below = path
    return tmp_path


async def content(path: Path) -> bytes:
    target = path.with_suffix(".raw")
    await img.convert(layer(path), str(target))
    data = target.read_bytes()
    target.unlink()
    return data


def data_of(entries: list[img.MapEntry]) -> int:
    return sum(entry.length for entry in entries if entry.depth == 0 and entry.present)


async def own(path: Path) -> int:
    """How many bytes the layer itself holds."""
    return data_of([entry async for entry in img.map(layer(path))])


@pytest.mark.peer("qemu-img")
async def test_the_backing_file_gets_everything_and_the_overlay_is_emptied(chain: Path) -> None:
    top, mid = chain / "top.qcow2", chain / "mid.qcow2"
    expected, before = await content(top), top.stat().st_size
    steps: list[int] = []
    result = await img.commit(layer(top), observer=lambda progress: steps.append(progress.done))
    assert (result.base, result.size) == (str(mid), SIZE)
    assert steps[0] == 0
    assert steps[-1] == SIZE
    assert steps == sorted(steps)
    assert await content(mid) == await content(top) == expected
    assert await own(top) == 0
    assert top.stat().st_size < before
    for path in (top, mid):
        assert_clean(path)


@pytest.mark.peer("qemu-img")
async def test_a_base_further_down_gets_all_layers_and_none_is_emptied(chain: Path) -> None:
    top, mid, base = (chain / f"{name}.qcow2" for name in ("top", "mid", "base"))
    expected = await content(top)
    owned = await own(top), await own(mid)
    await img.commit(layer(top), str(base))
    assert await content(base) == await content(top) == expected
    assert (await own(top), await own(mid)) == owned
    for path in (top, mid, base):
        assert_clean(path)


async def test_dropped_the_overlay_keeps_what_it_has(chain: Path) -> None:
    top = chain / "top.qcow2"
    owned = await own(top)
    await img.commit(layer(top), drop=True)
    assert await own(top) == owned


async def test_what_cannot_be_committed(chain: Path) -> None:
    with pytest.raises(UnsupportedFeature, match="Image does not have a backing file"):
        await img.commit(layer(chain / "base.qcow2"))
    with pytest.raises(OptionError, match=r"Did not find 'other' in the backing chain of '.*top\.qcow2'"):
        await img.commit(layer(chain / "top.qcow2"), "other")


@pytest.mark.peer("qemu-img")
async def test_cancelled_at_any_moment_the_disk_reads_as_before(chain: Path) -> None:
    top, mid = chain / "top.qcow2", chain / "mid.qcow2"
    expected = await content(top)
    for turns in range(0, 300, 13):
        if await cancelled_after(turns, img.commit(layer(top), drop=True)):
            assert await content(top) == expected, f"cancelled after {turns} turns"
    await img.commit(layer(top))
    assert await content(mid) == expected
    for path in (top, mid):
        assert_clean(path)


async def test_a_rate_limit_is_asked_before_each_piece(chain: Path) -> None:
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    limit = RateLimit(MIB, clock=lambda: now, sleep=sleep)
    await img.commit(layer(chain / "top.qcow2"), limit=limit)
    assert 0 < now <= (await img.info(layer(chain / "top.qcow2"))).virtual_size / MIB
