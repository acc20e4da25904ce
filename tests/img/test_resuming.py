"""``img.convert(resume=True)``: what an interruption leaves, and that going on from it makes the same image."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio import img
from blockio.aio.threads import in_worker
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, ImageLocked, OptionError, UnsupportedFeature
from blockio.img.journal import line_of, lines_in
from blockio.testing.cancel import cancel_at_every_await
from blockio.testing.driver import MemoryDisk
from tests.support.full_disk import enlarge, small_file_system
from tests.support.interrupting import CHUNK, interrupting
from tests.support.qemu import assert_clean, pattern, qemu_img

SIZE = 16 * CHUNK + 512


class Interrupted(Exception):
    """Somebody wants the conversion to end."""


def interrupt() -> None:
    raise Interrupted


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With ``source.raw``: data, then zeroes and data in turn, the last sector alone."""
    with (tmp_path / "source.raw").open("wb") as file:
        file.write(pattern(6 * CHUNK + 4096))
        for index in range(8, 16, 2):
            file.seek(index * CHUNK)
            file.write(pattern(CHUNK - 1024, seed=index))
        file.seek(SIZE - 512)
        file.write(b"end!" * 128)
    return tmp_path


def hidden(folder: Path) -> list[str]:
    return [name for name in names_in(folder) if name.startswith(".new.")]


def leftovers(folder: Path) -> tuple[Path, Path]:
    """The part and the journal."""
    (part,) = folder.glob(".new.*.part")
    (journal,) = folder.glob(".new.*.journal")
    return part, journal


async def convert(folder: Path, format: str = "qcow2", **more: Any) -> img.ConvertResult:
    source = more.pop("source", img.Image(filename=str(folder / "source.raw"), format="raw"))
    return await img.convert(source, str(folder / "new"), format, resume=True, gate=AllowAll(), workers=3, **more)


async def interrupted(folder: Path, format: str = "qcow2", *, after: int = 2, **more: Any) -> None:
    """A conversion that ends when its journal has *after* lines of what is done."""
    with interrupting(interrupt, after=after) as steps, pytest.raises(Interrupted):
        await convert(folder, format, limit=steps, **more)
    assert "new" not in names_in(folder)


