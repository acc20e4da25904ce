"""The header codec: byte by byte, back and forth, and the words for what is wrong."""

from __future__ import annotations

import contextlib
import errno
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockio.errors import BlockError, CorruptImage, LimitExceeded, NotThisFormat, UnsupportedFeature
from blockio.types import HostOffset, Limits
from blockio_drivers.qcow2.extensions import BitmapsExtension, EncryptionExtension, FeatureName, UnknownExtension
from blockio_drivers.qcow2.header import CompressionType, Header, Incompatible, header_area
from tests.support.qemu import qemu_img

K64 = 65536

V2 = bytes.fromhex(
    "514649fb 00000002"  # magic, version
    "0000000000000000 00000000"  # no backing file
    "00000010 0000000000100000"  # 64 KiB clusters, 1 MiB disk
    "00000000 00000001 0000000000030000"  # no encryption, one L1 entry at 0x30000
    "0000000000010000 00000001"  # refcount table at 0x10000, one cluster
    "00000000 0000000000000000"  # no snapshots
)
V3 = (
    V2[:4]
    + b"\0\0\0\3"
    + V2[8:]
    + bytes.fromhex(
        "0000000000000000 0000000000000001 0000000000000000"  # lazy refcounts
        "00000004 00000070"  # 16-bit refcounts, 112 bytes of header
        "00 00000000000000"  # zlib
    )
)


def v3(**changes: object) -> Header:
    header = Header.decode(V3)
    return header.with_(**changes)


def bent(offset: int, data: bytes, base: bytes = V3) -> bytes:
    raw = bytearray(base.ljust(K64, b"\0"))
    raw[offset : offset + len(data)] = data
    return bytes(raw)


def extension(magic: int, payload: bytes) -> bytes:
    return struct.pack(">II", magic, len(payload)) + payload + bytes(-len(payload) % 8)


class TestDecode:
    def test_version_2_byte_by_byte(self) -> None:
        header = Header.decode(V2)
        assert header == Header(
            version=2,
            cluster_bits=16,
            size=1 << 20,
            l1_size=1,
            l1_table_offset=HostOffset(0x30000),
            refcount_table_offset=HostOffset(0x10000),
            refcount_table_clusters=1,
        )
        assert (header.compat, header.refcount_bits, header.cluster_size) == ("0.10", 16, K64)

    def test_version_3_byte_by_byte(self) -> None:
        header = Header.decode(V3)
        assert header == Header.decode(V2).with_(version=3, compatible=1)
        assert header.lazy_refcounts
        assert not header.dirty
        assert not header.corrupt

    def test_a_header_of_104_bytes_has_no_compression_type(self) -> None:
        raw = bent(100, struct.pack(">I", 104) + extension(0xE2792ACA, b"raw"))
        header = Header.decode(raw)
        assert header.backing_format == "raw"
        assert header.compression_type is CompressionType.ZLIB

    def test_unknown_fields_and_extensions_are_kept(self) -> None:
        raw = bent(100, struct.pack(">I", 120))
        raw = raw[:112] + b"newfield" + extension(0x12345678, b"theirs") + raw[120 + 16 :]
        header = Header.decode(raw)
        assert header.unknown_fields == b"newfield"
        assert header.unknown_extensions == (UnknownExtension(0x12345678, b"theirs"),)
        assert Header.decode(header.encode()) == header.with_(
            feature_names=Header.decode(header.encode()).feature_names
        )

    def test_all_extensions(self) -> None:
        raw = bent(72, struct.pack(">QQQ", Incompatible.DATA_FILE, 0, 3))
        raw = bent(32, struct.pack(">I", 2), raw)
        area = (
            extension(0xE2792ACA, b"qcow2")
            + extension(0x44415441, b"data.raw")
            + extension(0x0537BE77, struct.pack(">QQ", 0x50000, 2048))
            + extension(0x6803F857, b"\x00\x3f" + b"time travel".ljust(46, b"\0"))
            + extension(0x23852875, struct.pack(">IIQQ", 2, 0, 96, 0x60000))
            + extension(0, b"")
        )
        header = Header.decode(bent(112, area, raw))
        assert header.backing_format == "qcow2"
        assert header.data_file == "data.raw"
        assert header.encryption == EncryptionExtension(HostOffset(0x50000), 2048)
        assert header.feature_names == (FeatureName(0, 63, "time travel"),)
        assert header.bitmaps == BitmapsExtension(2, 96, HostOffset(0x60000))
        assert Header.decode(header.encode()).bitmaps == header.bitmaps

    def test_bitmaps_without_their_autoclear_bit_are_void(self) -> None:
        area = extension(0x23852875, struct.pack(">IIQQ", 2, 0, 96, 0x60000))
        assert Header.decode(bent(112, area)).bitmaps is None

    def test_backing_file_name_ends_at_a_zero_byte_and_may_be_any_bytes(self) -> None:
        raw = bent(8, struct.pack(">QI", 0x200, 7))
        header = Header.decode(bent(0x200, b"b\xff/\0..x", raw))
        assert header.backing_file == "b\udcff/"
        assert Header.decode(header.encode()).backing_file == "b\udcff/"

    def test_the_disk_is_whole_sectors(self) -> None:
        assert Header.decode(bent(24, struct.pack(">Q", 1000))).disk_size == 512

    def test_header_area_needs_only_the_beginning(self) -> None:
        assert header_area(V3[:24]) == K64


