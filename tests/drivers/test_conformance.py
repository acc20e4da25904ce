"""Every driver here passes the suite that is shipped for everybody's."""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from blockio.testing.conformance import MakeDisk, Traits, Verdict, check_driver, checks
from blockio.testing.driver import MemoryDisk
from tests.support.qemu import qemu_img


def file_disks(tmp_path: Path, **options: Any) -> MakeDisk:
    """Sparse files."""
    numbers = itertools.count()

    async def make(length: int) -> Mapping[str, Any]:
        path = tmp_path / f"disk{next(numbers)}.raw"
        with path.open("wb") as file:
            file.truncate(length)
        return {"driver": "file", "filename": str(path), **options}

    return make


def raw_disks(tmp_path: Path, **options: Any) -> MakeDisk:
    """Raw images in files."""
    make_file = file_disks(tmp_path)

    async def make(length: int) -> Mapping[str, Any]:
        return {"driver": "raw", "file": await make_file(length), **options}

    return make


def failures(report: object) -> str:
    """For an assertion that names what failed."""
    return f"\n{report}"


@pytest.mark.parametrize("aio", ["threads", "io_uring"])
async def test_file(tmp_path: Path, aio: str) -> None:
    report = await check_driver(file_disks(tmp_path, aio=aio), Traits(faults=False))
    assert report.ok, failures(report)


@pytest.mark.parametrize("aio", ["threads", "io_uring"])
async def test_file_past_the_page_cache(tmp_path: Path, aio: str) -> None:
    report = await check_driver(file_disks(tmp_path, aio=aio, cache={"direct": True}), Traits(faults=False))
    assert report.ok, failures(report)


async def test_raw(tmp_path: Path) -> None:
    report = await check_driver(raw_disks(tmp_path), Traits())
    assert report.ok, failures(report)


async def test_raw_inside_a_larger_file(tmp_path: Path) -> None:
    make_file = file_disks(tmp_path)

    async def make(length: int) -> Mapping[str, Any]:
        return {"driver": "raw", "file": await make_file(length + 1536), "offset": 512, "size": length}

    report = await check_driver(make, Traits(resizable=False))
    assert report.ok, failures(report)


def copied_images(tmp_path: Path, create: Callable[[Path, int], None], images: list[Path]) -> MakeDisk:
    """qcow2 images that *create* makes once for each length; the suite gets copies and *images* their names."""
    templates: dict[int, Path] = {}

    def copy(length: int) -> Path:
        if length not in templates:
            templates[length] = tmp_path / f"template{length}.qcow2"
            create(templates[length], length)
        image = tmp_path / f"disk{len(images)}.qcow2"
        shutil.copyfile(templates[length], image)
        return image

    async def make(length: int) -> Mapping[str, Any]:
        # In a thread: seen from the suite, which is blockio's own code, what a test does here blocks the loop.
        images.append(await asyncio.to_thread(copy, length))
        return {"driver": "qcow2", "file": {"driver": "file", "filename": str(images[-1])}}

    return make


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    "options",
    ["cluster_size=64k", "cluster_size=512", "compat=0.10", "refcount_bits=1,cluster_size=4k", "lazy_refcounts=on"],
)
async def test_qcow2(tmp_path: Path, options: str) -> None:
    images: list[Path] = []

    def create(path: Path, length: int) -> None:
        qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, str(length))

    report = await check_driver(copied_images(tmp_path, create, images), Traits())
    assert report.ok, failures(report)
    for image in images[::10]:
        # A write below that failed may leave room that nobody uses; everything else must be right.
        checked = qemu_img("check", "-f", "qcow2", image, check=False)
        assert checked.returncode in (0, 3), f"{image}: {checked.stdout}{checked.stderr}"


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("base", ["raw", "qcow2"])
async def test_qcow2_over_a_backing_file(tmp_path: Path, base: str) -> None:
    def create(path: Path, length: int) -> None:
        below = path.with_suffix(".base")
        qemu_img("create", "-q", "-f", base, below, str(length))
        qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", base, path)

    report = await check_driver(copied_images(tmp_path, create, []), Traits())
    assert report.ok, failures(report)


@pytest.mark.parametrize("driver", ["null-co", "null-aio"])
async def test_null(driver: str) -> None:
    async def make(length: int) -> Mapping[str, Any]:
        return {"driver": driver, "size": length, "read-zeroes": True}

    report = await check_driver(make, Traits(keeps_data=False, resizable=False, faults=False))
    assert report.ok, failures(report)


@pytest.mark.parametrize("fast", [True, False])
async def test_memory(fast: bool) -> None:
    """The suite on the driver that tests use, so that the suite itself is tested."""
    disks: list[MemoryDisk] = []

    async def make(length: int) -> Mapping[str, Any]:
        disks.append(MemoryDisk(length, fast=fast))
        disks[-1].__enter__()
        return disks[-1].options()

    try:
        report = await check_driver(make, Traits(faults=False, fast_reads=fast))
        assert report.ok, failures(report)
    finally:
        for disk in disks:
            disk.__exit__()


async def test_a_bad_driver_fails() -> None:
    """A disk that forgets what is written at its second half does not pass."""
    disks: list[MemoryDisk] = []

    class Forgetful(bytearray):
        def __setitem__(self, key: Any, value: Any) -> None:
            if isinstance(key, slice) and (key.start or 0) < len(self) // 2:
                super().__setitem__(key, value)

    async def make(length: int) -> Mapping[str, Any]:
        disk = MemoryDisk(length, fast=False)
        disk.data = Forgetful(disk.data)
        disks.append(disk)
        disk.__enter__()
        return disk.options()

    try:
        report = await check_driver(make, Traits(faults=False))
    finally:
        for disk in disks:
            disk.__exit__()
    assert not report.ok
    assert "reads_what_was_written" in {outcome.name for outcome in report.failures()}
    assert "passed" in str(report)
    assert "failed  reads_what_was_written: AssertionError" in str(report)


async def test_one_check_alone_and_what_does_not_apply(tmp_path: Path) -> None:
    report = await check_driver(file_disks(tmp_path), Traits(resizable=False), only="resizes")
    (outcome,) = report.outcomes
    assert outcome.verdict is Verdict.SKIPPED
    assert outcome.reason == "is not resizable"
    assert set(checks()) >= {"resizes", "lanes_agree", "survives_cancellation"}
    assert all(checks().values())