async def same_content(folder: Path, format: str) -> None:
    result = await img.compare(
        img.Image(filename=str(folder / "source.raw"), format="raw"),
        img.Image(filename=str(folder / "new"), format=format, gate=AllowAll()),
    )
    assert result.identical
    assert result.same_size


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    ("format", "more"),
    [
        ("raw", {"digest": "sha256"}),
        ("raw", {"copy_offload": True, "options": {"preallocation": "full"}}),
        ("qcow2", {"digest": "blake2b-64k", "options": {"extended_l2": True, "cluster_size": 16384}}),
        ("qcow2", {"compress": True, "digest": "sha256"}),
        ("qcow2", {"compress": True, "options": {"compression_type": "zstd", "cluster_size": 4096}, "in_order": False}),
        ("qcow2", {"options": {"lazy_refcounts": True, "preallocation": "metadata"}, "salvage": True, "sparse": 65536}),
        ("qcow2", {"options": {"data_file": "new.data", "data_file_raw": True}, "sparse": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
async def test_what_was_interrupted_twice_becomes_the_same_image(
    format: str, more: dict[str, Any], folder: Path
) -> None:
    if "data_file" in more.get("options", {}):
        more = {**more, "options": {**more["options"], "data_file": str(folder / "new.data")}}
    for after in (1, 3):
        await interrupted(folder, format, after=after, **more)
    seen: list[img.Progress] = []
    result = await convert(folder, format, observer=seen.append, **more)
    assert 4 * CHUNK <= result.resumed < SIZE
    assert result.copied + result.zeroed <= SIZE - result.resumed
    assert seen[0].done == result.resumed
    await same_content(folder, format)
    target = str(folder / "new")
    qemu_img("compare", "-f", "raw", "-F", format, folder / "source.raw", target)
    assert names_in(folder) == sorted(["new", "source.raw", *(["new.data"] if "data_file" in str(more) else [])])
    if format == "qcow2":
        assert_clean(target)
        report = await img.check(img.Image(filename=target, format=format, gate=AllowAll()))
        assert report.clean
    if "digest" in more:
        assert result.digest is not None
        summed = await img.digest(img.Image(filename=target, format=format), more["digest"])
        assert result.digest.digest == summed.digest


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
async def test_an_overlay_goes_onto_the_same_base_with_its_bitmaps(compress: bool, folder: Path) -> None:
    os.rename(folder / "source.raw", folder / "base.raw")
    top = img.Image(filename=str(folder / "top.qcow2"), format="qcow2", gate=AllowAll())
    options: dict[str, Any] = {"backing_file": str(folder / "base.raw"), "backing_format": "raw"}
    await img.create(str(folder / "top.qcow2"), "qcow2", gate=AllowAll(), **options)
    # What the overlay has differs from the base: data, and zeroes over it.
    qemu_io_writes(folder / "top.qcow2", ["write -P 7 0 300k", "write -z 320k 64k", "write -P 8 640k 200k"])
    await img.bitmap(top, "dirty", [img.BitmapOperation.ADD])
    more = {**options, "source": top, "compress": compress, "bitmaps": True}
    for after in (2, 1):
        await interrupted(folder, after=after, **more)
    result = await convert(folder, **more)
    assert result.resumed > 0
    target = str(folder / "new")
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", folder / "top.qcow2", target)
    assert_clean(target)
    new = img.Image(filename=target, format="qcow2", gate=AllowAll())
    assert [found.name for found in await img.bitmap(new, "dirty", [])] == ["dirty"]


def qemu_io_writes(image: Path, commands: Iterable[str]) -> None:
    from tests.support.qemu import qemu_io

    qemu_io(image, *commands, format="qcow2")


async def test_several_sources_go_on_inside_one_of_them(folder: Path) -> None:
    (folder / "second.raw").write_bytes(pattern(3 * CHUNK + 100, seed=9))
    sources = [str(folder / name) for name in ("source.raw", "second.raw")]
    await interrupted(folder, "raw", after=10, source=sources)
    result = await convert(folder, "raw", source=sources)
    assert result.resumed > 8 * CHUNK
    wanted = (folder / "source.raw").read_bytes() + (folder / "second.raw").read_bytes()
    assert (folder / "new").read_bytes() == wanted.ljust(-(-len(wanted) // 512) * 512, b"\0")


async def test_uninterrupted_it_leaves_no_more_than_another(folder: Path) -> None:
    result = await convert(folder, "raw")
    assert (result.resumed, names_in(folder)) == (0, ["new", "source.raw"])
    await same_content(folder, "raw")


# -- what is not gone on with


async def test_sources_that_have_changed_are_converted_from_the_beginning(folder: Path) -> None:
    await interrupted(folder)
    with (folder / "source.raw").open("r+b") as file:
        file.write(b"changed")
    warnings: list[str] = []
    result = await convert(folder, on_warning=warnings.append)
    target = folder / "new"
    assert warnings == [
        f"what '{target}' is made of has changed since the conversion was interrupted: starting from nothing"
    ]
    assert result.resumed == 0
    await same_content(folder, "qcow2")
    assert names_in(folder) == ["new", "source.raw"]


async def test_other_options_are_refused_and_cost_nothing(folder: Path) -> None:
    await interrupted(folder)
    part, journal = leftovers(folder)
    before = part.read_bytes(), journal.read_bytes()
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"compress": True}, "compress"),
        ({"options": {"cluster_size": 4096}}, "-o cluster_size"),
        ({"format": "raw"}, "format"),
        ({"source": img.Image(filename=str(folder / "source.raw"), format="qcow2")}, "NotThisFormat"),
        ({"source": [str(folder / "source.raw")] * 2}, "source 2"),
    )
    for more, named in cases:
        with pytest.raises(BlockError) as caught:
            await convert(folder, **more)
        if named != "NotThisFormat":
            assert isinstance(caught.value, OptionError)
            assert f"has other options ({named})" in caught.value.message
            assert str(journal) in caught.value.hint
    assert before == (part.read_bytes(), journal.read_bytes())
    assert (await convert(folder, limit=None)).resumed > 0


@pytest.mark.parametrize("damage", ["gone", "replaced", "header", "journal", "emptied"])
async def test_what_is_damaged_is_not_gone_on_with(damage: str, folder: Path) -> None:
    await interrupted(folder)
    part, journal = leftovers(folder)
    if damage == "gone":
        part.unlink()
    elif damage == "replaced":
        part.rename(folder / "elsewhere")
        part.write_bytes(b"somebody else's")
    elif damage == "header":
        with part.open("r+b") as file:
            file.write(b"nothing known")
    else:
        journal.write_bytes(b"" if damage == "emptied" else b"x" + journal.read_bytes()[1:])
    warnings: list[str] = []
    if damage == "header":  # found when the image is opened: the next run starts anew
        with pytest.raises(BlockError, match="not in qcow2 format"):
            await convert(folder)
        assert names_in(folder) == ["source.raw"]
    result = await convert(folder, on_warning=warnings.append)
    assert result.resumed == 0
    assert len(warnings) == (0 if damage in {"header", "emptied"} else 1)
    await same_content(folder, "qcow2")
    assert names_in(folder) == sorted(["new", "source.raw", *(["elsewhere"] if damage == "replaced" else [])])


async def test_a_line_that_was_torn_was_not_said(folder: Path) -> None:
    await interrupted(folder, after=3)
    _, journal = leftovers(folder)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:-5])
    result = await convert(folder)
    assert 2 * CHUNK <= result.resumed <= 6 * CHUNK
    await same_content(folder, "qcow2")