REFUSED: dict[str, tuple[bytes, type[BlockError], int, str]] = {
    "magic": (bent(0, b"QFI\xfa"), NotThisFormat, errno.EINVAL, "Image is not in qcow2 format"),
    "empty": (b"", NotThisFormat, errno.EINVAL, "Image is not in qcow2 format"),
    "version 1": (bent(4, b"\0\0\0\1"), UnsupportedFeature, errno.ENOTSUP, "Unsupported qcow2 version 1"),
    "version 4": (bent(4, b"\0\0\0\4"), UnsupportedFeature, errno.ENOTSUP, "Unsupported qcow2 version 4"),
    "clusters too small": (bent(20, b"\0\0\0\x08"), CorruptImage, errno.EINVAL, "Unsupported cluster size: 2^8"),
    "clusters too large": (bent(20, b"\0\0\0\x16"), CorruptImage, errno.EINVAL, "Unsupported cluster size: 2^22"),
    "header short": (bent(100, b"\0\0\0\x60"), CorruptImage, errno.EINVAL, "qcow2 header too short"),
    "header long": (bent(100, b"\0\1\0\1"), CorruptImage, errno.EINVAL, "qcow2 header exceeds cluster size"),
    "backing offset": (bent(8, b"\0" * 5 + b"\1\0\1"), CorruptImage, errno.EINVAL, "Invalid backing file offset"),
    "backing name": (
        bent(8, struct.pack(">QI", 0x200, 1024)),
        CorruptImage,
        errno.EINVAL,
        "Backing file name too long",
    ),
    "backing name at the cluster's end": (
        bent(8, struct.pack(">QI", 0x10000 - 8, 9)),
        CorruptImage,
        errno.EINVAL,
        "Backing file name too long",
    ),
    "compression type": (
        bent(104, b"\x02"),
        UnsupportedFeature,
        errno.ENOTSUP,
        "qcow2: unknown compression type: 2",
    ),
    "compression bit missing": (
        bent(104, b"\x01"),
        CorruptImage,
        errno.EINVAL,
        "qcow2: Compression type incompatible feature bit must be set",
    ),
    "compression bit too much": (
        bent(79, b"\x08"),
        CorruptImage,
        errno.EINVAL,
        "qcow2: Compression type incompatible feature bit must not be set",
    ),
    "unknown feature": (
        bent(72, b"\x80"),
        UnsupportedFeature,
        errno.ENOTSUP,
        "Unsupported qcow2 feature(s): Unknown incompatible feature: 8000000000000000",
    ),
    "named feature": (
        bent(72, b"\x80\0\0\0\0\0\0\x20" + V3[80:112] + extension(0x6803F857, b"\0\x3ftime travel".ljust(48, b"\0"))),
        UnsupportedFeature,
        errno.ENOTSUP,
        "Unsupported qcow2 feature(s): time travel, Unknown incompatible feature: 20",
    ),
    "refcount width": (
        bent(96, b"\0\0\0\x07"),
        CorruptImage,
        errno.EINVAL,
        "Reference count entry width too large; may not exceed 64 bits",
    ),
    "no refcount table": (
        bent(56, b"\0\0\0\0"),
        CorruptImage,
        errno.EINVAL,
        "Image does not contain a reference count table",
    ),
    "refcount table too large": (
        bent(56, b"\0\0\0\x81"),
        LimitExceeded,
        errno.EFBIG,
        "Reference count table too large",
    ),
    "refcount table crooked": (
        bent(48, struct.pack(">Q", 0x10200)),
        CorruptImage,
        errno.EINVAL,
        "Reference count table offset invalid",
    ),
    "refcount table far": (
        bent(48, struct.pack(">Q", (1 << 63) - 0x10000)),
        CorruptImage,
        errno.EINVAL,
        "Reference count table offset invalid",
    ),
    "snapshots too many": (bent(60, b"\0\1\0\1"), LimitExceeded, errno.EFBIG, "Snapshot table too large"),
    "snapshots crooked": (bent(71, b"\1"), CorruptImage, errno.EINVAL, "Snapshot table offset invalid"),
    "L1 too large": (bent(36, b"\0\x40\0\1"), LimitExceeded, errno.EFBIG, "Active L1 table too large"),
    "L1 crooked": (bent(47, b"\1"), CorruptImage, errno.EINVAL, "Active L1 table offset invalid"),
    "L1 too small": (bent(24, b"\0\0\0\1"), CorruptImage, errno.EINVAL, "L1 table is too small"),
    "disk too big": (bent(24, b"\x40"), LimitExceeded, errno.EFBIG, "Image is too big"),
    "encryption": (bent(32, b"\0\0\0\3"), CorruptImage, errno.EINVAL, "Unsupported encryption method 3"),
    "encryption, as QEMU counts": (
        bent(32, b"\x80\0\0\0"),
        CorruptImage,
        errno.EINVAL,
        "Unsupported encryption method -2147483648",
    ),
    "extension too large": (
        bent(112, struct.pack(">II", 0x1234, 0xFFFF)),
        CorruptImage,
        errno.EINVAL,
        "Header extension too large",
    ),
    "backing format": (
        bent(112, extension(0xE2792ACA, b"x" * 16)),
        CorruptImage,
        errno.EINVAL,
        "ERROR: ext_backing_format: len=16 too large (>=16)",
    ),
    "encryption header without encryption": (
        bent(112, extension(0x0537BE77, bytes(16))),
        CorruptImage,
        errno.EINVAL,
        "CRYPTO header extension only expected with LUKS encryption method",
    ),
    "bitmaps of nothing": (
        bent(112, extension(0x23852875, bytes(24)), bent(95, b"\1")),
        CorruptImage,
        errno.EINVAL,
        "found bitmaps extension with zero bitmaps",
    ),
    "raw data file without one": (bent(95, b"\2"), CorruptImage, errno.EINVAL, "data-file-raw requires a data file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_words_and_errno_of_qemu(name: str) -> None:
    data, kind, code, message = REFUSED[name]
    with pytest.raises(kind) as caught:
        Header.decode(data)
    assert str(caught.value) == message
    assert caught.value.errno == code


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"empty"}))
def test_qemu_says_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.qcow2"
    path.write_bytes(REFUSED[name][0].ljust(4 * K64, b"\0"))
    done = qemu_img("map", "-f", "qcow2", path, check=False)
    assert done.stderr.splitlines()[0] == f"qemu-img: Could not open '{path}': {REFUSED[name][3]}"


