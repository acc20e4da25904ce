"""An image may not make the library open a file that its caller did not allow.

Every reference that an image's bytes can hold is tried: a backing file, an external data file, a ``json:`` name inside
a header, a guest that writes a qcow2 header onto its raw disk. Denied by default, allowed with ``AllowAll``, replaced
by ``Replace``; and after a refusal nothing is open that was not open before.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Awaitable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import blockio
from blockio import Allow, AllowAll, Decision, Deny, OpenDenied, Reference, ReferenceKind, Replace
from blockio.graph.node import all_nodes
from tests.support.leaks import Census
from tests.support.qemu import qemu_img

pytestmark = pytest.mark.peer("qemu-img")

SECRET = b"root:x:0:0:"


class Recorder:
    """A gate that notes what it is asked and answers with *decision*."""

    def __init__(self, decision: Decision) -> None:
        self.decision = decision
        self.asked: list[Reference] = []

    def __call__(self, reference: Reference, /) -> Awaitable[Decision]:
        self.asked.append(reference)
        return self._answer()

    async def _answer(self) -> Decision:
        return self.decision


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Stands in for /etc/passwd where a test needs to know its bytes."""
    path = tmp_path / "secret"
    path.write_bytes(SECRET.ljust(1 << 16, b"#"))
    return path


@pytest.fixture(autouse=True)
def nothing_opened() -> Iterator[None]:
    """No refusal leaves a descriptor or a node behind."""
    before = Census.take()
    yield
    assert not Census.take() - before
    assert all_nodes() == []


def overlay(path: Path, target: str | Path, format: str = "raw") -> Path:
    """A qcow2 image whose header names *target* as its backing file."""
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", target, "-F", format, path, "64k")
    return path


def normal(path: str) -> str:
    """Without ``..``; a string operation."""
    return os.path.normpath(path)


async def first_bytes(blk: blockio.BlockBackend) -> bytes:
    memory = bytearray(len(SECRET))
    await blk.co_preadv(0, memory)
    return bytes(memory)


@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "file:/etc/passwd", "nbd://127.0.0.1:1/x"])
async def test_a_backing_file_is_denied_by_default(tmp_path: Path, target: str) -> None:
    image = overlay(tmp_path / "evil.qcow2", target)
    with pytest.raises(OpenDenied) as caught:
        await blockio.open(str(image), format="qcow2")
    assert caught.value.errno == errno.EPERM
    assert target in str(caught.value)
    assert "not allowed by the open gate" in str(caught.value)


async def test_a_backing_file_with_a_relative_way_out(tmp_path: Path, secret: Path) -> None:
    """The gate sees the path that would be opened, not the image's riddle."""
    folder = tmp_path / "images"
    folder.mkdir()
    image = overlay(folder / "evil.qcow2", "../secret")
    gate = Recorder(Deny("no"))
    with pytest.raises(OpenDenied, match="no"):
        await blockio.open(str(image), format="qcow2", gate=gate)
    (reference,) = gate.asked
    assert reference.kind is ReferenceKind.BACKING
    assert normal(reference.target) == str(secret)
    assert reference.format == "raw"
    assert reference.image == str(image)


async def test_allowed_it_is_read(tmp_path: Path, secret: Path) -> None:
    image = overlay(tmp_path / "trusted.qcow2", secret)
    async with blockio.open(str(image), format="qcow2", gate=AllowAll()) as blk:
        assert await first_bytes(blk) == SECRET


async def test_replaced_the_caller_decides(tmp_path: Path, secret: Path) -> None:
    image = overlay(tmp_path / "evil.qcow2", secret)
    harmless = tmp_path / "harmless"
    harmless.write_bytes(b"harmless".ljust(1 << 16, b"."))
    gate = Recorder(Replace({"driver": "raw", "file": {"driver": "file", "filename": str(harmless)}}))
    async with blockio.open(str(image), format="qcow2", gate=gate) as blk:
        assert (await first_bytes(blk)).startswith(b"harmless")