async def test_a_corrupt_part_ends_the_run_and_the_next_one_starts_anew(folder: Path) -> None:
    await interrupted(folder)
    part, _ = leftovers(folder)
    with part.open("r+b") as file:  # the first refcount block counts nothing any more
        file.seek(2 << 16)
        file.write(bytes(8))
    with pytest.raises(BlockError, match="as it was interrupted is damaged; the next run starts from nothing"):
        await convert(folder)
    assert names_in(folder) == ["source.raw"]
    assert (await convert(folder)).resumed == 0


async def test_one_that_got_its_name_has_only_its_journal_to_lose(folder: Path) -> None:
    await interrupted(folder)
    part, journal = leftovers(folder)
    kept = journal.read_bytes()
    first = await convert(folder, digest="sha256")
    os.rename(folder / "new", part)  # the same file, as the journal knows it
    os.rename(part, folder / "new")
    journal.write_bytes(kept)
    again = await convert(folder, digest="sha256")
    assert (again.resumed, again.copied, again.digest) == (SIZE, 0, first.digest)
    assert names_in(folder) == ["new", "source.raw"]


async def test_it_is_refused_where_it_could_not_be_kept(folder: Path) -> None:
    (folder / "old").write_bytes(b"old")
    source = str(folder / "source.raw")
    for target, more, message in (
        ("old", {}, "exists already"),
        ("source.raw", {}, "exists already"),
        ("no", {"create": False}, "Only a new image can be resumed"),
        (img.Image(filename=str(folder / "x"), cache="unsafe"), {}, "cache mode 'unsafe'"),
        (img.Pipe(fd=1), {}, "What comes out of a pipe, or goes into one, cannot be resumed"),
        ("null-co://", {}, "image creation"),
        ("missing/new", {}, "No such file or directory"),
    ):
        where = str(folder / target) if isinstance(target, str) and ":" not in target else target
        with pytest.raises(BlockError, match=message):
            await img.convert(source, where, resume=True, **more)  # type: ignore[arg-type]  # as above
    with MemoryDisk(512) as disk, pytest.raises(UnsupportedFeature, match="cannot be resumed: only of a regular"):
        await img.convert(img.Image(options=disk.options()), str(folder / "x"), resume=True)
    with pytest.raises(BlockError, match="Cluster size must be a power of two"):
        await convert(folder, options={"cluster_size": 3000})
    assert names_in(folder) == ["old", "source.raw"]


async def test_two_at_once_do_not_meet(folder: Path) -> None:
    with interrupting(lambda: None, after=99) as steps:
        steps.noted = -2  # nothing begins
        first = asyncio.create_task(convert(folder, limit=steps))
        while not hidden(folder):  # noqa: ASYNC110  # a file tells nobody
            await asyncio.sleep(0)
        with pytest.raises(ImageLocked, match="another process has it open"):
            await convert(folder)
        steps.noted = 99
        steps.note()
        await first
    await same_content(folder, "qcow2")
    assert names_in(folder) == ["new", "source.raw"]


# -- its other lives


