"""A verdict on an image from a stranger: true, cheap, and without opening anything else."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio import img
from blockio.driver.gate import AllowAll
from blockio.driver.inspection import FindingKind
from blockio.errors import BlockError, LimitExceeded, OpenDenied
from blockio.graph.node import all_nodes
from blockio.img.inspecting import INSPECT_BYTES
from blockio.img.marks import marks
from blockio.types import Limits
from blockio_drivers.crypto.header import KeySlot, LuksHeader
from tests.support.imgtool import Said, capture
from tests.support.qcow2_craft import Craft, new_image
from tests.support.qemu import qemu_img

K64 = 65536


class Opens:
    """Every file that this process opens, and every one whose existence it looks up, while it is on."""

    def __init__(self) -> None:
        self.on = False
        self.paths: list[str] = []

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event in {"open", "os.listdir", "os.scandir", "socket.connect", "socket.getaddrinfo"}:
            self.paths.append(os.fsdecode(args[0]) if isinstance(args[0], (str, bytes, os.PathLike)) else event)


_OPENS = Opens()
sys.addaudithook(_OPENS.hook)


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is opened, listed, stat'ed or connected to inside."""
    real = os.stat
    asyncio.get_running_loop().set_debug(False)  # it would open source files to show where tasks come from

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if isinstance(path, (str, bytes)):
            _OPENS.paths.append(os.fsdecode(path))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", stat)
        _OPENS.paths = []
        _OPENS.on = True
        try:
            yield _OPENS.paths
        finally:
            _OPENS.on = False


async def crafted(path: Path, bend: Callable[[Craft], object] = lambda _image: None, size: int = 1 << 20) -> str:
    image = await new_image(size)
    bend(image)
    return str(image.save(path))


def kinds(found: img.Inspection) -> set[FindingKind]:
    return {finding.kind for finding in found.findings}


def messages(found: img.Inspection) -> str:
    return "\n".join(finding.message for finding in found.findings)


def with_name(name: bytes) -> Callable[[Craft], object]:
    """Put a backing file name where QEMU puts it: behind the header."""

    def bend(image: Craft) -> object:
        image.put(0x200, name)
        return image.set(backing_file_offset=0x200, backing_file_size=len(name))

    return bend