async def test_named_by_the_caller_the_gate_is_not_asked(tmp_path: Path, secret: Path) -> None:
    image = overlay(tmp_path / "image.qcow2", "/etc/passwd")
    options = {"backing": {"driver": "raw", "file": {"driver": "file", "filename": str(secret)}}}
    async with blockio.open(str(image), format="qcow2", options=options) as blk:
        assert await first_bytes(blk) == SECRET
    async with blockio.open(str(image), format="qcow2", options={"backing": None}) as blk:
        assert await first_bytes(blk) == bytes(len(SECRET))


async def test_without_backing_files_nobody_asks(tmp_path: Path) -> None:
    image = overlay(tmp_path / "image.qcow2", "/etc/passwd")
    gate = Recorder(Deny("no"))
    flags = blockio.OpenFlags(read_only=True, no_backing=True)
    async with blockio.open(str(image), format="qcow2", gate=gate, flags=flags) as blk:
        assert await first_bytes(blk) == bytes(len(SECRET))
    assert gate.asked == []


async def test_a_chain_is_asked_link_by_link(tmp_path: Path, secret: Path) -> None:
    """Allowing one image does not allow what that image names."""
    below = overlay(tmp_path / "below.qcow2", secret)
    top = overlay(tmp_path / "top.qcow2", below, "qcow2")
    asked: list[str] = []

    async def only_the_first(reference: Reference, /) -> Decision:
        asked.append(reference.target)
        return Allow() if reference.target == str(below) else Deny("only the first")

    with pytest.raises(OpenDenied, match="only the first"):
        await blockio.open(str(top), format="qcow2", gate=only_the_first)
    assert asked == [str(below), str(secret)]


@pytest.mark.parametrize(
    "spec",
    [
        {"driver": "raw", "file": {"driver": "file", "filename": "/etc/passwd"}},
        {"driver": "file", "filename": "/etc/passwd"},
        {"driver": "raw", "file.driver": "file", "file.filename": "/etc/passwd"},
        {"file": {"driver": "host_device", "filename": "/dev/zero"}},
    ],
)
async def test_a_json_name_in_a_header(tmp_path: Path, spec: dict[str, object]) -> None:
    name = "json:" + json.dumps(spec)
    image = overlay(tmp_path / "evil.qcow2", name)
    gate = Recorder(Deny("no"))
    with pytest.raises(OpenDenied):
        await blockio.open(str(image), format="qcow2", gate=gate)
    assert gate.asked[0].target.startswith("json:")
    with pytest.raises(OpenDenied):
        await blockio.open(str(image), format="qcow2")


async def test_a_data_file(tmp_path: Path) -> None:
    """The data file's name in the header is replaced by one that the maker of the image would like to read."""
    image, data = tmp_path / "evil.qcow2", tmp_path / "XXXXXXXXXXX"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", image, "64k")
    data.unlink()
    raw = bytearray(image.read_bytes())
    old, new = str(data).encode(), b"/etc/passwd"
    at = raw.index(old)
    raw[at - 4 : at] = len(new).to_bytes(4, "big")
    raw[at : at + len(old)] = new.ljust(len(old), b"\0")
    image.write_bytes(raw)
    gate = Recorder(Deny("no"))
    with pytest.raises(OpenDenied):
        await blockio.open(str(image), format="qcow2", gate=gate, read_only=True)
    assert [(reference.kind, reference.target) for reference in gate.asked] == [
        (ReferenceKind.DATA_FILE, "/etc/passwd")
    ]
    with pytest.raises(OpenDenied):
        await blockio.open(str(image), format="qcow2")
    data.write_bytes(b"mine".ljust(65536, b"."))
    ways: tuple[dict[str, object], ...] = (
        {"data-file": {"driver": "file", "filename": str(data)}},
        {"data-file.filename": str(data)},
    )
    for options in ways:
        gate.asked.clear()
        given = {"driver": "qcow2", "file.filename": str(image), **options}
        async with blockio.open(
            options=given, gate=gate, read_only=True
        ) as blk:  # what the caller says is not the image's to decide, and nobody is asked
            memory = bytearray(4)
            await blk.co_preadv(0, memory)
            assert memory == b"mine"
        assert not gate.asked
    replacing = Recorder(Replace({"driver": "file", "filename": str(data)}))
    async with blockio.open(str(image), format="qcow2", gate=replacing, read_only=True) as blk:
        await blk.co_preadv(0, memory)
        assert memory == b"mine"