@pytest.mark.parametrize("operation", ["flush", "note", "sync"])
async def test_what_fails_on_the_way_can_be_gone_on_with(
    operation: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def broken(*_args: object) -> None:
        raise BlockError(errno=errno.EIO)

    with monkeypatch.context() as patch, interrupting(lambda: None, after=99) as steps:
        if operation == "flush":
            patch.setattr("blockio.img.resuming.Checkpoints._keep", broken)
        elif operation == "note":
            patch.setattr("blockio.img.journal.os.pwrite", full)
        else:
            patch.setattr("blockio.img.resuming.os.fsync", full)
        with pytest.raises(BlockError):
            await convert(folder, limit=steps)
    assert "new" not in names_in(folder)
    await convert(folder)
    await same_content(folder, "qcow2")
    assert names_in(folder) == ["new", "source.raw"]


@pytest.mark.parametrize("format", ["raw", "qcow2"])
async def test_a_full_disk_is_gone_on_with_when_there_is_room(format: str, folder: Path) -> None:
    source = img.Image(filename=str(folder / "source.raw"), format="raw")
    with small_file_system(folder, 7 * CHUNK) as small, interrupting(lambda: None, after=99) as steps:
        with pytest.raises(BlockError) as caught:
            await convert(small, format, source=source, limit=steps)
        assert caught.value.errno == errno.ENOSPC
        assert "new" not in names_in(small)
        with pytest.raises(BlockError):  # nobody made room, and nothing is lost by trying
            await convert(small, format, source=source)
        enlarge(small, 8 << 20)
        result = await convert(small, format, source=source)
        assert CHUNK <= result.resumed < SIZE
        assert names_in(small) == ["new"]
        assert (await img.compare(source, img.Image(filename=str(small / "new"), format=format))).identical


async def test_cancelled_at_any_await_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockio.img.copying.CHUNK", 4096)
    monkeypatch.setattr("blockio.img.resuming.EVERY", 0)
    content = pattern(12288)
    (tmp_path / "source.raw").write_bytes(content)

    async def scenario() -> None:
        await convert(tmp_path, "raw")

    def whole(*, surely: bool) -> None:
        if surely or names_in(tmp_path) == ["new", "source.raw"]:
            assert not hidden(tmp_path)
            assert (tmp_path / "new").read_bytes() == content
            (tmp_path / "new").unlink()

    async def afterwards(_nth: int) -> None:
        await in_worker(partial(whole, surely=False))
        await convert(tmp_path, "raw")
        await in_worker(partial(whole, surely=True))

    assert await cancel_at_every_await(scenario, afterwards) > 10


@pytest.mark.peer("qemu-img")
def test_killed_at_any_step_it_goes_on(tmp_path: Path) -> None:
    options = {"format": "qcow2", "compress": True, "digest": "sha256", "options": {"cluster_size": "16384"}}
    work = tmp_path / "work"
    work.mkdir()
    content = pattern(3 * CHUNK) + bytes(CHUNK // 2) + pattern(CHUNK // 2 - 512)
    (work / "source.raw").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killed", work, json.dumps(options)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    resumed = json.loads(done.stdout)
    # Nothing was there yet, some of it was, and in the end all of it, under its name.
    assert {0, len(content)} <= set(resumed)
    assert any(0 < done < len(content) for done in resumed)
    assert len(resumed) > 15
    qemu_img("compare", "-f", "raw", "-F", "qcow2", work / "source.raw", work / "new")
    assert_clean(work / "new")
    assert_clean(tmp_path / "before")


# -- the lines


@given(
    st.lists(st.dictionaries(st.text(max_size=9), st.integers(0, 1 << 62), max_size=3), max_size=6),
    st.binary(max_size=40),
    st.data(),
)
def test_lines_come_back_up_to_the_first_that_is_not_whole(
    values: list[dict[str, int]], more: bytes, data: st.DataObject
) -> None:
    lines = [line_of(value) for value in values]
    whole = b"".join(lines)
    found, good = lines_in(whole + more.replace(b"\n", b""))
    assert (len(found), good) == (len(values), len(whole))
    cut = data.draw(st.integers(0, len(whole)))
    found, good = lines_in(whole[:cut])
    assert whole[:good] == b"".join(lines[: len(found)])
    assert cut == len(whole) or cut - good < len(lines[len(found)])
    if whole:
        at = data.draw(st.integers(0, len(whole) - 1))
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << data.draw(st.integers(0, 7))
        found, good = lines_in(bytes(spoilt))
        assert good <= at
