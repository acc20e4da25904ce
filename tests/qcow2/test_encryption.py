"""Encrypted images at work: what the guest reads, what the file holds, what faults, crashes and strangers leave.

LUKS and the old AES share all code but where a sector's number comes from and the header, which takes half a megabyte.
So what explores very many images does it with AES, and LUKS shows the same with fewer. The command lines beside
qemu-img are in ``tests/cli/test_img_encryption_differential.py``, the volume by itself in ``tests/crypto``.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import random
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

import blockio
from blockio import img
from blockio.buffers import IoVector
from blockio.driver.base import CheckFix
from blockio.driver.inspection import FindingKind
from blockio.driver.snapshots import SnapshotInfo
from blockio.errors import BlockError, CorruptImage, LimitExceeded, OptionError, UnsupportedFeature
from blockio.graph.reopen import reopen
from blockio.testing.cancel import explore_cancellations
from blockio.testing.conformance import Traits, check_driver
from blockio.testing.faults import explore_faults
from blockio.testing.guest import Guest
from blockio.testing.memory import MemoryChild
from blockio.testing.rig import Disks
from blockio.testing.wrapping import Wrap
from blockio.types import ExtentKind, OpenFlags, PreallocMode, RequestFlags
from blockio_drivers.crypto import volume
from blockio_drivers.qcow2.driver import Qcow2Driver
from blockio_drivers.qcow2.header import Header
from blockio_drivers.qcow2.options import EncryptOptions, Qcow2CreateOptions
from blockio_drivers.qcow2.tables import COPIED
from tests.crypto.rig import PASSPHRASE, secrets, unsplit_keys
from tests.qcow2.amend_work import VERSIONS, WIDTHS, Amends, amend
from tests.qcow2.crash import MakeImage, Scenario, explore
from tests.qcow2.engine import (
    Disk,
    Qcow2Rig,
    check_image,
    first_l2_table,
    new_image,
    new_image_with_data_file,
    open_disk,
    put,
)
from tests.qcow2.scenarios import Requests, Resizes, fresh, overlay
from tests.qcow2.snapshot_work import SnapshotRig, snapshots_at_work
from tests.support.qemu import qemu_img, qemu_io

KIB: Final = 1 << 10
MIB: Final = 1 << 20
KEY: Final = {"key-secret": "s"}
OBJECT: Final = ("--object", f"secret,id=s,data={PASSPHRASE}")
AES: Final = {"encrypt": EncryptOptions(format="aes", key_secret="s")}
LUKS: Final = {
    "encrypt": EncryptOptions(format="luks", key_secret="s", cipher_alg="aes-128", cipher_mode="cbc", iter_time=1)
}
XTS: Final = {"encrypt": EncryptOptions(format="luks", key_secret="s", iter_time=1)}


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Secrets, and one wipe of a slot instead of forty."""
    monkeypatch.setattr(volume, "_WIPES", 1)
    with secrets(s=PASSPHRASE, n="the new one", wrong="wrong"):
        yield


def encrypted(file: MemoryChild, **options: Any) -> Any:
    return open_disk(file, **{"encrypt": KEY, **options})


# -- what the guest reads


