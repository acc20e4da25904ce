"""Checksums of what a guest sees: exactly the bytes that are promised, in every format, and whatever happens."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError
from blockio.graph.node import all_nodes
from blockio.img.checksums import ALGORITHMS, BLOCK, checksum
from blockio.img.digesting import CHUNK, OrderedChecksum
from blockio.img.turns import Turns
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.driver import MemoryDisk
from tests.support.imgtool import Said, capture
from tests.support.leaks import Census
from tests.support.qemu import assert_clean, qemu_img, qemu_io

MIB = 1 << 20
K64 = 64 << 10


def by_definition(algorithm: str, content: bytes | bytearray) -> str:
    """The digest of *content*, in the words of the manual."""
    name, _, blocks = algorithm.partition("-64k")
    new = getattr(hashlib, name.replace("-", "_"))
    if not algorithm.endswith("-64k"):
        return str(new(content).hexdigest())
    del blocks
    each = (new(content[at : at + K64]).digest() for at in range(0, len(content), K64))
    return str(new(b"".join(each)).hexdigest())


def pattern(nbytes: int) -> bytes:
    return hashlib.shake_128(b"pattern").digest(nbytes)


def image_of(disk: MemoryDisk) -> img.Image:
    return img.Image(options=disk.options(), label="disk")


# -- what is hashed


@pytest.mark.parametrize("algorithm", ["sha256", "sha3-512", "blake2b-64k", "sha256-64k"])
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just(False), st.integers(0, 2 * BLOCK)),
            st.tuples(st.just(True), st.sampled_from([1, 511, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, MIB + 7])),
        ),
        max_size=5,
    )
)
def test_pieces_make_the_digest_of_the_whole(algorithm: str, pieces: list[tuple[bool, int]]) -> None:
    made = checksum(algorithm)
    content = b""
    for zero, nbytes in pieces:
        data = bytes(nbytes) if zero else pattern(nbytes)
        content += data
        if zero:
            made.zeroes(nbytes)
        else:
            made.update(memoryview(data))
    assert made.hexdigest() == by_definition(algorithm, content)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_the_one_of_its_name(algorithm: str) -> None:
    made = checksum(algorithm)
    made.update(memoryview(pattern(K64 + 1)))
    assert made.hexdigest() == by_definition(algorithm, pattern(K64 + 1))


def test_an_unknown_algorithm_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match=r"^Unknown digest algorithm 'crc32': there are blake2b, blake2b-64k, "):
        checksum("crc32")


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("algorithm", ["sha256", "sha256-64k"])
async def test_the_same_content_has_the_same_digest_in_every_format(tmp_path: Path, algorithm: str) -> None:
    raw = tmp_path / "disk.raw"
    content = bytearray(9 * MIB)
    content[: 3 * MIB + 4096] = pattern(3 * MIB + 4096)
    content[7 * MIB + 512 : 7 * MIB + 1024] = pattern(512)
    raw.write_bytes(content)
    expected = by_definition(algorithm, content)
    overlay, v2, packed = (str(tmp_path / name) for name in ("overlay.qcow2", "v2.qcow2", "packed.qcow2"))
    qemu_img("convert", "-O", "qcow2", "-o", "compat=0.10", raw, v2)
    qemu_img("convert", "-c", "-O", "qcow2", "-o", "cluster_size=4k", raw, packed)
    # Below another half of the content; in the overlay the rest, and zeroes over what is below.
    below = tmp_path / "below.raw"
    below.write_bytes(bytes(content[: 2 * MIB]) + b"x" * MIB + bytes(content[3 * MIB : 4 * MIB]) + b"y" * MIB)
    qemu_img("create", "-q", "-f", "qcow2", "-b", below, "-F", "raw", overlay, "9M")
    (tmp_path / "part").write_bytes(content[2 * MIB : 3 * MIB])
    (tmp_path / "sector").write_bytes(content[7 * MIB + 512 : 7 * MIB + 1024])
    qemu_io(
        Path(overlay),
        f"write -s {tmp_path}/part 2M 1M",
        "write -z 4M 1M",
        f"write -s {tmp_path}/sector 7340544 512",
        format="qcow2",
    )
    for path, format in ((str(raw), "raw"), (v2, "qcow2"), (packed, "qcow2"), (overlay, "qcow2")):
        found = await img.digest(img.Image(filename=path, format=format, gate=AllowAll()), algorithm)
        assert found == img.DigestResult(path, algorithm, expected, 9 * MIB), path


@pytest.mark.parametrize("length", [0, 1, 511, 512, 1000, CHUNK - 1, CHUNK, CHUNK + 512])
async def test_a_disk_is_whole_sectors(tmp_path: Path, length: int) -> None:
    path = tmp_path / "odd.raw"
    path.write_bytes(pattern(length))
    found = await img.digest(img.Image(filename=str(path), format="raw"))
    whole = pattern(length) + bytes(-length % 512)
    assert (found.digest, found.size) == (by_definition("sha256", whole), len(whole))


async def test_holes_are_not_read_and_long_ones_cost_next_to_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "big.qcow2")
    await img.create(path, "qcow2", size=1 << 36)
    found = await img.digest(path, "sha256-64k")
    outer = hashlib.sha256()
    many = hashlib.sha256(bytes(K64)).digest() * 1024
    for _ in range((1 << 36) // K64 // 1024):
        outer.update(many)
    assert found.digest == outer.hexdigest()


async def test_short_holes_among_data_are_read_with_it(tmp_path: Path) -> None:
    path = tmp_path / "holes.raw"
    content = bytearray(5 * MIB)
    with path.open("wb") as file:
        file.truncate(len(content))
        for at in range(0, len(content), 128 << 10):
            content[at : at + 8192] = pattern(8192)
            file.seek(at)
            file.write(pattern(8192))
    found = await img.digest(img.Image(filename=str(path), format="raw"))
    assert found.digest == by_definition("sha256", content)


@pytest.mark.both_loops
async def test_progress_goes_to_the_end_and_a_limit_slows(tmp_path: Path) -> None:
    steps: list[img.Progress] = []
    taken: list[int] = []

    class Limit(img.RateLimit):
        async def take(self, nbytes: int) -> None:
            taken.append(nbytes)
            await super().take(nbytes)

    with MemoryDisk(5 * MIB) as disk:
        disk.data[:] = pattern(5 * MIB)
        found = await img.digest(image_of(disk), observer=steps.append, limit=Limit(0))
    assert found.digest == by_definition("sha256", pattern(5 * MIB))
    assert [step.done for step in steps] == sorted(step.done for step in steps)
    assert (steps[0].done, steps[-1].done, steps[-1].total) == (0, 5 * MIB, 5 * MIB)
    assert sorted(taken) == [MIB, 2 * MIB, 2 * MIB]


# -- what can go wrong


async def test_a_failing_read_says_where_and_leaves_nothing() -> None:
    before = Census.take()
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = pattern(5 * MIB)
        disk.fail = BlockError(errno=errno.EIO)
        with pytest.raises(BlockError, match=r"^error while reading at byte \d+: Input/output error$"):
            await img.digest(image_of(disk))
        disk.fail = None
        assert (await img.digest(image_of(disk))).digest == by_definition("sha256", pattern(5 * MIB))
    assert not Census.take() - before


async def test_cancelled_at_any_await_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(pattern(MIB))
    image = img.Image(filename=str(path), format="raw")
    before = Census.take()

    async def scenario() -> None:
        assert (await img.digest(image)).size == MIB

    async def afterwards(nth: int) -> None:
        assert all_nodes() == [], f"cancelled at await {nth}"

    assert await cancel_at_every_await(scenario, afterwards)
    assert not Census.take() - before


@pytest.mark.parametrize("nth", range(4))
async def test_cancelled_between_pieces_nothing_is_left(tmp_path: Path, nth: int) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.write(pattern(3 * MIB))
        file.truncate(6 * MIB)
        file.seek(6 * MIB)
        file.write(pattern(MIB))
    before = Census.take()
    told = 0

    def observer(_progress: img.Progress) -> None:
        nonlocal told
        if told == nth:
            task.cancel()
        told += 1

    task = asyncio.create_task(img.digest(img.Image(filename=str(path), format="raw"), observer=observer))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Census.take() - before


async def test_cancelled_while_it_hashes_it_waits_for_the_thread_that_has_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hashing, go = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    class Slow:
        at_once = MIB
        ended = False

        def update(self, _data: memoryview) -> None:
            loop.call_soon_threadsafe(hashing.set)
            go.wait()
            self.ended = True

        zeroes = hexdigest = update

    slow = Slow()
    monkeypatch.setattr("blockio.img.digesting.checksum", lambda _algorithm: slow)
    before = Census.take()
    with MemoryDisk(0) as disk:
        disk.data[:] = pattern(MIB)
        task = asyncio.create_task(img.digest(image_of(disk)))
        await hashing.wait()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert slow.ended
    assert not Census.take() - before


async def test_cancelled_while_it_reads_nothing_is_left() -> None:
    before = Census.take()
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = pattern(4 * MIB)
        disk.stall()
        task = asyncio.create_task(img.digest(image_of(disk)))
        await until(lambda: disk.waiting > 0)
        task.cancel()
        disk.go()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not Census.take() - before


async def until(there: Callable[[], bool]) -> None:
    """Let the loop turn until something is so: it only needs turns, not time."""
    for _ in range(1000):
        if there():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come to that")


# -- in the same pass as a conversion


@pytest.mark.parametrize(
    "how", [{}, {"in_order": False}, {"workers": 1}, {"sparse": 0}, {"compress": True}, {"salvage": True}]
)
@pytest.mark.parametrize("algorithm", ["sha256", "sha256-64k"])
async def test_a_conversion_says_what_a_digest_of_its_target_says(
    tmp_path: Path, how: dict[str, Any], algorithm: str
) -> None:
    content = bytearray(11 * MIB + 512)
    content[: 3 * MIB + 4096] = pattern(3 * MIB + 4096)
    content[8 * MIB + 512 : 9 * MIB] = pattern(MIB - 512)
    raw, target = tmp_path / "disk.raw", str(tmp_path / "target")
    with raw.open("wb") as file:
        file.write(content[: 3 * MIB + 4096])
        file.seek(8 * MIB + 512)
        file.write(content[8 * MIB + 512 : 9 * MIB])
        file.truncate(len(content))
    format = "qcow2" if "compress" in how else "raw"
    image = img.Image(filename=str(raw), format="raw")
    result = await img.convert(image, target, format, digest=algorithm, **how)
    assert result.digest == img.DigestResult(target, algorithm, by_definition(algorithm, content), len(content))
    again = await img.digest(img.Image(filename=target, format=format), algorithm)
    assert again == result.digest
    if format == "qcow2":
        assert_clean(target)
    else:
        assert (tmp_path / "target").read_bytes() == content


async def test_a_digest_of_several_sources_is_that_of_the_whole(tmp_path: Path) -> None:
    sources = []
    for name, length in (("one", 1000), ("two", 3 * MIB), ("three", 0), ("four", 70_000)):
        (tmp_path / name).write_bytes(pattern(length))
        sources.append(img.Image(filename=str(tmp_path / name), format="raw"))
    target = tmp_path / "target"
    result = await img.convert(sources, str(target), digest="sha256")
    assert result.digest is not None
    assert result.digest.digest == hashlib.sha256(target.read_bytes()).hexdigest()


async def test_salvaged_zeroes_are_hashed_as_they_are_written(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = pattern(4096)
        disk.fail = BlockError(errno=errno.EIO)
        result = await img.convert(image_of(disk), str(target), salvage=True, digest="sha256")
    assert result.salvaged == 4096
    assert result.digest is not None
    assert result.digest.digest == by_definition("sha256", bytes(4096))
    assert target.read_bytes() == bytes(4096)


async def test_a_digest_of_what_is_not_read_is_refused(tmp_path: Path) -> None:
    raw, target = tmp_path / "disk.raw", tmp_path / "target"
    raw.write_bytes(bytes(MIB))
    for how in ({"copy_offload": True}, {"backing_file": str(raw), "backing_format": "raw"}):
        with pytest.raises(OptionError, match="A digest needs all data"):
            await img.convert(str(raw), str(target), "qcow2", digest="sha256", gate=AllowAll(), **how)
    with pytest.raises(OptionError, match="Unknown digest algorithm 'x'"):
        await img.convert(str(raw), str(target), digest="x")
    assert os.listdir(tmp_path) == ["disk.raw"]


async def test_a_conversion_that_fails_or_is_cancelled_leaves_no_thread(tmp_path: Path) -> None:
    before = Census.take()
    target = tmp_path / "target"
    told = 0

    def observer(_progress: img.Progress) -> None:
        nonlocal told
        told += 1
        if told == 2:
            task.cancel()

    with MemoryDisk(0, fast=False) as disk:
        disk.data[:] = pattern(9 * MIB)
        disk.fail = BlockError(errno=errno.EIO)
        with pytest.raises(BlockError, match="error while reading at byte"):
            await img.convert(image_of(disk), str(target), digest="sha256")
        disk.fail = None
        task = asyncio.create_task(img.convert(image_of(disk), str(target), digest="sha256", observer=observer))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert os.listdir(tmp_path) == []
        result = await img.convert(image_of(disk), str(target), digest="sha256")
    assert result.digest is not None
    assert result.digest.digest == by_definition("sha256", pattern(9 * MIB))
    assert not Census.take() - before


# -- the order


async def test_pieces_that_come_in_any_order_are_hashed_in_theirs() -> None:
    data = [pattern(1000 + n)[n:] for n in range(20)]
    with OrderedChecksum("sha256") as ordered:
        async with asyncio.TaskGroup() as group:
            for number in sorted(range(20), key=lambda n: hashlib.md5(bytes([n])).digest()):
                if number % 5 == 3:
                    group.create_task(ordered.zeroes(number, 1000))
                else:
                    group.create_task(ordered.update(number, memoryview(data[number])))
    content = b"".join(bytes(1000) if number % 5 == 3 else data[number] for number in range(20))
    assert ordered.hexdigest() == by_definition("sha256", content)


async def test_turns_come_one_after_the_other() -> None:
    turns = Turns()
    order: list[int] = []

    async def take(number: int) -> None:
        await turns.wait(number)
        order.append(number)
        turns.pass_on(number)

    await asyncio.gather(*(take(number) for number in (3, 1, 4, 0, 2)))
    assert order == [0, 1, 2, 3, 4]


# -- the command


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., Said]:
    aside = tmp_path / "aside"
    aside.mkdir()

    def run(*words: str) -> Said:
        return capture(list(words), tmp_path, aside, "blockio img")

    return run


def test_the_line_is_that_of_sha256sum(tmp_path: Path, tool: Callable[..., Said]) -> None:
    (tmp_path / "disk.raw").write_bytes(pattern(MIB))
    expected = by_definition("sha256", pattern(MIB))
    assert tool("digest", "-f", "raw", "disk.raw") == (0, f"{expected}  disk.raw\n", "")
    assert tool("convert", "-O", "qcow2", "disk.raw", "disk.qcow2").status == 0
    assert tool("digest", "disk.qcow2") == (0, f"{expected}  disk.qcow2\n", "")
    said = tool("digest", "--algorithm=blake2b-64k", "--output=json", "disk.qcow2")
    assert json.loads(said.out) == {
        "filename": "disk.qcow2",
        "algorithm": "blake2b-64k",
        "digest": by_definition("blake2b-64k", pattern(MIB)),
        "size": MIB,
    }
    for option in ("--digest", "--digest=sha256"):
        said = tool("convert", option, "-O", "qcow2", "disk.raw", "again.qcow2")
        assert said == (0, f"{expected}  again.qcow2\n", "")
    shown = tool("digest", "-p", "disk.qcow2")
    assert shown.out.startswith("    (0.00/100%)\r")
    assert shown.out.endswith(f"    (100.00/100%)\r\n{expected}  disk.qcow2\n")


def test_mistakes_are_told(tmp_path: Path, tool: Callable[..., Said]) -> None:
    (tmp_path / "disk.raw").write_bytes(bytes(512))
    said = tool("digest", "--algorithm=crc32", "disk.raw")
    assert said.status == 1
    assert said.err.startswith("blockio img: Unknown digest algorithm 'crc32': there are blake2b, ")
    assert tool("digest", "missing").err == (
        "blockio img: Could not open 'missing': Could not open 'missing': No such file or directory\n"
    )
    assert tool("digest").status == 1
    said = tool("convert", "--digest=crc32", "disk.raw", "target.raw")
    assert said.err.startswith("blockio img: Unknown digest algorithm 'crc32': there are blake2b, ")
    said = tool("convert", "--digest", "-C", "disk.raw", "target.raw")
    assert said == (
        1,
        "",
        "blockio img: A digest needs all data: it goes with no copy offloading and no backing file\n",
    )
    assert tool("digest", "--output=xml", "disk.raw").status == 1
    os.truncate(tmp_path / "disk.raw", 0)
    assert tool("digest", "-f", "raw", "disk.raw").out == f"{hashlib.sha256().hexdigest()}  disk.raw\n"
