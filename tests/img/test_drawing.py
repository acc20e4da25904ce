"""Pictures of where the data of a disk lies, and the tree of a chain."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError
from blockio.graph.node import all_nodes
from blockio.img.drawing import LEGEND
from blockio.img.png import encode
from blockio.testing.cancel import cancel_at_every_await
from tests.support.imgtool import Said, capture

MIB = 1 << 20


def run(start: int, length: int, kind: str) -> img.MapEntry:
    """``A`` own data, ``B`` of a backing file, ``0`` zeroes, a space: nothing."""
    return img.MapEntry(start, length, int(kind == "B"), kind != " ", kind in "0 ", kind in "AB")


@given(st.lists(st.tuples(st.integers(1, 50), st.sampled_from("AB0 ")), min_size=1, max_size=20), st.integers(1, 40))
def test_a_cell_shows_what_most_of_its_bytes_are(pieces: list[tuple[int, str]], width: int) -> None:
    disk = "".join(kind * length for length, kind in pieces)
    runs, at = [], 0
    for length, kind in pieces:
        runs.append(run(at, length, kind))
        at += length
    drawn = img.Picture(0, len(disk), width=width, rows=3)
    for entry in reversed(runs):
        drawn.add(entry)
    shown = "".join(line.strip("│") for line in drawn.text(labels=False).splitlines())
    cells = min(width * 3, len(disk))
    for cell in range(cells):
        share = disk[cell * len(disk) // cells : (cell + 1) * len(disk) // cells]
        data, own = share.count("A") + share.count("B"), share.count("A")
        if data * 10 >= len(share) * 9:
            expected = "█" if own * 2 >= data else "▓"
        else:
            expected = "░" if data else "·" if "0" in share else " "
        assert shown[cell] == expected
    assert img.picture(runs, width=width, rows=3) == drawn.text()


async def chain(folder: Path) -> img.Image:
    """An overlay with a MiB of its own on a base that has the next one."""
    (folder / "base.raw").write_bytes(bytes(MIB) + b"b" * MIB + bytes(2 * MIB))
    overlay = str(folder / "overlay.qcow2")
    await img.create(overlay, "qcow2", backing_file="base.raw", backing_format="raw", gate=AllowAll())
    (folder / "part.raw").write_bytes(b"a" * MIB + bytes(0))
    image = img.Image(filename=overlay, format="qcow2", gate=AllowAll())
    await img.convert(img.Image(filename=str(folder / "part.raw"), format="raw"), image, create=False)
    return image


async def test_an_image_is_drawn_whole_and_in_part(tmp_path: Path) -> None:
    image = await chain(tmp_path)
    entries = [entry async for entry in img.map(image)]
    assert (await img.draw(image, rows=2)).text() == img.picture(entries, rows=2)
    assert (await img.draw(image, width=2, rows=1, length=2 * MIB)).text(labels=False) == "│█▓│"
    assert (await img.draw(image, width=1, rows=1, start=MIB, length=MIB)).text(labels=False) == "│▓│"
    assert (await img.draw(image, start=64 * MIB)).text() == ""
    with pytest.raises(BlockError):
        await img.draw(str(tmp_path / "missing"))


async def test_cancelled_at_any_await_nothing_is_open(tmp_path: Path) -> None:
    image = await chain(tmp_path)

    async def scenario() -> None:
        await img.draw(image)

    async def afterwards(nth: int) -> None:
        assert all_nodes() == [], f"cancelled at await {nth}"

    assert await cancel_at_every_await(scenario, afterwards)


@pytest.mark.parametrize(("kinds", "width"), [("A", 9), ("AABB00  A0 ", 4), ("A0 B" * 10, 7)])
def test_the_png_has_the_colours_of_the_svg(kinds: str, width: int) -> None:
    drawn = img.Picture(0, len(kinds), width=width, rows=3)
    for at, kind in enumerate(kinds):
        drawn.add(run(at, 1, kind))
    cells = [
        (int(rect.get("x", "0")), int(rect.get("y", "0")), int(rect.get("width", "0")), rect.get("fill"))
        for rect in ElementTree.fromstring(drawn.svg()).iter("{http://www.w3.org/2000/svg}rect")
    ][:-5]  # what is left out are the samples of the legend
    with Image.open(BytesIO(drawn.png())) as decoded:
        decoded.load()
        assert decoded.mode == "P"
        pixels = decoded.convert("RGB")
    left = min(x for x, *_ in cells)
    for x, y, length, colour in cells:
        for place in (x, x + length - 1):
            shown = pixels.getpixel((place - left, y))
            assert isinstance(shown, tuple)
            assert f"#{bytes(map(int, shown)).hex()}" == colour
            assert pixels.getpixel((place - left, y)) == pixels.getpixel((place - left, y + 9))
            assert pixels.getpixel((place - left, y - 1)) == (255, 255, 255)
    with Image.open(BytesIO(img.Picture(0, 0).png())) as empty:
        empty.load()


def test_a_png_without_a_pixel_there_is_not() -> None:
    for lines in ([], [b""], [b"12", b"1"]):
        with pytest.raises(ValueError, match="at least one pixel"):
            encode(lines, ["#000000"])


def test_the_drawing_is_svg() -> None:
    drawn = img.Picture(0, 100, width=10, rows=2)
    drawn.add(run(0, 55, "A"))
    root = ElementTree.fromstring(drawn.svg())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    widths = [int(rect.get("width", "0")) for rect in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert widths[:3] == [100, 10, 90]
    assert ElementTree.fromstring(img.Picture(0, 0).svg()) is not None


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., Said]:
    aside = tmp_path / "aside"
    aside.mkdir()

    def call(*words: str) -> Said:
        return capture(list(words), tmp_path, aside, "blockio img")

    return call


def test_the_command_draws(tmp_path: Path, tool: Callable[..., Said]) -> None:
    (tmp_path / "a.raw").write_bytes(b"a" * MIB)
    said = tool("map", "--picture", "-f", "raw", "a.raw")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines()[0] == f"{0:>8} │{'█' * 64}│"
    assert said.out.endswith(f"│\n{LEGEND}\n")
    assert tool("map", "--picture=a.svg", "-f", "raw", "a.raw") == (0, "", "")
    ElementTree.fromstring((tmp_path / "a.svg").read_text())
    assert tool("map", "--picture=a.png", "-f", "raw", "a.raw") == (0, "", "")
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.size == (640, 194)
    for words, complaint in (
        (["--picture=a.gif"], "'a.gif' ends in neither .svg nor .png, which is what --picture draws into"),
        (["--picture", "--output=json"], "--picture and --output=json are mutually exclusive"),
        (["--picture=none/a.svg"], "Could not write 'none/a.svg': No such file or directory"),
    ):
        assert tool("map", *words, "-f", "raw", "a.raw") == (1, "", f"blockio img: {complaint}\n")


def test_a_chain_is_a_tree(tmp_path: Path, tool: Callable[..., Said]) -> None:
    (tmp_path / "a.raw").write_bytes(b"a" * MIB)
    for name, below, format in (("b.qcow2", "a.raw", "raw"), ("c.qcow2", "b.qcow2", "qcow2")):
        assert tool("create", "-q", "-f", "qcow2", "-b", below, "-F", format, name).status == 0
    said = tool("info", "--tree", "c.qcow2")
    top, middle, bottom = said.out.splitlines()
    assert top.startswith("c.qcow2 (qcow2, 1 MiB, ")
    assert middle.startswith("└── b.qcow2 (qcow2, 1 MiB, ")
    assert bottom.startswith("    └── a.raw (raw, 1 MiB, ")
    assert tool("info", "--tree", "--output=json", "c.qcow2") == tool(
        "info", "--backing-chain", "--output=json", "c.qcow2"
    )


def test_a_data_file_is_a_leaf_of_the_tree(tmp_path: Path, tool: Callable[..., Said]) -> None:
    def make(name: str, *words: str) -> None:
        assert tool("create", "-q", "-f", "qcow2", "-o", f"data_file={name}.raw", *words, f"{name}.qcow2").status == 0

    make("a", "-o", "data_file_raw=on,size=1M")
    make("b", "-b", "a.qcow2", "-F", "qcow2")
    said = tool("info", "--tree", "b.qcow2")
    assert [line.partition(" (qcow2")[0] for line in said.out.splitlines()] == [
        "b.qcow2",
        "├── b.raw (data file)",
        "└── a.qcow2",
        "    └── a.raw (data file)",
    ]


def test_a_broken_chain_is_a_tree_as_far_as_it_goes(tmp_path: Path, tool: Callable[..., Said]) -> None:
    for name, below in (("c.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")):
        assert tool("create", "-q", "-u", "-f", "qcow2", "-b", below, "-F", "qcow2", name, "1M").status == 0
    said = tool("info", "--tree", "c.qcow2")
    assert [line.partition(" (qcow2")[0] for line in said.out.splitlines()] == [
        "c.qcow2",
        "└── b.qcow2",
        "    └── a.qcow2 (not opened)",
    ]
    assert (said.status, said.err) == tool("info", "a.qcow2")[::2]
    assert said.status == 1
    assert tool("rebase", "-u", "-b", "c.qcow2", "-F", "qcow2", "b.qcow2").status == 0
    said = tool("info", "--tree", "c.qcow2")
    assert said.out.splitlines()[-1] == "    └── c.qcow2 (not opened)"
    assert (said.status, said.err) == (1, "blockio img: Backing file 'c.qcow2' creates an infinite loop.\n")
    assert tool("info", "--tree", "a.qcow2").out == ""