@pytest.mark.parametrize(
    "options",
    [
        {**AES, "cluster_size": 4096},
        {**LUKS, "cluster_size": 16384},
        {**XTS, "cluster_size": 16384, "extended_l2": True},
        {**XTS, "cluster_size": 512, "compat": "0.10"},
    ],
    ids=["aes", "luks", "subclusters", "version 2"],
)
@pytest.mark.peer("qemu-img", "qemu-io")
async def test_the_disk_is_what_was_written_for_us_and_for_qemu(options: dict[str, Any], tmp_path: Path) -> None:
    """Partial clusters over a backing file, zeroes, discards, a snapshot applied, other lengths; then QEMU goes on."""
    rnd = random.Random(7)
    cluster = options.get("cluster_size", 65536)
    size = 16 * cluster
    below = rnd.randbytes(size // 2)
    model = bytearray(below.ljust(size, b"\0"))
    (tmp_path / "base.raw").write_bytes(below)
    image = await new_image(size, backing_file="base.raw", backing_fmt="raw", **options)
    v2 = options.get("compat") == "0.10"
    async with encrypted(image, backing=MemoryChild(bytearray(below))) as disk:
        for step in range(60):
            sector = rnd.randrange(size // 512)
            offset, nbytes = sector * 512, min(rnd.choice((512, 1536, cluster, 2 * cluster)), size - sector * 512)
            if step == 20:
                kept = bytes(model)
                await disk.driver.co_snapshot_create(SnapshotInfo(name="kept"))
            elif step == 40:
                model[:] = kept
                await disk.driver.co_snapshot_goto("kept")
            elif step % 5 or v2:
                data = rnd.randbytes(nbytes)
                await disk.write(offset, data)
                model[offset : offset + nbytes] = data
            else:
                offset, nbytes = offset // cluster * cluster, cluster
                await disk.zero(offset, nbytes, rnd.choice((0, int(RequestFlags.MAY_UNMAP))))
                model[offset : offset + nbytes] = bytes(nbytes)
            if step % 6 == 0:
                assert await disk.read(0, size) == model, step
        await disk.driver.co_snapshot_delete(None, "kept")
        await disk.truncate(size - 512)
        if v2:
            with pytest.raises(UnsupportedFeature, match="would read as noise"):
                await disk.truncate(size + cluster, PreallocMode.METADATA)
        await disk.truncate(size + cluster, PreallocMode.OFF if v2 else PreallocMode.METADATA)
        model[size - 512 :] = bytes(512 + cluster)
        assert await disk.read(0, disk.length) == model
    path = tmp_path / "image.qcow2"
    path.write_bytes(image.data)
    check_image(image.data, passphrase=PASSPHRASE)
    qemu_io_there(path, "write -P 7 1k 3k", f"write -P 8 {size // 2} {cluster}")
    model[1024:4096] = b"\7" * 3072
    model[size // 2 : size // 2 + cluster] = b"\10" * cluster
    assert qemu_sees(path) == model
    assert await we_see(path) == model


def opts(path: Path) -> str:
    return f"driver=qcow2,encrypt.key-secret=s,file.filename={path}"


def node(path: Path, secret: str | None = "s") -> dict[str, Any]:
    encrypt = {} if secret is None else {"encrypt": {"key-secret": secret}}
    return {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, **encrypt}


def qemu_io_there(path: Path, *commands: str) -> None:
    """Let qemu-io do them to the encrypted image, in its folder; all succeed."""
    qemu_io(opts(path), *commands, options=(*OBJECT, "--image-opts"), cwd=path.parent)


def qemu_sees(path: Path) -> bytes:
    """The whole disk as QEMU reads it."""
    out = path.with_name("out.raw")
    qemu_img("convert", *OBJECT, "-O", "raw", "--image-opts", opts(path), out, cwd=path.parent)
    return out.read_bytes()


async def we_see(path: Path, **children: Any) -> bytes:
    """The whole disk as a program that uses the library reads it."""
    async with blockio.open(options={**node(path), **children}, gate=blockio.AllowAll()) as blk:
        memory = bytearray(blk.getlength())
        await blk.co_preadv(0, memory)
        return bytes(memory)


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("raw", [False, True])
async def test_a_data_file_is_encrypted_by_its_own_offsets(raw: bool, tmp_path: Path) -> None:
    """Written by both, read by both. One that is called raw reads as noise, so that nothing keeps it in step."""
    image, data = await new_image_with_data_file(MIB, data_file_raw=raw, **XTS)
    content = random.Random(1).randbytes(100 * KIB)
    async with encrypted(image, data=data) as disk:
        await disk.write(200 * KIB, content)
        await disk.zero(512 * KIB, 64 * KIB)
        assert await disk.read(0, 200 * KIB) == bytes(200 * KIB)
    (tmp_path / "image.qcow2").write_bytes(image.data)
    (tmp_path / "data.raw").write_bytes(data.data)
    assert content[:64] not in data.data
    path = tmp_path / "image.qcow2"
    qemu_io_there(path, "read -P 0 0 200k", "write -P 9 512k 100k", "write -z 640k 64k")
    model = bytearray(MIB)
    model[200 * KIB : 300 * KIB] = content
    model[512 * KIB : 612 * KIB] = b"\t" * (100 * KIB)
    assert qemu_sees(path) == model
    assert await we_see(path, **{"data-file": {"driver": "file", "filename": str(tmp_path / "data.raw")}}) == model


async def test_no_byte_of_the_guest_is_in_the_file_and_nobody_is_told_where_it_lies(tmp_path: Path) -> None:
    """Neither data nor a machine's state, written in any way; compressed clusters would be in the clear."""
    word = b"the guest's own word "
    for options in (AES, LUKS):
        image = await new_image(MIB, **options)
        async with encrypted(image) as disk:
            driver = disk.driver
            await disk.write(0, (word * 3200)[:65536])
            await driver.co_save_vmstate(IoVector.of(word * 40), 777)
            with pytest.raises(UnsupportedFeature, match="would not be encrypted"):
                await driver.co_pwritev_compressed(65536 * 4, IoVector.of((word * 3200)[:65536]))
            memory = bytearray(40 * len(word))
            await driver.co_load_vmstate(IoVector.of(memory), 777)
            assert memory == word * 40
            await driver.co_load_vmstate(IoVector.of(memory), 0)
            assert memory == (bytes(777) + word * 40)[: len(memory)]
            extent = await driver.co_map(0, 65536)
            assert extent.kind is ExtentKind.ENCRYPTED
            await disk.zero(0, 65536)
            assert (await driver.co_map(0, 65536)).host_offset == -1
            buffer = bytearray(512)
            await disk.write(65536, (word * 30)[:512])
            assert not driver.try_preadv(65536, [buffer], 512)
            assert not driver.try_pwritev(65536, [buffer], 512)
            assert driver.start_preadv(65536, [buffer], 512) is None
            assert driver.start_pwritev(65536, [buffer], 512) is None
            assert driver.try_preadv(MIB // 2, [buffer], 512), "what is not there needs no key"
        assert word not in image.data


@pytest.mark.peer("qemu-img", "qemu-io")
async def test_compressed_clusters_of_others_are_read(tmp_path: Path) -> None:
    """QEMU leaves them in the clear."""
    path = tmp_path / "image.qcow2"
    path.write_bytes((await new_image(MIB, **LUKS)).data)
    qemu_io_there(path, "write -c -P 5 64k 64k", "write -P 6 128k 64k")
    image = MemoryChild(bytearray(path.read_bytes()))
    async with encrypted(image) as disk:
        assert await disk.read(64 * KIB, 128 * KIB) == b"\5" * (64 * KIB) + b"\6" * (64 * KIB)
        await disk.write(64 * KIB, b"\7" * 512)
        assert await disk.read(64 * KIB, KIB) == b"\7" * 512 + b"\5" * 512
    check_image(image.data, passphrase=PASSPHRASE)


@pytest.mark.peer("qemu-img")
async def test_a_downgrade_makes_no_noise_of_zeroes() -> None:
    """Zero clusters become none; where something would show through them it is refused and nothing changes."""
    for options in (AES, LUKS):
        image = await new_image(MIB, **options)
        async with encrypted(image) as disk:
            await disk.write(0, b"a" * 131072)
            await disk.zero(65536, 65536)
            await amend(disk, compat="0.10")
            assert await disk.read(0, MIB) == (b"a" * 65536).ljust(MIB, b"\0")
        assert Header.decode(bytes(image.data)).version == 2
        check_image(image.data, passphrase=PASSPHRASE)
        image = await new_image(MIB, backing_file="b", backing_fmt="raw", **options)
        async with encrypted(image, backing=MemoryChild(bytearray(b"b" * MIB))) as disk:
            await disk.write(0, b"a" * 65536)
            await disk.zero(65536, 65536)
            with pytest.raises(UnsupportedFeature, match="Cannot downgrade an encrypted image with zero clusters"):
                await amend(disk, compat="0.10")
            await disk.write(131072, b"c" * 512)
            assert await disk.read(65536, 66048) == bytes(65536) + b"c" * 512
        assert Header.decode(bytes(image.data)).version == 3
        check_image(image.data, passphrase=PASSPHRASE)


async def test_what_an_image_takes_is_known_before_it_is_made() -> None:
    """The numbers are qemu-img's, which counts no refcounts for the LUKS header."""
    given = {"encrypt.format": "luks", "encrypt.key-secret": "s", "encrypt.iter-time": 1}
    for cluster, required in ((512, 2091008), (65536, 2424832)):
        measured = await img.measure(format="qcow2", size=MIB, options={**given, "cluster_size": cluster})
        assert (measured.required, measured.fully_allocated) == (required, required + MIB)
    with pytest.raises(UnsupportedFeature, match="to a pipe cannot be encrypted"):
        Qcow2Driver.stream(Qcow2CreateOptions(size=MIB, encrypt=AES["encrypt"]), MIB, [])


@pytest.mark.peer("qemu-img")
async def test_a_repair_from_nothing_spares_the_key(tmp_path: Path) -> None:
    """All refcounts are lost: the structure is built anew around what there is, the LUKS header included."""
    image = await new_image(MIB, cluster_size=4096, **LUKS)
    async with encrypted(image) as disk:
        await disk.write(0, b"a" * 65536)
    header = Header.decode(bytes(image.data))
    table = header.refcount_table_offset
    image.data[table : table + 4096] = bytes(4096)
    async with encrypted(image, flags=OpenFlags(check=True)) as disk:
        result = await disk.driver.co_check(CheckFix.ALL)
        assert result.corruptions_fixed > 100
    check_image(image.data, passphrase=PASSPHRASE)
    async with encrypted(image) as disk:
        await disk.write(MIB // 2, b"b" * 65536)
        assert await disk.read(0, 65536) == b"a" * 65536
        await amend(disk, encrypt_state="active", encrypt_new_secret="n", encrypt_iter_time=1)
    check_image(image.data, passphrase="the new one")


async def test_no_write_of_the_guest_reaches_the_key() -> None:
    """A table that leads into the LUKS header: what is there is never written over, and the image is marked."""
    image = await new_image(MIB, cluster_size=4096, **LUKS)
    async with encrypted(image) as disk:
        await disk.write(0, b"a" * 4096)
    place = Header.decode(bytes(image.data)).encryption
    assert place is not None
    _, l2 = first_l2_table(image)
    put(image, l2, (place.offset + 4096) | COPIED)
    before = image.data[place.offset : place.offset + place.length]
    async with encrypted(image) as disk:
        with pytest.raises(CorruptImage, match="encryption header"):
            await disk.write(512, b"b" * 512)
    assert image.data[place.offset : place.offset + place.length] == before
    assert Header.decode(bytes(image.data)).corrupt


async def test_conformance(tmp_path: Path) -> None:
    numbers = itertools.count()

    async def make(length: int) -> Mapping[str, Any]:
        path = tmp_path / f"disk{next(numbers)}.qcow2"
        await img.create(str(path), "qcow2", size=length, options={"encrypt.format": "aes", "encrypt.key-secret": "s"})
        return node(path)

    report = await check_driver(make, Traits())
    assert report.ok, f"\n{report}"


# -- the image changes below us


async def test_somebody_else_had_the_image() -> None:
    """Another passphrase changes nothing, another key is seen and what was known stays."""
    image, other = await new_image(MIB, **LUKS), await new_image(MIB, **LUKS)
    async with encrypted(image) as disk:
        await disk.write(0, b"a" * 512)
        await disk.driver.inactivate()
        disk.host.flags = OpenFlags(inactive=True)
        async with encrypted(image, encrypt={"key-secret": "s"}) as there:
            await amend(there, encrypt_state="active", encrypt_new_secret="n", encrypt_iter_time=1)
            await there.write(512, b"b" * 512)
        disk.host.flags = OpenFlags(unmap=True)
        await disk.driver.invalidate_cache()
        assert await disk.read(0, 1024) == b"a" * 512 + b"b" * 512
        encryption = disk.driver.specific_info()["data"]["encrypt"]
        assert [slot["active"] for slot in encryption["slots"][:3]] == [True, True, False]
        await disk.driver.inactivate()
        ours, image.data[:] = bytes(image.data), other.data.ljust(len(image.data), b"\0")
        with pytest.raises(CorruptImage, match="The key of the LUKS volume was changed"):
            await disk.driver.invalidate_cache()
        image.data[:] = ours
        await disk.driver.invalidate_cache()
        await disk.write(1024, b"c" * 512)
        assert await disk.read(0, 1536) == b"a" * 512 + b"b" * 512 + b"c" * 512
    async with encrypted(image, encrypt={"key-secret": "n"}) as disk:
        assert await disk.read(1024, 512) == b"c" * 512


async def test_a_reopen_names_an_encryption_that_fits(tmp_path: Path) -> None:
    """As QEMU has it: another secret is believed, for the key is known already."""
    path = tmp_path / "image.qcow2"
    path.write_bytes((await new_image(MIB, **LUKS)).data)
    async with blockio.open(options=node(path)) as blk:
        assert blk.bs is not None
        await blk.co_pwritev(0, b"a" * 512)
        for name, value, words in (
            ("encrypt.format", "aes", "Header reported 'luks' encryption format but options specify 'aes'"),
            ("encrypt.foo", "x", "Parameter 'foo' is unexpected"),
        ):
            with pytest.raises(OptionError, match=words):
                await reopen(blk.bs, options={name: value})
        await reopen(blk.bs, options={"encrypt.key-secret": "nobody", "encrypt.format": "luks"})
        await blk.co_pwritev(512, b"b" * 512)
        memory = bytearray(512)
        await blk.co_preadv(0, memory)
        assert memory == b"a" * 512


# -- three lives


class TwoPassphrases(Qcow2Rig):
    """Whose disk opens with the one or the other."""

    @asynccontextmanager
    async def open(self, disks: Disks, *, wrap: Wrap | None = None, read_only: bool = False) -> AsyncIterator[Disk]:
        for secret in ("s", "n"):
            self.encrypt = {"key-secret": secret}
            try:
                async with AsyncExitStack() as stack:
                    disk = await stack.enter_async_context(super().open(disks, wrap=wrap, read_only=read_only))
                    kept = stack.pop_all()
            except OptionError as error:
                if "Invalid password" not in str(error):
                    raise
                continue
            async with kept:
                yield disk
            return
        raise AssertionError("no passphrase opens the disk any more")


async def other_passphrase(rnd: random.Random, guest: Guest, requests: int = 3) -> None:
    """Some *requests*, another passphrase, more of them, and the first one goes."""
    disk = guest.disk
    assert isinstance(disk, Disk)
    await Requests(512, requests)(rnd, guest)
    add = {"encrypt_state": "active", "encrypt_new_secret": "n", "encrypt_keyslot": 6, "encrypt_iter_time": 1}
    await guest.do(amend(disk, **add, force=True))
    await Requests(512, requests)(rnd, guest)
    with suppress(OptionError):  # the new one did not come
        await guest.do(amend(disk, encrypt_state="inactive", encrypt_old_secret="s"))
    await Requests(512, requests)(rnd, guest)


def scenario(name: str, states: int, image: MakeImage, work: Any, rig: type[Qcow2Rig] = Qcow2Rig) -> Scenario:
    return Scenario(name, states, image, work, rig(encrypt=KEY))


SCENARIOS: Final = {
    one.name: one
    for one in (
        scenario("aes", 120, overlay(60, 512, **AES), Requests(512, 12)),
        scenario("aes, subclusters", 100, fresh(6, 16384, extended_l2=True, **AES), Requests(512, 8)),
        scenario("aes, resize", 100, fresh(60, 512, **AES), Resizes(512, PreallocMode.METADATA, 1)),
        scenario("aes, snapshots", 50, fresh(60, 512, **AES), snapshots_at_work, SnapshotRig),
        scenario("aes, amend", 100, fresh(24, 1024, **AES), Amends(1024, (*VERSIONS, *WIDTHS[::3]), rounds=2)),
        scenario("luks, passphrases", 20, fresh(60, 512, **LUKS), other_passphrase, TwoPassphrases),
    )
}


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("name", SCENARIOS)
def test_after_a_crash(name: str) -> None:
    one = SCENARIOS[name]
    done, sample = asyncio.run(explore(one, one.states, 1))
    assert not done.failure, f"\n{done.failure}"
    for image in sample[:2]:
        check_image(image, leaks=True, passphrase=PASSPHRASE)


async def grow(rnd: random.Random, guest: Guest) -> None:
    """By clusters that have room and are noise until they are hidden."""
    await guest.write(guest.length - 1024, rnd.randbytes(1024))
    await guest.truncate(guest.length + 8192, PreallocMode.METADATA)
    await guest.write(guest.length - 1024, rnd.randbytes(512))


async def only_passphrases(rnd: random.Random, guest: Guest) -> None:
    """Another one comes, the first one goes."""
    await other_passphrase(rnd, guest, 0)


FAULTS: Final = {
    one.name: one
    for one in (
        scenario("aes", 0, overlay(60, 512, **AES), Requests(512, 10)),
        scenario("aes, grown", 0, fresh(60, 512, **AES), grow),
        scenario("luks, passphrases", 0, fresh(60, 512, **LUKS), only_passphrases, TwoPassphrases),
    )
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_and_every_cancellation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = FAULTS[name]
    unsplit_keys(monkeypatch)
    once: dict[str, Any] = {"sticky": (False,)} if "luks" in name else {}

    async def main() -> None:
        disks = await one.image(random.Random(1))
        report = await explore_faults(one.rig, disks, one.workload(1), errors=(errno.EIO,), discard_zeroes=True, **once)
        assert report.ok, f"\n{report}"
        assert report.faults > 15
        assert await explore_cancellations(one.rig, disks, one.workload(2), discard_zeroes=True) > 15

    asyncio.run(main())


# -- strangers

_EXTENSION: Final = struct.pack(">I", 0x0537BE77)
_SLOT: Final = 208
"""Where the first key slot is described: state, iterations, salt (32 bytes), sector of its material, stripes."""


class Crafted:
    """An encrypted image with a first cluster of ``a``, to be damaged. ``at`` is where its LUKS header is."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.extension = data.index(_EXTENSION)
        (self.at, self.length) = struct.unpack_from(">QQ", data, self.extension + 8)

    def place(self, offset: int, length: int | None = None) -> None:
        """Another word of the header extension for where the LUKS header is."""
        struct.pack_into(">QQ", self.data, self.extension + 8, offset, self.length if length is None else length)

    def put(self, offset: int, data: bytes) -> None:
        """Into the LUKS header."""
        self.data[self.at + offset : self.at + offset + len(data)] = data

    def number(self, offset: int, value: int) -> None:
        """The same for a number of four bytes."""
        self.put(offset, value.to_bytes(4, "big"))


def without_extension(image: Crafted) -> None:
    image.data[image.extension : image.extension + 4] = b"what"


def short_extension(image: Crafted) -> None:
    struct.pack_into(">I", image.data, image.extension + 4, 12)


DAMAGES: Final[dict[str, tuple[Callable[[Crafted], object], type[BlockError] | None]]] = {
    "none": (lambda i: None, None),
    "no extension": (without_extension, CorruptImage),
    "short extension": (short_extension, CorruptImage),
    "not at a cluster": (lambda i: i.place(i.at + 512), CorruptImage),
    "past the file": (lambda i: i.place(1 << 40), BlockError),
    "past everything": (lambda i: i.place((1 << 63) - 65536, 1 << 20), CorruptImage),
    "is the image's header": (lambda i: i.place(0), BlockError),
    "is the refcount table": (lambda i: i.place(65536), BlockError),
    "header cut": (lambda i: i.place(i.at, 500), CorruptImage),
    "no room": (lambda i: i.place(i.at, 0), CorruptImage),
    "key material cut": (lambda i: i.place(i.at, 8192), BlockError),
    "magic": (lambda i: i.put(0, b"LUKZ"), BlockError),
    "version": (lambda i: i.put(6, b"\0\2"), BlockError),
    "cipher": (lambda i: i.put(8, b"rot13\0"), BlockError),
    "cipher without an end": (lambda i: i.put(8, b"a" * 32), BlockError),
    "mode": (lambda i: i.put(40, b"gcm-plain64\0"), BlockError),
    "mode without a generator": (lambda i: i.put(40, b"cbc\0"), BlockError),
    "hash": (lambda i: i.put(72, b"md6\0"), BlockError),
    "payload inside the header": (lambda i: i.number(104, 1), BlockError),
    "key of no bytes": (lambda i: i.number(108, 0), BlockError),
    "key too long": (lambda i: i.number(108, 1 << 20), BlockError),
    "another key": (lambda i: i.put(112, b"\0" * 20), OptionError),
    "no iterations": (lambda i: i.number(164, 0), BlockError),
    "slot not in use": (lambda i: i.number(_SLOT, 0x0000DEAD), OptionError),
    "slot in a strange state": (lambda i: i.number(_SLOT, 7), BlockError),
    "slot without iterations": (lambda i: i.number(_SLOT + 4, 0), BlockError),
    "slot of other salt": (lambda i: i.put(_SLOT + 8, b"\0" * 32), OptionError),
    "slot in the header": (lambda i: i.number(_SLOT + 40, 0), BlockError),
    "slot in the payload": (lambda i: i.number(_SLOT + 40, 1 << 22), BlockError),
    "slot in another": (lambda i: i.number(_SLOT + 40, 16), BlockError),
    "stripes": (lambda i: i.number(_SLOT + 44, 4001), BlockError),
    "key material damaged": (lambda i: i.put(4096 + 1000, bytes(16)), OptionError),
}


@pytest.fixture(scope="module")
def sound() -> bytes:
    """An image of LUKS whose first cluster is written."""

    async def make() -> bytes:
        image = await new_image(MIB, **LUKS)
        async with encrypted(image) as disk:
            await disk.write(0, b"a" * 65536)
        return bytes(image.data)

    with secrets(s=PASSPHRASE):
        return asyncio.run(make())


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damaged_header_is_refused_where_qemu_refuses_it(name: str, sound: bytes, tmp_path: Path) -> None:
    damage, refused = DAMAGES[name]
    image = Crafted(sound)
    damage(image)
    path = tmp_path / "image.qcow2"
    path.write_bytes(image.data)
    theirs = qemu_io(opts(path), "read -P 97 0 64k", options=(*OBJECT, "--image-opts"), check=False)
    assert (theirs.returncode == 0) is (refused is None), theirs.stdout + theirs.stderr
    if refused is None:
        assert (await we_see(path))[:65536] == b"a" * 65536
        return
    with pytest.raises(refused) as caught:
        await we_see(path)
    assert PASSPHRASE not in repr(caught.value)
    assert path.read_bytes() == image.data, "nothing is written to what is refused"


async def test_a_header_of_noise_is_refused_or_read(sound: bytes) -> None:
    """Some bytes of it are others, by chance: a declared error, soon, or the disk as it is."""
    rnd = random.Random(5)
    read = 0
    # Not what says how much work it is, which is refused only where it is too much.
    fields = (*range(12), *range(40, 52), *range(72, 80), *range(104, 112), *range(166, 212), *range(214, 592))
    for _ in range(30):
        image = Crafted(sound)
        for _ in range(rnd.randrange(1, 3)):
            offset = rnd.choice(fields)
            image.put(offset, rnd.choice((b"\0", b"\xff", rnd.randbytes(1))))
        try:
            async with encrypted(MemoryChild(image.data)) as disk:
                assert await disk.read(0, 65536) == b"a" * 65536
                read += 1
        except BlockError:
            continue
    assert 5 < read < 30


async def test_work_without_end_is_refused_before_it_begins(sound: bytes, tmp_path: Path) -> None:
    """Also said by who only looks at the header, along with what else is wrong."""
    path = tmp_path / "image.qcow2"

    async def inspected(image: Crafted) -> tuple[set[FindingKind], Mapping[str, Any]]:
        path.write_bytes(image.data)
        report = await img.inspect(str(path))
        return {finding.kind for finding in report.findings}, report.facts.get("encryption", {})

    kinds, facts = await inspected(Crafted(sound))
    assert kinds == {FindingKind.NOTE}
    assert (facts["cipher"], facts["key-slots"]) == ("aes-cbc-plain64", 1)
    image = Crafted(sound)
    image.number(_SLOT + 4, 0xFFFFFFFF)
    with pytest.raises(LimitExceeded, match="max_kdf_iterations"):
        async with encrypted(MemoryChild(image.data)):
            pass
    assert FindingKind.LIMIT in (await inspected(image))[0]
    for damage in ("no extension", "past the file", "magic", "header cut"):
        image = Crafted(sound)
        DAMAGES[damage][0](image)
        assert FindingKind.CORRUPT in (await inspected(image))[0], damage


async def test_passphrases_are_in_no_message_and_in_no_name(tmp_path: Path) -> None:
    """Wrong, missing or right: what is said names the secret, never what it holds."""
    for options in (AES, LUKS):
        path = tmp_path / f"{options['encrypt'].format}.qcow2"
        path.write_bytes((await new_image(MIB, **options)).data)
        for secret, words in (
            (None, "Parameter 'encrypt.key-secret' is required for cipher"),
            ("nobody", "No secret with id 'nobody'"),
            *([("wrong", "Invalid password, cannot unlock any keyslot")] if options is LUKS else []),
        ):
            with pytest.raises(OptionError) as caught:
                async with blockio.open(options=node(path, secret)):
                    pass
            assert words in str(caught.value)
            assert caught.value.errno == (errno.EPERM if secret == "wrong" else errno.EINVAL)
            assert "wrong" not in str(caught.value)
        async with blockio.open(options=node(path)) as blk:
            assert blk.bs is not None
            driver = blk.bs.driver
            assert isinstance(driver, Qcow2Driver)
            told = [blk.bs.filename, repr(blk.bs.options), repr(driver), repr(vars(driver))]
            told += [repr(driver._image.encryption), str(driver.specific_info())]
            assert "key-secret" in told[0]
            assert not [text for text in told if PASSPHRASE in text]
        assert (await img.info(img.Image(filename=str(path)))).encrypted
