"""Damaged snapshot tables: ``check`` and its repairs find, say and mend what qemu-img does; opening refuses as it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.imgtool import Outcome, run_both
from tests.support.qemu import qemu_img, qemu_io

pytestmark = pytest.mark.peer("qemu-img", "qemu-io")


def _put(at: int, format: str, value: int) -> Callable[[bytearray, int], None]:
    """Change a field of the snapshot table, or of the header where *at* is negative."""

    def change(image: bytearray, table: int) -> None:
        struct.pack_into(format, image, table + at if at >= 0 else -at, value)

    return change


_WORDS = re.compile("napshot|force")
DAMAGES = {
    "too much extra data": _put(36, ">I", 2000),
    "no icount": _put(36, ">I", 16),
    "large L1 table": _put(8, ">I", 0x1000000),
    "crooked L1 table": _put(0, ">Q", 0x12345),
    "L1 table past the end": _put(0, ">Q", 1 << 40),
    "crooked table": _put(-64, ">Q", 0x12345),
    "one snapshot that is none": _put(-60, ">I", 3),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("kept") / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write 0 64k", format="qcow2")
    for name in ("one", "two"):
        qemu_img("snapshot", "-c", name, path)
    return path.read_bytes()


def _mistakes(outcome: Outcome) -> list[tuple[int, list[str]]]:
    """Exit codes and the lines about snapshots; which clusters leaked is the allocator's business."""
    return [
        (
            said.status,
            [line.removeprefix("qemu-img: ") for line in (said.out + said.err).splitlines() if _WORDS.search(line)],
        )
        for said in outcome.said
    ]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_is_found_and_mended(damage: str, kept: bytes, tmp_path: Path) -> None:
    image = bytearray(kept)
    (table,) = struct.unpack_from(">Q", image, 64)
    DAMAGES[damage](image, table)
    template = tmp_path / "template"
    template.mkdir()
    (template / "a.qcow2").write_bytes(image)
    script = ["check a.qcow2", "check -r all a.qcow2", "check a.qcow2", "snapshot -l a.qcow2"]
    theirs, mine = run_both(script, ["a.qcow2"], template, tmp_path)
    assert _mistakes(mine) == _mistakes(theirs)
    assert mine.files == theirs.files