@pytest.mark.parametrize(
    "name",
    [
        b'json:{"driver":"file","filename":"/etc/passwd"}',
        b"nbd:localhost:10809",
        b"file:/etc/passwd",
        b"\xff\xfe",
        b"a\0b",
        b"evil.qcow2",
        b".",
        b"nowhere",
    ],
)
async def test_any_name_of_a_data_file_is_the_gates(
    name: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    image = tmp_path / "evil.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", image, "64k")
    raw = bytearray(image.read_bytes())
    raw[79] |= 4
    raw[112:512] = (b"DATA" + len(name).to_bytes(4, "big") + name).ljust(400, b"\0")
    image.write_bytes(raw)
    gate = Recorder(Deny("no"))
    with pytest.raises(OpenDenied):
        await blockio.open("evil.qcow2", format="qcow2", gate=gate)
    wanted = name.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    assert [reference.target for reference in gate.asked] == [wanted]
    with suppress(blockio.BlockError):  # whatever is there, an answer of the gate's is an answer
        async with blockio.open("evil.qcow2", format="qcow2", gate=AllowAll(), read_only=True):
            pass


async def test_a_guest_that_writes_a_header_onto_its_raw_disk(tmp_path: Path, secret: Path) -> None:
    """The classic: a raw disk, opened without saying so, turns into whatever its guest wrote."""
    evil = overlay(tmp_path / "evil.qcow2", secret)
    disk = tmp_path / "guest.raw"
    disk.write_bytes(evil.read_bytes().ljust(1 << 20, b"\0"))
    async with blockio.open(str(disk), format="raw") as blk:  # said to be raw, it is raw
        memory = bytearray(4)
        await blk.co_preadv(0, memory)
        assert memory == b"QFI\xfb"
        assert blk.getlength() == 1 << 20
    with pytest.raises(OpenDenied):  # guessed, it is qcow2, but cannot reach for anything
        await blockio.open(str(disk))


async def test_a_backing_file_without_a_format_is_a_guess(tmp_path: Path, secret: Path) -> None:
    """Which format it has is asked as a reference of its own, after the file itself."""
    image = overlay(tmp_path / "image.qcow2", secret)
    raw = bytearray(image.read_bytes())
    at = raw.index((0xE2792ACA).to_bytes(4, "big"))  # the extension that holds the backing format
    raw[at : at + 4] = (0x11223344).to_bytes(4, "big")  # now one that nobody knows
    image.write_bytes(raw)
    gate = Recorder(Allow())
    async with blockio.open(str(image), format="qcow2", gate=gate) as blk:
        assert await first_bytes(blk) == SECRET
    assert [reference.kind for reference in gate.asked] == [ReferenceKind.BACKING, ReferenceKind.PROBE]

    async def no_guesses(reference: Reference, /) -> Decision:
        return Deny("no guesses") if reference.kind is ReferenceKind.PROBE else Allow()

    with pytest.raises(OpenDenied, match="no guesses"):
        await blockio.open(str(image), format="qcow2", gate=no_guesses)


async def test_an_image_that_names_itself(tmp_path: Path) -> None:
    image = overlay(tmp_path / "loop.qcow2", "/dev/null")
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", image, "-F", "qcow2", image)
    with pytest.raises(blockio.BlockError):
        await blockio.open(str(image), format="qcow2", gate=AllowAll())


async def test_a_gate_that_fails_refuses(tmp_path: Path) -> None:
    image = overlay(tmp_path / "image.qcow2", "/etc/passwd")

    async def broken(reference: Reference, /) -> Decision:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await blockio.open(str(image), format="qcow2", gate=broken)
