"""The tests' own tools: the census of leaks, the neighbour that holds an image, the loops."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from blockbuster import BlockingError

from blockio.testing import memory
from tests.support.leaks import Census, no_leaks
from tests.support.qemu import QemuIo, assert_clean, blocks, pattern, qemu_img, qemu_img_json, qemu_io, without_timing


def test_the_census_sees_a_descriptor_that_was_left_open(tmp_path: Path) -> None:
    before = Census.take()
    fd = os.open(tmp_path / "f", os.O_CREAT | os.O_RDWR)
    left = Census.take() - before
    os.close(fd)
    assert left.descriptors == {(fd, str(tmp_path / "f"))}
    with no_leaks():
        pass


@pytest.mark.both_loops
async def test_a_marked_test_runs_on_both_loops(request: pytest.FixtureRequest) -> None:
    module = type(asyncio.get_running_loop()).__module__
    assert module.startswith(request.node.callspec.id)


async def test_the_loop_runs_in_debug_mode() -> None:
    assert asyncio.get_running_loop().get_debug()


async def test_a_blocking_read_in_our_code_is_caught(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    code = compile("import os\nos.pread(fd, 1, 0)", memory.__file__, "exec")
    with pytest.raises(BlockingError, match="pread"):
        exec(code, {"fd": fd})
    assert os.pread(fd, 1, 0) == b"x", "the test's own reads are its own business"
    os.close(fd)


def test_pictures_and_patterns() -> None:
    assert blocks("A0-", 2) == b"AA\0\0\0\0"
    assert len(pattern(100_000)) == 100_000
    assert pattern(65536)[:512] not in pattern(65536)[1:65521]


def test_timing_is_taken_out() -> None:
    text = "read 512/512 bytes at offset 0\n512 bytes, 1 ops; 00.00 sec (1.575 MiB/sec and 3226.1187 ops/sec)\n"
    assert without_timing(text) == "read 512/512 bytes at offset 0\n512 bytes, 1 ops; TIME (RATE)\n"


@pytest.mark.peer("qemu-img", "qemu-io")
def test_the_neighbours_work(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    qemu_io(image, "write -P 65 0 64k", format="qcow2")
    assert_clean(image)
    assert qemu_img_json("info", image)["virtual-size"] == 1 << 20
    with QemuIo(image, format="qcow2") as holder:
        assert holder.command("length") == "1 MiB\n"
        assert "lock" in qemu_img("resize", image, "2M", check=False).stderr
