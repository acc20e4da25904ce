"""``bitmap`` and what other commands do with bitmaps, beside the real qemu-img; see ``test_img_differential``."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from blockio_drivers.qcow2.extensions import BITMAPS
from blockio_drivers.qcow2.header import Header
from tests.qcow2.bitmap_rig import qemu_bits, qemu_list
from tests.support.imgcases import named, scripts
from tests.support.imgtool import Said, ours, run_both
from tests.support.qemu import assert_clean, qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")

BITMAP = """
bitmap
bitmap a.qcow2 b0
bitmap --add
bitmap --add a.qcow2
bitmap --add a.qcow2 x y
bitmap --add a.qcow2 b0
bitmap --add a.qcow2 x
bitmap --add -f qcow2 a.qcow2 x
bitmap --add -f raw a.qcow2 x
bitmap --add -f foo a.qcow2 x
bitmap --add nope x
bitmap --add a.qcow2 ''
bitmap --add -g 4k a.qcow2 x
bitmap --add -g 0 a.qcow2 x
bitmap --add -g 100 a.qcow2 x
bitmap --add -g 768 a.qcow2 x
bitmap --add -g 256 a.qcow2 x
bitmap --add -g 4G a.qcow2 x
bitmap --add -g 4194368k a.qcow2 x
bitmap --add -g 2G a.qcow2 x
bitmap --add -g -1 a.qcow2 x
bitmap --add -g x a.qcow2 x
bitmap --add --granularity=512 a.qcow2 x
bitmap -g 4k --remove a.qcow2 b0
bitmap -g 0 --remove a.qcow2 b0
bitmap --add --disable a.qcow2 x
bitmap --add --enable --merge b0 a.qcow2 x
bitmap --merge b0 --add a.qcow2 x
bitmap --add --remove a.qcow2 x
bitmap --remove --add a.qcow2 b0
bitmap --remove a.qcow2 b0
bitmap --remove a.qcow2 off ; bitmap --remove a.qcow2 b0
bitmap --remove a.qcow2 nope
bitmap --clear a.qcow2 b0
bitmap --clear --clear a.qcow2 b0
bitmap --clear a.qcow2 nope
bitmap --enable a.qcow2 off
bitmap --enable a.qcow2 nope
bitmap --disable a.qcow2 b0
bitmap --disable a.qcow2 nope
bitmap --disable --clear a.qcow2 b0
bitmap --merge off a.qcow2 b0
bitmap --merge b0 a.qcow2 off
bitmap --merge b0 a.qcow2 b0
bitmap --merge nope a.qcow2 b0
bitmap --merge b0 a.qcow2 nope
bitmap --merge
bitmap --merge=b0 a.qcow2 off
bitmap --merge s0 -b small.qcow2 a.qcow2 b0
bitmap --merge b0 -b other.qcow2 a.qcow2 b0
bitmap --merge b0 -b other.qcow2 -F qcow2 a.qcow2 off
bitmap --merge b0 -b other.qcow2 -F raw a.qcow2 off
bitmap --merge b0 -b nope a.qcow2 off
bitmap --merge nope -b other.qcow2 a.qcow2 off
bitmap --merge b0 --source-file other.qcow2 --source-format qcow2 a.qcow2 off
bitmap --add -b other.qcow2 a.qcow2 x
bitmap --add -F qcow2 a.qcow2 x
bitmap --merge b0 -F qcow2 a.qcow2 off
bitmap --add raw.raw x
bitmap --add -f raw raw.raw x
bitmap --remove -f raw raw.raw x
bitmap --add v2.qcow2 x
bitmap --add -g 512 huge.qcow2 x
bitmap --add huge.qcow2 x
bitmap --add --image-opts driver=qcow2,file.filename=a.qcow2 x
bitmap --add --image-opts -f qcow2 driver=qcow2,file.filename=a.qcow2 x
bitmap --add --object secret,id=s,data=x a.qcow2 x
bitmap --add --bogus a.qcow2 x
bitmap --add overlay.qcow2 x
bitmap --add small.qcow2 x ; bitmap --remove small.qcow2 s0 ; bitmap --add small.qcow2 s0
bitmap --add inuse.qcow2 b0
bitmap --add inuse.qcow2 x
bitmap --remove inuse.qcow2 b0
bitmap --clear inuse.qcow2 b0
bitmap --enable inuse.qcow2 b0
bitmap --disable inuse.qcow2 b0
bitmap --merge b0 inuse.qcow2 off
bitmap --merge off inuse.qcow2 b0
bitmap --merge b0 -b inuse.qcow2 a.qcow2 b0
bitmap --disable inuse.qcow2 off
"""

OTHERS = """
info a.qcow2
info --output=json a.qcow2
info inuse.qcow2
info --output=json inuse.qcow2
info broken.qcow2
check a.qcow2
check inuse.qcow2
check broken.qcow2
snapshot -l snap.qcow2
snapshot -a s snap.qcow2
snapshot -a nope snap.qcow2
snapshot -c t snap.qcow2
snapshot -d s snap.qcow2
convert --bitmaps -O qcow2 snap.qcow2 o.qcow2
info stale.qcow2
info stale2.qcow2
bitmap --add stale2.qcow2 x
resize stale2.qcow2 2M
check stale.qcow2
map stale.qcow2
compare stale.qcow2 stale.qcow2
compare -q stale.qcow2 a.qcow2
resize stale.qcow2 20M
bitmap --add stale.qcow2 x
bitmap --remove stale.qcow2 b0
resize a.qcow2 20M
resize --shrink a.qcow2 1M
resize inuse.qcow2 20M
convert --bitmaps -O qcow2 a.qcow2 o.qcow2
convert -O qcow2 a.qcow2 o.qcow2
convert --bitmaps -f qcow2 -O qcow2 -o cluster_size=4k a.qcow2 o.qcow2
convert --bitmaps -O qcow2 raw.raw o.qcow2
convert --bitmaps -O qcow2 a.qcow2 other.qcow2 o.qcow2
convert --bitmaps -O qcow2 inuse.qcow2 o.qcow2
convert --bitmaps --skip-broken-bitmaps -O qcow2 inuse.qcow2 o.qcow2
convert --bitmaps --skip-broken-bitmaps -O qcow2 a.qcow2 o.qcow2
convert --skip-broken-bitmaps -O qcow2 a.qcow2 o.qcow2
convert --bitmaps -n -O qcow2 a.qcow2 other.qcow2
convert --bitmaps -n -O qcow2 a.qcow2 plain.qcow2
convert --bitmaps -n -O raw a.qcow2 raw.raw
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with bitmaps: healthy, in use, with a broken directory; and some without."""
    folder = tmp_path_factory.mktemp("bitmaps")

    def run(*words: str) -> None:
        qemu_img(*words, cwd=folder)

    for name, size in (("a", "10M"), ("other", "10M"), ("plain", "10M"), ("small", "5M"), ("huge", "8T")):
        run("create", "-q", "-f", "qcow2", f"{name}.qcow2", size)
    run("create", "-q", "-f", "qcow2", "-o", "compat=0.10", "v2.qcow2", "1M")
    old = bytearray((folder / "v2.qcow2").read_bytes())
    old[72:104] = struct.pack(">IIIIQQ", BITMAPS, 24, 1, 0, 32, 0x50000)
    (folder / "stale2.qcow2").write_bytes(old)
    run("create", "-q", "-f", "raw", "raw.raw", "10M")
    run("create", "-q", "-f", "qcow2", "-b", "a.qcow2", "-F", "qcow2", "overlay.qcow2")
    run("create", "-q", "-f", "qcow2", "snap.qcow2", "1M")
    run("snapshot", "-c", "s", "snap.qcow2")
    for name in ("a", "other", "snap"):
        run("bitmap", "--add", f"{name}.qcow2", "b0")
    run("bitmap", "--add", "-g", "4k", "small.qcow2", "s0")
    qemu_io(folder / "a.qcow2", "write 1M 100k", "write 5M 1", format="qcow2")
    qemu_io(folder / "other.qcow2", "write 3M 100k", format="qcow2")
    run("bitmap", "--add", "--disable", "-g", "4k", "a.qcow2", "off")
    data = bytearray((folder / "a.qcow2").read_bytes())
    found = Header.decode(bytes(data[:65536])).bitmaps
    assert found is not None
    data[found.directory_offset + 15] |= 1
    (folder / "inuse.qcow2").write_bytes(data)
    data[95] = 0  # the autoclear bit
    (folder / "stale.qcow2").write_bytes(data)
    data[95] = 1
    data[found.directory_offset + 12] = 1
    (folder / "broken.qcow2").write_bytes(data)
    return folder


def dirty(folder: Path, changed: list[str]) -> dict[str, dict[str, object]]:
    """For each image what is dirty in each bitmap that is not in use."""
    found: dict[str, dict[str, object]] = {}
    for name in changed:
        path = folder / name
        found[name] = {name: qemu_bits(path, name) for name, _, flags in qemu_list(path) if "in-use" not in flags}
    return found


def words_of(script: list[str]) -> set[str]:
    return {word for line in script for word in re.findall(r"[\w.]+\.(?:qcow2|raw)", line)}


@pytest.mark.parametrize("script", [*scripts(BITMAP), *scripts(OTHERS)], ids=named)
def test_the_same_line_gives_the_same_outcome(script: list[str], images: Path, tmp_path: Path) -> None:
    names = {name for name in words_of(script) if (images / name).exists()} | {"a.qcow2"}
    theirs, mine = run_both(script, sorted(names), images, tmp_path)
    assert [plain(said) for said in mine.said] == [plain(said) for said in theirs.said]
    assert mine.files == theirs.files
    changed = [name for name, content in mine.files.items() if content != "as it was" and name.endswith(".qcow2")]
    assert dirty(tmp_path / "ours", changed) == dirty(tmp_path / "theirs", changed)


def plain(said: Said) -> Said:
    """Without the numbers of nodes that nobody named, and the room that a file takes."""
    out = re.sub(r"disk size: .*|\"actual-size\": \d+", "", said.out)
    return Said(said.status, out, re.sub(r"#block\d+", "#block", said.err))


def test_a_name_that_is_too_long(images: Path, tmp_path: Path) -> None:
    theirs, mine = run_both([f"bitmap --add a.qcow2 {'n' * 1024}"], ["a.qcow2"], images, tmp_path)
    assert [plain(said) for said in mine.said] == [plain(said) for said in theirs.said]


def test_what_is_done_better(images: Path, tmp_path: Path) -> None:
    """A repair leaves bitmaps where they are; a conversion that fails leaves no file."""
    script = [
        "check -r all a.qcow2",
        "convert --bitmaps -O raw a.qcow2 o.raw",
        "convert --bitmaps -O qcow2 -o compat=0.10 a.qcow2 o.qcow2",
    ]
    theirs, mine = run_both(script, ["a.qcow2"], images, tmp_path)
    assert mine.said == theirs.said
    assert mine.files == {"a.qcow2": "as it was"}


def test_what_was_added_records(images: Path, tmp_path: Path) -> None:
    """The other tool goes on with what one has made."""
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", path, "10M")
    (tmp_path / "aside").mkdir()
    assert ours("bitmap --add -g 4k disk.qcow2 b0", tmp_path, tmp_path / "aside").status == 0
    qemu_io(path, "write 20k 5k", format="qcow2")
    assert qemu_bits(path, "b0") == [(20480, 8192)]
    qemu_img("bitmap", "--add", "-g", "64k", path, "b1")
    assert ours("bitmap --merge b0 --disable disk.qcow2 b1", tmp_path, tmp_path / "aside").status == 0
    assert qemu_list(path) == [("b0", 4096, ["auto"]), ("b1", 65536, [])]
    assert qemu_bits(path, "b1") == [(0, 65536)]
    assert_clean(path)