class TestStricterThanQemu:
    """QEMU opens these, shows zeroes and lets the first write destroy the rest; only a checker may have them."""

    @pytest.mark.parametrize(
        ("data", "length", "message"),
        [
            (bent(40, struct.pack(">Q", 0x40000)), 0x40000, "Active L1 table reaches past the end of the file"),
            (V3, 0x30007, "Active L1 table reaches past the end of the file"),
            (bent(40, bytes(8)), 1 << 20, "Active L1 table overlaps with the header"),
            (bent(48, bytes(8)), 1 << 20, "Reference count table overlaps with the header"),
            (bent(40, struct.pack(">Q", 0x10000)), 1 << 20, "Active L1 table overlaps with the reference count table"),
        ],
    )
    def test_misplaced_tables(self, data: bytes, length: int, message: str) -> None:
        with pytest.raises(CorruptImage) as caught:
            Header.decode(data, file_length=length)
        assert set(str(caught.value).lower().split()) >= set(message.lower().split()) - {"the", "with"}
        Header.decode(data, file_length=length, check=True)

    def test_a_sound_image_is_whole(self) -> None:
        Header.decode(V3, file_length=0x30008)


class TestOpenedForWhat:
    def test_a_corrupt_image_is_only_read_or_checked(self) -> None:
        raw = bent(79, b"\2")
        assert Header.decode(raw).corrupt
        assert Header.decode(raw, writable=True, check=True).corrupt
        with pytest.raises(CorruptImage) as caught:
            Header.decode(raw, writable=True)
        assert caught.value.errno == errno.EACCES
        assert str(caught.value) == "qcow2: Image is corrupt; cannot be opened read/write"

    def test_a_checker_needs_no_refcount_table(self) -> None:
        assert Header.decode(bent(56, b"\0\0\0\0"), check=True).refcount_table_clusters == 0

    def test_limits_are_the_callers(self) -> None:
        with pytest.raises(LimitExceeded):
            Header.decode(bent(36, struct.pack(">I", 100)), trust=Limits(max_l1_bytes=792))
        with pytest.raises(LimitExceeded):
            Header.decode(bent(112, extension(0x77, bytes(64))), trust=Limits(max_header_extensions=64))


