"""New images: clean, as QEMU would make them, and never half there."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

import blockio
from blockio.driver.options import convert_options, parse_image_opts
from blockio.errors import BlockError, LimitExceeded, OptionError
from blockio.graph.create import create_image as create_file
from blockio.io import NodeIO
from blockio.testing.memory import MemoryChild
from blockio_drivers.qcow2.create import Layout, create_image
from blockio_drivers.qcow2.info import specific_info
from blockio_drivers.qcow2.options import TOO_LARGE, Qcow2CreateOptions
from blockio_drivers.qcow2.tables import Geometry
from tests.support.qcow2_craft import MemoryTarget, check, new_image
from tests.support.qemu import assert_clean, qemu_img, qemu_img_json, qemu_io

MIB = 1 << 20


def matrix() -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = []
    for cluster_size in (512, 4096, 65536, 2 * MIB):
        for refcount_bits in (1, 2, 4, 8, 16, 32, 64) if cluster_size == 65536 else (1, 64):
            for prealloc in ("off", "metadata"):
                cases.append({"cluster_size": cluster_size, "refcount_bits": refcount_bits, "preallocation": prealloc})
        cases.append({"cluster_size": cluster_size, "compat": "0.10"})
        cases.append({"cluster_size": cluster_size, "compression_type": "zstd", "lazy_refcounts": True})
        cases.append({"cluster_size": cluster_size, "backing_file": "b.raw", "backing_fmt": "raw"})
        cases.append({"cluster_size": cluster_size, "preallocation": "full"})
    for cluster_size in (16384, 65536, 2 * MIB):
        for prealloc in ("off", "metadata", "falloc", "full"):
            extended = {"cluster_size": cluster_size, "extended_l2": True, "preallocation": prealloc}
            cases += [extended, {**extended, "backing_file": "b.raw", "backing_fmt": "raw"}]
    return cases


def words(options: dict[str, Any]) -> str:
    said = {True: "on", False: "off"}
    return ",".join(f"{key}={said[value] if isinstance(value, bool) else value}" for key, value in options.items())


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("options", matrix(), ids=words)
async def test_clean_and_the_same_as_qemus(options: dict[str, Any], tmp_path: Path) -> None:
    size = 3 * MIB + 512
    (tmp_path / "b.raw").touch()
    image = await new_image(size, **options)
    ours = image.save(tmp_path / "ours.qcow2")
    theirs = tmp_path / "theirs.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", words(options), theirs, str(size), cwd=tmp_path)
    assert_clean(ours)
    told = [qemu_img_json("info", path) for path in (ours, theirs)]
    for info in told:
        del info["filename"], info["actual-size"]
        info.pop("children", None)
        info.pop("full-backing-filename", None)
    assert told[0] == told[1]
    assert told[0]["format-specific"] == specific_info(image.header)
    assert json.dumps(told[1]["format-specific"]) == json.dumps(specific_info(image.header)), "in QEMU's order"
    result, lines = await check(image)
    assert lines == []
    assert result.image_end_offset == qemu_img_json("check", ours)["image-end-offset"]
    if options.get("preallocation", "off") == "off":
        assert image.header.encode() == image.data[: len(image.header.encode())]
        assert ours.read_bytes().rstrip(b"\0") == theirs.read_bytes().rstrip(b"\0"), "an empty image has one layout"
    else:
        assert qemu_img("compare", ours, theirs).stdout == "Images are identical.\n"
        entry = qemu_img_json("map", ours)[0]
        assert entry["data"] or options.get("extended_l2"), "preallocated clusters are data"
        assert "offset" in entry or "backing_file" in options, "and have a place, as preallocated subclusters do"


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("size", [0, 1, 511, 512, 1000])
async def test_sizes_are_whole_sectors(size: int, tmp_path: Path) -> None:
    path = (await new_image(size)).save(tmp_path / "a.qcow2")
    qemu_img("create", "-q", "-f", "qcow2", tmp_path / "b.qcow2", str(size))
    assert qemu_img_json("info", path)["virtual-size"] == qemu_img_json("info", tmp_path / "b.qcow2")["virtual-size"]
    assert_clean(path)


REFUSED: dict[str, tuple[type[BlockError], str]] = {
    "cluster_size=100": (OptionError, "Cluster size must be a power of two between 512 and 2048k"),
    "cluster_size=4M": (OptionError, "Cluster size must be a power of two between 512 and 2048k"),
    "cluster_size=1000": (OptionError, "Cluster size must be a power of two between 512 and 2048k"),
    "refcount_bits=7": (OptionError, "Refcount width must be a power of two and may not exceed 64 bits"),
    "refcount_bits=128": (OptionError, "Refcount width must be a power of two and may not exceed 64 bits"),
    "refcount_bits=0": (OptionError, "Refcount width must be a power of two and may not exceed 64 bits"),
    "compat=0.10,refcount_bits=8": (
        OptionError,
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use version=v3 or greater)",
    ),
    "compat=0.10,lazy_refcounts=on": (
        OptionError,
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    "compat=v2,compression_type=zstd": (
        OptionError,
        "Non-zlib compression type is only supported with compatibility level 1.1 and above "
        "(use version=v3 or greater)",
    ),
    "compat=9": (OptionError, "Parameter 'version' does not accept value '9'"),
    "compression_type=foo": (OptionError, "Parameter 'compression-type' does not accept value 'foo'"),
    "preallocation=foo": (OptionError, "Parameter 'preallocation' does not accept value 'foo'"),
    "preallocation=metadata,backing_file=b.raw,backing_fmt=raw": (
        OptionError,
        "Backing file and preallocation can only be used at the same time if extended_l2 is on",
    ),
    "extended_l2=on,cluster_size=8k": (
        OptionError,
        "Extended L2 entries are only supported with cluster sizes of at least 16384 bytes",
    ),
    "extended_l2=on,compat=0.10": (
        OptionError,
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use version=v3 or greater)",
    ),
    "backing_fmt=raw": (OptionError, "Backing format cannot be used without backing file"),
    "data_file_raw=on": (OptionError, "data-file-raw requires data-file"),
    "cluster_size=512,size=1T": (
        LimitExceeded,
        TOO_LARGE,
    ),
    "size=7E": (
        LimitExceeded,
        TOO_LARGE,
    ),
}


def options_of(text: str) -> Qcow2CreateOptions:
    given = {"size": MIB, **parse_image_opts(text)}
    options = convert_options(Qcow2CreateOptions, given, "qcow2")
    assert isinstance(options, Qcow2CreateOptions)
    return options


@pytest.mark.parametrize("text", REFUSED)
async def test_refused_before_anything_is_written(text: str) -> None:
    kind, message = REFUSED[text]
    target = MemoryTarget()
    with pytest.raises(kind) as caught:
        await create_image(target, options_of(text))
    assert str(caught.value) == message
    assert target.file.log == []


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("text", REFUSED)
def test_qemu_says_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "b.raw").touch()
    size = [] if "size=1T" in text or "size=7E" in text else ["1M"]
    done = qemu_img("create", "-q", "-f", "qcow2", "-o", text, "a.qcow2", *size, check=False, cwd=tmp_path)
    message = REFUSED[text][1]
    if message == TOO_LARGE:  # the command says it in other words
        message = "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
    assert done.stderr.splitlines()[0] == f"qemu-img: a.qcow2: {message}"


async def test_a_backing_name_that_does_not_fit() -> None:
    for length, code in ((450, errno.ENOSPC), (1030, errno.EINVAL)):
        options = Qcow2CreateOptions(size=MIB, cluster_size=512, backing_file="b" * length, backing_fmt="raw")
        with pytest.raises(OptionError, match="Could not assign backing file 'b") as caught:
            await create_image(MemoryTarget(), options)
        assert caught.value.errno == code


def test_the_refcount_table_has_a_limit() -> None:
    with pytest.raises(LimitExceeded):
        Layout.plan(Geometry.make(9, 6), 1 << 36, preallocated=True)
    assert Layout.plan(Geometry.make(9, 6), 1 << 36, preallocated=False).refcount_table_clusters > 1


async def test_the_header_comes_last_and_nothing_half_made_is_an_image() -> None:
    """Fail at every step: what is left never begins with the magic."""
    whole = MemoryTarget()
    options = Qcow2CreateOptions(size=MIB, preallocation="metadata", cluster_size=512)
    await create_image(whole, options)
    steps = len(whole.file.log)
    assert [name for name, offset, _ in whole.file.log if name != "write" or offset == 0] == [
        "truncate",
        "flush",
        "write",
        "flush",
    ]
    for step in range(steps - 1):
        target = MemoryTarget()

        def fail(_name: str, _offset: int, _nbytes: int, file: MemoryChild = target.file, step: int = step) -> None:
            if len(file.log) > step:
                raise BlockError(errno=errno.ENOSPC)

        target.file.before = fail
        with pytest.raises(BlockError) as caught:
            await create_image(target, options)
        assert caught.value.errno == errno.ENOSPC
        assert bytes(target.file.data[:4]) in {b"", bytes(4)}


async def test_a_device_is_wiped_where_the_image_lies() -> None:
    image = await new_image(MIB)
    target = MemoryTarget(MemoryChild(b"\xaa" * (4 * MIB)))
    await create_image(target, Qcow2CreateOptions(size=MIB))
    assert target.file.data[: len(image.data)] == image.data
    assert len(target.file.data) == 4 * MIB


async def test_space_is_asked_for_as_named() -> None:
    for mode in ("falloc", "full"):
        asked: list[object] = []

        class Watching(MemoryChild):
            async def co_truncate(self, length: int, **how: Any) -> None:
                asked.append((length, str(how["prealloc"])))  # noqa: B023  # read before the next round
                await super().co_truncate(length, **how)

        target = MemoryTarget(Watching())
        await create_image(target, Qcow2CreateOptions(size=MIB, preallocation=mode))
        assert asked == [(target.file.length, mode)]
        assert target.file.length > MIB


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("mode", ["off", "metadata", "falloc", "full"])
@pytest.mark.parametrize("cluster_size", [512, 65536, 2 * MIB])
async def test_on_a_file_space_is_really_taken(mode: str, cluster_size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    path.write_bytes(b"\xaa" * 5 * MIB)  # what was there before is gone
    said = {"size": 4 * MIB, "preallocation": mode, "cluster_size": cluster_size}
    await create_file("qcow2", str(path), said, path_factory=NodeIO, file_options={"size": 0})
    assert_clean(path)
    taken = path.stat().st_blocks * 512
    assert (taken >= 4 * MIB) == (mode in {"falloc", "full"})
    async with blockio.open(str(path), format="qcow2") as blk:
        data = bytearray(4 * MIB)
        await blk.co_preadv(0, data)
        assert data == bytes(4 * MIB)
        await blk.co_pwritev(MIB + 77 * 512, b"\x55" * 70000)
    assert_clean(path)
    assert "failed" not in qemu_io(path, f"read -P 0x55 {MIB + 77 * 512} 70000", format="qcow2").stdout


async def test_a_failed_creation_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    with pytest.raises(OptionError):
        await create_file(
            "qcow2", str(path), {"size": MIB, "cluster_size": 100}, path_factory=NodeIO, file_options={"size": 0}
        )
    assert not path.exists()
