"""Any sequence of requests against a bytearray, over entry layouts, cluster sizes, refcount widths, backing files.

Afterwards QEMU finds the image clean and reads the same bytes from it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.testing.memory import MemoryChild
from blockio.types import OpenFlags, PreallocMode, RequestFlags
from blockio_drivers.qcow2.driver import Qcow2Driver
from tests.qcow2.engine import Disk, check_image, new_image, open_disk, qemu_reads

MAY_UNMAP = int(RequestFlags.MAY_UNMAP)


class Shape(NamedTuple):
    """How large clusters are, and whether they have subclusters."""

    cluster: int
    extended: bool

    @property
    def unit(self) -> int:
        """What is zeroed or discarded at once."""
        return self.cluster // 32 if self.extended else self.cluster

    @property
    def options(self) -> dict[str, Any]:
        return {"cluster_size": self.cluster, "extended_l2": self.extended}


STANDARD = [Shape(size, extended=False) for size in (512, 1024, 4096, 65536)]
EXTENDED = [Shape(size, extended=True) for size in (16384, 65536)]


@dataclass(frozen=True)
class Step:
    action: str
    place: float
    reach: float
    seed: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ("write", "write", "write", "small", "small", "zero", "unmap", "discard", "flush", "read", "grow", "shrink")
        ),
        st.floats(0, 0.999),
        st.floats(0, 1),
        st.integers(0, 255),
    ),
    max_size=30,
)


async def _carry_out(disk: Disk, model: bytearray, steps: list[Step], shape: Shape, *, zeroes: bool) -> None:
    cluster, unit = shape.cluster, shape.unit
    for step in steps:
        size = len(model)
        offset = int(step.place * size)
        nbytes = max(1, min(int(step.reach * 5 * cluster), size - offset))
        aligned = offset // unit * unit
        whole = min(-(-nbytes // unit) * unit, size - aligned)
        if step.action in {"write", "small"}:
            nbytes = min(nbytes, 700) if step.action == "small" else nbytes
            data = random.Random(step.seed).randbytes(nbytes)
            await disk.write(offset, data)
            model[offset : offset + nbytes] = data
        elif step.action in {"zero", "unmap"} and zeroes:
            await disk.zero(aligned, whole, MAY_UNMAP if step.action == "unmap" else 0)
            model[aligned : aligned + whole] = bytes(whole)
        elif step.action == "discard" and zeroes:
            await disk.discard(aligned, whole)
            model[aligned : aligned + whole] = bytes(whole)
        elif step.action == "flush":
            await disk.flush()
        elif step.action == "read":
            assert await disk.read(offset, nbytes) == model[offset : offset + nbytes]
        elif step.action == "grow":
            length = size + step.seed * 512
            await disk.truncate(length, list(PreallocMode)[step.seed % 4], int(RequestFlags.ZERO_WRITE) * zeroes)
            if zeroes:
                model.extend(bytes(length - size))
            else:
                model.extend((await disk.read(size, length - size)) if length > size else b"")
        elif step.action == "shrink":
            length = max(512, size - int(step.reach * size / 4) // 512 * 512)
            await disk.truncate(length)
            del model[length:]
    assert await disk.read(0, len(model)) == model


@pytest.mark.peer("qemu-img")
@given(
    steps=STEPS,
    shape=st.sampled_from(STANDARD + EXTENDED),
    bits=st.sampled_from((1, 2, 4, 8, 16, 32, 64)),
    sectors=st.integers(1, 900),
    lazy=st.booleans(),
)
async def test_like_a_bytearray(steps: list[Step], shape: Shape, bits: int, sectors: int, lazy: bool) -> None:
    size = sectors * 512
    child = await new_image(size, refcount_bits=bits, lazy_refcounts=lazy, **shape.options)
    model = bytearray(size)
    small: dict[str, Any] = {"l2_cache_size": 1024, "l2_cache_entry_size": 512} if shape.cluster in {512, 16384} else {}
    async with open_disk(child, **small) as disk:
        await _carry_out(disk, model, steps, shape, zeroes=True)
    check_image(child.data)
    assert qemu_reads(child.data) == model


@pytest.mark.peer("qemu-img")
@given(
    steps=STEPS,
    kind=st.sampled_from(
        [(shape, version) for shape in STANDARD for version in ("0.10", "1.1")] + [(shape, "1.1") for shape in EXTENDED]
    ),
    sectors=st.integers(1, 900),
    below=st.integers(0, 1000),
)
async def test_over_a_backing_file(steps: list[Step], kind: tuple[Shape, str], sectors: int, below: int) -> None:
    """Shorter or longer than the overlay; version 2 has no zero clusters over one."""
    shape, version = kind
    size = sectors * 512
    base = MemoryChild(random.Random(99).randbytes(below * 512))
    child = await new_image(size, compat=version, backing_file="base.raw", backing_fmt="raw", **shape.options)
    model = bytearray(base.data[:size]).ljust(size, b"\0")
    async with open_disk(child, backing=base) as disk:
        await _carry_out(
            disk,
            model,
            [s for s in steps if s.action != "grow" or version != "0.10"],
            shape,
            zeroes=version != "0.10",
        )
    check_image(child.data)
    assert qemu_reads(child.data, bytes(base.data)) == model


@pytest.mark.peer("qemu-img")
@given(steps=STEPS, shape=st.sampled_from([STANDARD[0], STANDARD[-1], *EXTENDED]))
async def test_both_lanes_say_the_same(steps: list[Step], shape: Shape) -> None:
    """The fast lane reads what the slow one does, and may write where it says so."""
    child = await new_image(400 * 512, **shape.options)
    model = bytearray(400 * 512)
    async with open_disk(child) as disk:
        await _carry_out(disk, model, [s for s in steps if s.action not in {"grow", "shrink"}], shape, zeroes=True)
        rnd = random.Random(1)
        for _ in range(50):
            offset = rnd.randrange(len(model))
            nbytes = min(rnd.randrange(1, 3000), len(model) - offset)
            got = bytearray(nbytes)
            if disk.driver.try_preadv(offset, [got], nbytes):
                assert got == model[offset : offset + nbytes]
            data = rnd.randbytes(nbytes)
            if disk.driver.try_pwritev(offset, [data], nbytes):
                model[offset : offset + nbytes] = data
        assert await disk.read(0, len(model)) == model
    check_image(child.data)
    assert qemu_reads(child.data) == model


async def test_a_large_cluster_costs_slices_not_tables() -> None:
    """With 2 MiB clusters an L2 table is 2 MiB; a write reads 64 KiB of it, and the cache stays within its bound."""
    child = await new_image(1 << 40, cluster_size=2 << 20)
    async with open_disk(child, l2_cache_size=256 << 10) as disk:
        for index in range(40):
            await disk.write(index * (20 << 30), b"x" * 512)
        found = disk.driver.statistics()["l2"]
        assert found.slice_bytes == 65536
        assert found.cached <= found.capacity == 4
        for index in range(40):
            assert await disk.read(index * (20 << 30), 512) == b"x" * 512


@pytest.mark.parametrize("extended", [False, True])
async def test_random_writes_into_a_huge_disk_stay_within_the_caches(extended: bool) -> None:
    """4 KiB at a time all over 64 GiB: each needs a table of its own, and no more of them are held than was said."""
    rnd = random.Random(64)
    child = await new_image(64 << 30, cluster_size=16384, extended_l2=extended)
    async with open_disk(child, l2_cache_size=256 << 10, refcount_cache_size=64 << 10) as disk:
        for _ in range(300):
            await disk.write(rnd.randrange(64 << 18) << 12, b"x" * 4096)
            for found in (disk.driver.statistics()[name] for name in ("l2", "refcount")):
                assert found.cached <= found.capacity
        assert disk.driver.statistics()["l2"].evictions > 200
    check_image(child.data)


async def test_read_only_changes_nothing() -> None:
    child = await new_image(1 << 20)
    before = bytes(child.data)
    async with open_disk(child, flags=OpenFlags(read_only=True)) as disk:
        assert await disk.read(0, 4096) == bytes(4096)
        assert isinstance(disk.driver, Qcow2Driver)
    assert child.data == before