class TestEncode:
    @pytest.mark.peer("qemu-img")
    @pytest.mark.parametrize(
        "options",
        [
            "cluster_size=64k",
            "compat=0.10",
            "cluster_size=512",
            "cluster_size=2k",
            "cluster_size=2M,refcount_bits=1",
            "compression_type=zstd,lazy_refcounts=on",
            "backing_file=b.raw,backing_fmt=raw",
            "backing_file=b.raw,backing_fmt=raw,compat=0.10",
            "backing_file=b.raw,backing_fmt=raw,cluster_size=512",
        ],
    )
    def test_the_same_bytes_as_qemu(self, options: str, tmp_path: Path) -> None:
        path = tmp_path / "a.qcow2"
        qemu_img("create", "-q", "-u", "-f", "qcow2", "-o", options, path, "1M")
        data = path.read_bytes()
        area = header_area(data)
        header = Header.decode(data[:area], file_length=len(data))
        assert header.encode().ljust(area, b"\0") == data[:area]

    def test_names_of_others_features_stay(self) -> None:
        theirs = FeatureName(1, 7, "colour")
        assert theirs in Header.decode(v3(feature_names=(theirs,)).encode()).feature_names

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(BlockError) as caught:
            v3(cluster_bits=9, l1_table_offset=HostOffset(512), backing_file="b" * 450).encode()
        assert caught.value.errno == errno.ENOSPC

    def test_version_2_has_no_features(self) -> None:
        with pytest.raises(ValueError, match="version 2"):
            Header.decode(V2).with_(incompatible=1).encode()


@given(st.binary(max_size=300), st.booleans(), st.sampled_from([None, 0, 512, 1 << 20]))
def test_any_bytes_decode_or_raise_a_declared_error(noise: bytes, check: bool, length: int | None) -> None:
    for data in (noise, V3 + noise, V3[:20] + b"\0\0\0\x09" + V3[24:112] + noise):
        with contextlib.suppress(BlockError):
            Header.decode(data, check=check, file_length=length)


@given(st.integers(0, 111), st.binary(min_size=1, max_size=12))
def test_what_decodes_survives_the_way_back(offset: int, change: bytes) -> None:
    data = bent(offset, change)
    try:
        header = Header.decode(data)
    except BlockError:
        return
    again = Header.decode(header.encode())
    assert again.with_(feature_names=()) == header.with_(feature_names=())


@given(
    st.lists(st.tuples(st.integers(0, 200), st.binary(min_size=1, max_size=12)), max_size=4), st.integers(0, 1 << 20)
)
def test_an_inspection_is_told_first_what_is_raised_otherwise_and_then_the_rest(
    changes: list[tuple[int, bytes]], length: int
) -> None:
    raw = V3.ljust(K64, b"\0")
    for offset, change in changes:
        raw = bent(offset, change, raw)
    raised: BlockError | None = None
    faults: list[BlockError] = []
    try:
        Header.decode(raw, file_length=length)
    except BlockError as error:
        raised = error
    try:
        header = Header.decode(raw, file_length=length, on_fault=faults.append)
    except BlockError as error:
        with pytest.raises(type(error)):
            header_area(raw[:24])
        assert raised is not None
        return
    assert header.refcount_bits <= 64
    first = faults[0] if faults else None
    assert (type(raised), str(raised)) == (type(first), str(first))