def extension(magic: int, payload: bytes) -> bytes:
    return struct.pack(">II", magic, len(payload)) + payload.ljust(-(-len(payload) // 8) * 8, b"\0")


# -- the verdict


async def test_a_sound_image_is_harmless(tmp_path: Path) -> None:
    found = await img.inspect(await crafted(tmp_path / "a.qcow2"))
    assert found.harmless
    assert (found.opens_others, found.broken, found.disguised) == (False, False, False)
    assert (found.format, found.named_format, found.marks) == ("qcow2", "qcow2", ("qcow2",))
    assert found.virtual_size == 1 << 20
    assert found.findings == ()
    assert found.facts["cluster-size"] == K64


@pytest.mark.parametrize("length", [0, 1, 511, 1000, 4096])
async def test_raw_bytes_are_harmless_however_few(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.img"
    path.write_bytes(b"r" * length)
    found = await img.inspect(str(path))
    assert found.harmless
    assert (found.format, found.file_size, found.virtual_size) == ("raw", length, -(-length // 512) * 512)


@pytest.mark.parametrize(
    ("name", "target", "protocol", "remarks"),
    [
        ("base.qcow2", "{folder}/base.qcow2", None, []),
        ("sub/../base", "{folder}/sub/../base", None, []),
        ("../base", "{folder}/../base", None, ["outside the image's folder"]),
        ("/etc/passwd", "/etc/passwd", None, ["a place of the system"]),
        ("file:/etc/passwd", "file:/etc/passwd", "file", ["a place of the system"]),
        ("evil.qcow2", "{folder}/evil.qcow2", None, ["the image itself"]),
        ("nbd://host/x", "nbd://host/x", "nbd", ["the protocol 'nbd' decides what it is"]),
        ("json:{", "json:{", "json", ["Could not parse the JSON options: JSON parse error, premature EOI"]),
        ("json:[]", "json:[]", "json", ["Invalid JSON object given"]),
    ],
)
async def test_a_backing_file_is_named(
    tmp_path: Path, name: str, target: str, protocol: str | None, remarks: list[str]
) -> None:
    found = await img.inspect(await crafted(tmp_path / "evil.qcow2", with_name(name.encode())))
    assert found.opens_others
    assert not found.broken
    (opening,) = found.openings
    assert (opening.kind.value, opening.name, opening.format) == ("backing file", name, None)
    assert opening.target == target.replace("{folder}", str(tmp_path))
    assert opening.protocol == protocol
    expected = remarks if protocol == "json" else [*remarks, "no format is said: its first bytes would decide"]
    assert list(opening.remarks) == expected


@pytest.mark.parametrize(
    ("name", "remarks"),
    [("base", []), ("sub/base", []), ("../base", ["outside the image's folder"]), ("/data/base", ["an absolute path"])],
)
async def test_an_image_beside_us_has_a_folder_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, remarks: list[str]
) -> None:
    await crafted(tmp_path / "evil.qcow2", with_name(name.encode()))
    monkeypatch.chdir(tmp_path)
    (opening,) = (await img.inspect("evil.qcow2")).openings
    assert list(opening.remarks[:-1]) == remarks


async def test_a_json_name_is_taken_apart(tmp_path: Path) -> None:
    inner = {"driver": "qcow2", "file": {"driver": "nbd", "host": "evil"}, "backing": {"file.filename": "/etc/passwd"}}
    name = "json:" + json.dumps(inner)
    found = await img.inspect(await crafted(tmp_path / "evil.qcow2", with_name(name.encode())))
    (opening,) = found.openings
    assert set(opening.options) == {
        "driver=qcow2",
        "file.driver=nbd",
        "file.host=evil",
        "backing.file.filename=/etc/passwd",
    }


async def test_a_data_file_is_named(tmp_path: Path) -> None:
    def bend(image: Craft) -> object:
        image.set(incompatible=4)
        return image.put(112, extension(0x44415441, b"/etc/shadow") + bytes(8))

    found = await img.inspect(await crafted(tmp_path / "evil.qcow2", bend))
    (opening,) = found.openings
    assert (opening.kind.value, opening.name, opening.format) == ("data file", "/etc/shadow", "raw")
    assert found.facts["incompatible-features"] == ["data-file"]
    assert not found.broken


async def test_a_data_file_without_a_name_is_something_that_is_missing(tmp_path: Path) -> None:
    found = await img.inspect(await crafted(tmp_path / "a.qcow2", lambda i: i.set(incompatible=4)))
    assert not found.opens_others
    assert kinds(found) == {FindingKind.UNSUPPORTED}


BROKEN: dict[str, tuple[Callable[[Craft], object], FindingKind, str]] = {
    "L1 too large": (lambda i: i.set(l1_size=0xFFFFFFFF), FindingKind.LIMIT, "Active L1 table too large"),
    "disk too large": (lambda i: i.set(size=1 << 62), FindingKind.LIMIT, "Image is too big"),
    "snapshots": (lambda i: i.set(nb_snapshots=0xFFFFFFFF), FindingKind.LIMIT, "Snapshot table too large"),
    "L1 is the header": (lambda i: i.set(l1_table_offset=0), FindingKind.CORRUPT, "Active L1 table overlaps"),
    "L1 past the end": (lambda i: i.set(l1_table_offset=1 << 40), FindingKind.CORRUPT, "reaches past the end"),
    "misaligned": (lambda i: i.set(l1_table_offset=0x30008), FindingKind.CORRUPT, "Active L1 table offset invalid"),
    "marked corrupt": (lambda i: i.set(incompatible=2), FindingKind.CORRUPT, "marked corrupt"),
    "unknown feature": (lambda i: i.set(incompatible=1 << 40), FindingKind.UNSUPPORTED, "10000000000"),
    "refcounts of 2^2^31 bits": (lambda i: i.set(refcount_order=1 << 31), FindingKind.CORRUPT, "width too large"),
    "a name without end": (
        lambda i: i.set(backing_file_offset=200, backing_file_size=5000),
        FindingKind.CORRUPT,
        "Backing file name too long",
    ),
    "version 9": (lambda i: i.set(version=9), FindingKind.UNSUPPORTED, "Unsupported qcow2 version 9"),
    "header cut": (lambda i: i.data.__delitem__(slice(60, None)), FindingKind.CORRUPT, "qcow2 header too short"),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_breaks_limits_or_rules_is_told(tmp_path: Path, name: str) -> None:
    bend, kind, words = BROKEN[name]
    found = await img.inspect(await crafted(tmp_path / "evil.qcow2", bend))
    assert found.broken
    assert any(finding.kind is kind and words in finding.message for finding in found.findings), found.findings


async def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    path = await crafted(
        tmp_path / "evil.qcow2", lambda i: i.set(l1_size=0xFFFFFFFF, nb_snapshots=0xFFFFFFFF, refcount_order=9)
    )
    told = messages(await img.inspect(path))
    for words in ("L1 table too large", "Snapshot table too large", "width too large"):
        assert words in told


async def test_limits_are_the_callers(tmp_path: Path) -> None:
    path = await crafted(tmp_path / "a.qcow2", size=1 << 32)
    assert (await img.inspect(path)).harmless
    found = await img.inspect(path, trust=Limits(max_l1_bytes=32))
    assert kinds(found) == {FindingKind.LIMIT}


@pytest.mark.peer("qemu-img")
async def test_snapshots_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("snapshot", "-c", "monday", path)
    found = await img.inspect(str(path))
    assert found.harmless
    assert found.facts["snapshot-names"] == ["monday"]
    image = Craft(path.read_bytes())
    image.put(image.header.snapshots_offset, struct.pack(">QI", 1 << 40, 1))
    image.save(path)
    found = await img.inspect(str(path))
    assert "The L1 table of snapshot 1 (monday) reaches past the end of the file" in messages(found)
    image.put(image.header.snapshots_offset, struct.pack(">QI", 1 << 40, 0xFFFFFFFF))
    image.save(path)
    assert FindingKind.LIMIT in kinds(await img.inspect(str(path)))


# -- what it is said to be


async def test_another_format_than_was_claimed(tmp_path: Path) -> None:
    path = await crafted(tmp_path / "disk.img")
    assert (await img.inspect(path)).harmless
    assert (await img.inspect(path, claimed_format="qcow2")).harmless
    found = await img.inspect(path, claimed_format="raw")
    assert found.disguised
    assert messages(found) == "It is said to be raw, but looks like qcow2"


async def test_another_format_than_its_name_promises(tmp_path: Path) -> None:
    found = await img.inspect(await crafted(tmp_path / "disk.RAW"))
    assert found.disguised
    assert messages(found) == "Its name promises raw, but it looks like qcow2"
    text = tmp_path / "text.qcow2"
    text.write_bytes(b"text\n" * 100)
    assert messages(await img.inspect(str(text))) == "Its name promises qcow2, but it looks like raw"


async def test_two_formats_in_one_file(tmp_path: Path) -> None:
    footer = b"conectix".ljust(512, b"\0")
    found = await img.inspect(await crafted(tmp_path / "both.qcow2", lambda i: i.data.extend(footer)))
    assert found.format == "qcow2"
    assert found.marks == ("qcow2", "vpc")
    assert found.disguised


async def test_a_format_that_nobody_here_knows(tmp_path: Path) -> None:
    path = tmp_path / "a.vmdk"
    path.write_bytes(b"KDMV".ljust(1024, b"\0"))
    found = await img.inspect(str(path))
    assert (found.format, found.disguised) == ("raw", False)
    assert kinds(found) == {FindingKind.UNSUPPORTED}
    archive = tmp_path / "disk.img"
    archive.write_bytes(b"\x1f\x8b\x08".ljust(1024, b"\0"))
    found = await img.inspect(str(archive))
    assert found.harmless
    assert messages(found) == "It begins as a gzip file does"


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    ("format", "mark"),
    [
        ("vdi", "vdi"),
        ("vhdx", "vhdx"),
        ("vpc", "vpc"),
        ("vmdk", "vmdk"),
        ("qed", "qed"),
        ("parallels", "parallels"),
        ("qcow", "qcow"),
    ],
)
async def test_the_marks_are_those_of_real_images(tmp_path: Path, format: str, mark: str) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", format, path, "1M")
    data = path.read_bytes()
    assert marks(data[:2048], data[-512:]) == (mark,)


async def test_an_encrypted_volume(tmp_path: Path) -> None:
    slots = tuple(KeySlot(n == 0, 5000, bytes(32), 4096 + n * 258048) for n in range(8))
    header = LuksHeader(
        cipher_name="aes",
        cipher_mode="xts-plain64",
        hash_spec="sha256",
        payload_offset=2 << 20,
        key_bytes=64,
        digest=bytes(20),
        digest_salt=bytes(32),
        digest_iterations=1000,
        uuid="a",
        slots=slots,
    )
    path = tmp_path / "a.luks"

    def save(data: bytes, length: int = 3 << 20) -> str:
        path.write_bytes(data)
        os.truncate(path, length)
        return str(path)

    found = await img.inspect(save(header.encode()))
    assert found.harmless
    assert (found.format, found.virtual_size) == ("luks", 1 << 20)
    assert (found.facts["key-slots"], found.facts["iterations"]) == (1, 6000)
    assert kinds(await img.inspect(str(path), trust=Limits(max_kdf_iterations=1000))) >= {FindingKind.LIMIT}
    assert FindingKind.CORRUPT in kinds(await img.inspect(save(header.encode(), 1 << 20)))
    other = msgspec.structs.replace(header, cipher_name="rot13")
    assert FindingKind.UNSUPPORTED in kinds(await img.inspect(save(other.encode())))
    assert FindingKind.CORRUPT in kinds(await img.inspect(save(header.encode()[:100], 100)))


# -- nothing else, and not much of it


async def test_nothing_else_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [
        b"/etc/passwd",
        b"secret",
        b"../secret",
        b"nbd://127.0.0.1:9/x",
        b'json:{"driver":"file","filename":"/etc/passwd"}',
    ]
    (tmp_path / "secret").write_bytes(bytes(512))
    images = [await crafted(tmp_path / f"evil{index}.qcow2", with_name(name)) for index, name in enumerate(names)]

    def with_data_file(image: Craft) -> object:
        image.set(incompatible=4)
        return image.put(112, extension(0x44415441, str(tmp_path / "secret").encode()) + bytes(8))

    images.append(await crafted(tmp_path / "data.qcow2", with_data_file))
    await img.inspect(images[0])  # what is imported is imported now
    for path in images:
        with watched(monkeypatch) as touched:
            found = await img.inspect(path)
        assert found.opens_others
        assert set(touched) == {path}
    assert all_nodes() == []


async def test_the_watch_sees_what_an_open_would_touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_bytes(bytes(512))
    path = await crafted(tmp_path / "evil.qcow2", with_name(b"secret"))
    with watched(monkeypatch) as touched, pytest.raises(OpenDenied):
        await img.info_chain(path)
    assert str(tmp_path / "secret") not in touched
    with watched(monkeypatch) as touched:
        await img.info_chain(img.Image(filename=path, gate=AllowAll()))
    assert str(tmp_path / "secret") in touched


async def test_the_name_is_a_path_and_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nbd:x").write_bytes(bytes(512))
    assert (await img.inspect("nbd:x")).harmless
    with pytest.raises(BlockError) as caught:
        await img.inspect('json:{"driver":"null-co"}')
    assert caught.value.errno == errno.ENOENT
    os.mkfifo("fifo")
    with pytest.raises(BlockError, match="regular file"):
        await img.inspect("fifo")


async def test_no_more_than_so_much_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot table that goes on and on, in a file that seems to be longer than any disk."""
    entry = struct.pack(">QIHHIIQII", K64, 0, 0, 0, 0, 0, 0, 0, 1024) + bytes(1024)
    path = await crafted(
        tmp_path / "evil.qcow2",
        lambda i: i.set(nb_snapshots=65536, snapshots_offset=1 << 20).put(1 << 20, entry * 8192),
    )
    os.truncate(path, 1 << 40)
    read = 0
    from blockio.backend import BlockBackend  # the class whose method is watched

    real = BlockBackend.co_preadv

    async def counting(blk: BlockBackend, offset: int, memory: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal read
        read += len(memory)
        await real(blk, offset, memory, *args, **kwargs)

    monkeypatch.setattr(BlockBackend, "co_preadv", counting)
    found = await img.inspect(path)
    assert FindingKind.LIMIT in kinds(found)
    assert "There is more to look at" in messages(found)
    assert INSPECT_BYTES // 2 < read <= INSPECT_BYTES
    assert sum(len(finding.message) for finding in found.findings) < 100_000


HEADER_CHANGES = st.lists(
    st.tuples(
        st.sampled_from([*range(0, 112, 4), 112, 116, 120, 200, 0x200, K64, 2 * K64, 3 * K64]),
        st.one_of(
            st.binary(min_size=1, max_size=16),
            st.sampled_from([0, 1, 2, 1 << 9, 1 << 16, 1 << 31, (1 << 32) - 1]).map(lambda n: struct.pack(">I", n)),
            st.sampled_from([0, 112, K64, 1 << 40, 1 << 63, (1 << 64) - 1]).map(lambda n: struct.pack(">Q", n)),
            st.sampled_from([0x44415441, 0xE2792ACA, 0x23852875, 0x0537BE77, 0x6803F857, 7]).map(
                lambda magic: extension(magic, b"/etc/passwd")
            ),
        ),
    ),
    max_size=5,
)


@given(HEADER_CHANGES, st.one_of(st.none(), st.integers(0, 4 * K64)))
async def test_any_header_gets_a_verdict_and_one_that_is_refused_a_bad_one(
    changes: list[tuple[int, bytes]], cut: int | None
) -> None:
    image = await new_image(1 << 20)
    for offset, change in changes:
        image.put(offset, change)
    if cut is not None:
        del image.data[cut:]
    with tempfile.TemporaryDirectory() as folder:
        path = str(image.save(Path(folder) / "disk.img"))
        found = await img.inspect(path)
        refused: BlockError | None = None
        try:
            await img.info(path)
        except OpenDenied:
            assert found.opens_others
        except BlockError as error:
            refused = error
        else:
            assert FindingKind.LIMIT not in kinds(found)
        assert refused is None or found.broken
        if isinstance(refused, LimitExceeded):
            assert FindingKind.LIMIT in kinds(found)


@given(
    st.binary(max_size=3000),
    st.sampled_from([b"", b"QFI\xfb\0\0\0\3", b"QFI\xfb\0\0\0\2", b"LUKS\xba\xbe\0\1", b"QED\0"]),
)
async def test_any_bytes_get_a_verdict(noise: bytes, magic: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "disk.img"
        path.write_bytes(magic + noise)
        found = await img.inspect(str(path))
        assert found.file_size == len(magic + noise)


async def test_a_disk_that_cannot_be_read_is_an_error_and_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(BlockError) as caught:
        await img.inspect(str(tmp_path / "missing"))
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(BlockError):
        await img.inspect(str(tmp_path))


# -- the command


@pytest.fixture
def tool(tmp_path: Path) -> Callable[..., Said]:
    aside = tmp_path / "aside"
    aside.mkdir()

    def run(*words: str, prog: str = "blockio img") -> Said:
        return capture(list(words), tmp_path, aside, prog)

    return run


def save(path: Path, *, backing: bytes = b"", tail: bytes = b"", **fields: int) -> None:
    """A qcow2 image without asyncio: header and three tables of one cluster each."""
    data = bytearray(4 * K64)
    struct.pack_into(">4sIQIIQIIQQIIQ", data, 0, b"QFI\xfb", 3, 0, 0, 16, 1 << 20, 0, 1, 3 * K64, K64, 1, 0, 0)
    struct.pack_into(">QQQIIQ", data, 72, 0, 0, 0, 4, 112, 0)
    image = Craft(data).set(**fields)
    if backing:
        with_name(backing)(image)
    image.data.extend(tail)
    image.save(path)


def test_the_exit_status_adds_up(tmp_path: Path, tool: Callable[..., Said]) -> None:
    save(tmp_path / "good.qcow2")
    save(tmp_path / "refers.qcow2", backing=b"/etc/passwd")
    save(tmp_path / "broken.qcow2", l1_size=0xFFFFFFFF)
    save(tmp_path / "hidden.raw")
    save(tmp_path / "all.raw", backing=b"x", l1_size=0xFFFFFFFF)
    for name, status, verdict in (
        ("good.qcow2", 0, "harmless, as far as its header shows"),
        ("refers.qcow2", 2, "it would open something else"),
        ("broken.qcow2", 4, "it breaks limits or rules"),
        ("hidden.raw", 8, "it is not what it is said to be"),
        ("all.raw", 14, "it would open something else; it breaks limits or rules; it is not what it is said to be"),
    ):
        said = tool("inspect", name)
        assert (said.status, said.err) == (status, "")
        assert said.out.endswith(f"\nverdict: {verdict}\n")
        assert tool("info", "--untrusted", name) == said
        as_json = tool("inspect", "--output=json", name)
        assert as_json.status == status
        assert json.loads(as_json.out)["harmless"] is (status == 0)
        assert tool("info", "--untrusted", "--output=json", name) == as_json
    assert tool("inspect", "-f", "raw", "good.qcow2").status == 8


def test_a_name_cannot_command_the_terminal(tmp_path: Path, tool: Callable[..., Said]) -> None:
    save(tmp_path / "a.qcow2", backing=b"\x1b]0;evil\x07\n\xff\xe2\x80\xae")
    said = tool("inspect", "a.qcow2")
    assert "would open: backing file '\\x1b]0;evil\\x07\\n\\udcff\\u202e'\n" in said.out
    assert json.loads(tool("inspect", "--output=json", "a.qcow2").out)["openings"][0]["name"].startswith("\x1b]0;evil")


def test_mistakes_on_the_command_line(tmp_path: Path, tool: Callable[..., Said]) -> None:
    save(tmp_path / "a.qcow2")
    assert tool("inspect").err.startswith("blockio img: Expecting one image file name\n")
    assert tool("inspect", "a.qcow2", "b").status == 1
    assert tool("inspect", "--output=xml", "a.qcow2").status == 1
    assert (
        tool("inspect", "missing").err
        == "blockio img: Could not open 'missing': Could not open 'missing': No such file or directory\n"
    )
    said = tool("info", "--untrusted", "--backing-chain", "a.qcow2")
    assert said.status == 1
    assert "--untrusted opens one file and nothing else" in said.err
