"""Writing a new, empty qcow2 image.

The layout is decided before anything is written: header, refcount table, refcount blocks, L1 table and, where
space is preallocated, all L2 tables and all guest clusters in guest order. Everything but the header's first sector
is written and flushed first: until that last write the file is not an image at all, so that a crash leaves no half-made
one.
"""

from __future__ import annotations

import errno
from array import array
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.buffers import IoVector
from blockio.errors import LimitExceeded, OptionError
from blockio.types import HostOffset, Limits, PreallocMode
from blockio_drivers.qcow2.extensions import EncryptionExtension
from blockio_drivers.qcow2.header import Autoclear, Compatible, CompressionType, CryptMethod, Header, Incompatible
from blockio_drivers.qcow2.options import TOO_LARGE, EncryptOptions, Qcow2CreateOptions
from blockio_drivers.qcow2.refcounts import RefcountCodec
from blockio_drivers.qcow2.tables import COPIED, L2_OFFSET_MASK, Geometry, table_to_bytes

if TYPE_CHECKING:
    from blockio.driver.base import CreateTarget
    from blockio.driver.child import Child

__all__ = ["Layout", "create_image", "encode_header", "geometry_of", "pointers", "refcount_blocks"]

_CHUNK: Final = 1 << 20
"""How much metadata is built and written at once: the memory a creation takes."""

_SECTOR: Final = 512

_ZERO_STEP: Final = 1 << 30
"""How much of a device is zeroed by one request: below the longest one there is."""


class Layout(msgspec.Struct, frozen=True):
    """Where everything of a new image goes, in clusters from the file's start. Counts may be 0."""

    geometry: Geometry
    l1_size: int
    refcount_table_clusters: int
    refcount_blocks: int
    l1_clusters: int
    encryption_clusters: int
    l2_tables: int
    guest_clusters: int
    """Those that are mapped, each to a place of its own."""

    @classmethod
    def plan(cls, geometry: Geometry, disk_size: int, *, preallocated: bool, encryption_bytes: int = 0) -> Layout:
        """Place everything for a disk of *disk_size* bytes, empty or all of it. LimitExceeded as ``plan_for``."""
        if not preallocated:
            return cls.plan_for(geometry, disk_size, 0, 0, encryption_bytes)
        tables, clusters = geometry.l1_entries_for(disk_size), geometry.clusters(disk_size)
        return cls.plan_for(geometry, disk_size, tables, clusters, encryption_bytes)

    @classmethod
    def plan_for(
        cls, geometry: Geometry, disk_size: int, l2_tables: int, guest_clusters: int, encryption_bytes: int = 0
    ) -> Layout:
        """Place so many tables and clusters of a disk of *disk_size* bytes. LimitExceeded where the refcount table
        gets too large.

        *encryption_bytes* is the room for an encryption header.

        The refcounts count the clusters of the refcount structures too, so that these grow until they cover
        themselves.
        """
        l1_size = geometry.l1_entries_for(disk_size)
        l1_clusters = geometry.clusters(l1_size * 8)
        encryption_clusters = geometry.clusters(encryption_bytes)
        others = 1 + l1_clusters + encryption_clusters + l2_tables + (0 if geometry.data_file else guest_clusters)
        table, blocks = 0, 0
        # Both needs grow with the total, so that this climbs to the smallest layout that covers itself.
        while True:
            needed = -(-(others + table + blocks) // geometry.refcount_block_entries)
            room = (geometry.clusters(needed * 8), needed)
            if room == (table, blocks):
                break
            table, blocks = room
        if table * geometry.cluster_size > Limits().max_refcount_table_bytes:
            raise LimitExceeded(TOO_LARGE)
        return cls(geometry, l1_size, table, blocks, l1_clusters, encryption_clusters, l2_tables, guest_clusters)

    @property
    def first_refcount_block(self) -> int:
        """Its cluster; the refcount table is at cluster 1."""
        return 1 + self.refcount_table_clusters

    @property
    def l1_cluster(self) -> int:
        """Where the L1 table starts."""
        return self.first_refcount_block + self.refcount_blocks

    @property
    def encryption_cluster(self) -> int:
        """Where the encryption header starts."""
        return self.l1_cluster + self.l1_clusters

    @property
    def first_l2_table(self) -> int:
        """Where the L2 tables start."""
        return self.encryption_cluster + self.encryption_clusters

    @property
    def first_data_cluster(self) -> int:
        """Where guest data starts, or would."""
        return self.first_l2_table + self.l2_tables

    @property
    def data_clusters(self) -> int:
        """Those of the guest that are in the image itself."""
        return 0 if self.geometry.data_file else self.guest_clusters

    @property
    def total_clusters(self) -> int:
        """The whole file."""
        return self.first_data_cluster + self.data_clusters


async def create_image(target: CreateTarget, options: Qcow2CreateOptions) -> None:
    """Write the image that *options* describe onto ``target.file``, its data file if it has one, and flush both.

    Raises what ``Qcow2CreateOptions.validate`` raises before the file is touched, and any I/O error; the file then
    begins with zeroes or is empty and is no image. The same holds after a cancellation.
    """
    options.validate()
    assert options.size is not None
    prealloc = PreallocMode(options.preallocation)
    luks = options.luks
    # What somebody writes to a raw data file shall be on the disk: all of it is mapped. Not where it would be noise.
    raw = options.data_file_raw and options.wanted_encryption is None
    mapped = prealloc is not PreallocMode.OFF or raw
    layout = Layout.plan(
        geometry_of(options),
        options.disk_size,
        preallocated=mapped,
        encryption_bytes=0 if luks is None else luks.header_bytes(),
    )
    if options.data_file is None:
        await _write(target.file, layout, prealloc, encode_header(options, layout), luks)
        return
    async with target.beside(options.data_file) as data:
        head = encode_header(options, layout, data.filename)
        await data.co_truncate(
            options.disk_size, prealloc=PreallocMode.OFF if prealloc is PreallocMode.METADATA else prealloc
        )
        await data.co_flush()
        await _write(target.file, layout, PreallocMode.OFF, head, luks)


async def _write(file: Child, layout: Layout, prealloc: PreallocMode, head: bytes, luks: EncryptOptions | None) -> None:
    """All of the image; its first sector, of *head*, at last."""
    await _make_room(file, layout, prealloc)
    for offset, payload in chain(_metadata(layout), [(_SECTOR, head[_SECTOR:])]):
        if dense := _dense(payload):
            await file.co_pwritev(offset, IoVector.of(dense))
    if luks is not None:
        # only what makes or opens an encrypted image needs the ciphers' house
        from blockio_drivers.qcow2.encryption import format_luks

        await format_luks(file, layout.encryption_cluster << layout.geometry.cluster_bits, luks)
    await file.co_flush()
    await file.co_pwritev(0, IoVector.of(head[:_SECTOR].ljust(_SECTOR, b"\0")))
    await file.co_flush()


def geometry_of(options: Qcow2CreateOptions) -> Geometry:
    """What follows from the options of a new image."""
    return Geometry.make(
        options.cluster_size.bit_length() - 1,
        options.refcount_bits.bit_length() - 1,
        version=options.version,
        extended_l2=options.extended_l2,
        data_file=options.data_file is not None,
    )


def encode_header(options: Qcow2CreateOptions, layout: Layout, data_file: str | None = None) -> bytes:
    """The header of the new image, with its extensions. OptionError where the name of its backing file is too long."""
    wanted, luks = options.wanted_encryption, options.luks
    method = CryptMethod.NONE if wanted is None else CryptMethod.AES if luks is None else CryptMethod.LUKS
    bits = layout.geometry.cluster_bits
    zstd = options.compression_type == "zstd"
    header = Header(
        version=options.version,
        cluster_bits=bits,
        size=options.disk_size,
        l1_size=layout.l1_size,
        l1_table_offset=HostOffset(layout.l1_cluster << bits),
        refcount_table_offset=HostOffset(1 << bits),
        refcount_table_clusters=layout.refcount_table_clusters,
        incompatible=(Incompatible.COMPRESSION if zstd else 0)
        | (Incompatible.EXTENDED_L2 if options.extended_l2 else 0)
        | (0 if data_file is None else Incompatible.DATA_FILE),
        compatible=Compatible.LAZY_REFCOUNTS if options.lazy_refcounts else 0,
        crypt_method=method,
        encryption=None
        if luks is None
        else EncryptionExtension(HostOffset(layout.encryption_cluster << bits), luks.header_bytes()),
        refcount_order=layout.geometry.refcount_order,
        autoclear=Autoclear.DATA_FILE_RAW if options.data_file_raw else 0,
        data_file=data_file,
        compression_type=CompressionType.ZSTD if zstd else CompressionType.ZLIB,
        backing_file=options.backing_file or None,
        backing_format=options.backing_fmt,
    )
    try:
        return header.encode()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise OptionError(
            f"Could not assign backing file '{options.backing_file}' with format '{options.backing_fmt}': "
            "No space left on device",
            errno.ENOSPC,
        ) from error


async def _make_room(file: Child, layout: Layout, prealloc: PreallocMode) -> None:
    """Give the file its length, reading as zeroes; allocated as *prealloc* says.

    A device cannot be resized and holds what somebody left there: there the image's clusters are zeroed instead. The
    first goes first: an image that was there shall not outlive its parts.
    """
    nbytes = layout.total_clusters << layout.geometry.cluster_bits
    if await file.co_getlength():
        await file.co_pwrite_zeroes(0, layout.geometry.cluster_size)
        await file.co_flush()
        for offset in range(0, nbytes, _ZERO_STEP):
            await file.co_pwrite_zeroes(offset, min(_ZERO_STEP, nbytes - offset))
        return
    allocate = PreallocMode.OFF if prealloc is PreallocMode.METADATA else prealloc
    await file.co_truncate(nbytes, prealloc=allocate)


def _dense(payload: bytes) -> bytes:
    """*payload* in whole sectors without the zeroes at its end: the room reads as zeroes already, and stays a hole."""
    end = len(payload.rstrip(b"\0"))
    return payload[: -(-end // 512) * 512].ljust(-(-end // 512) * 512, b"\0")


def _metadata(layout: Layout) -> Iterator[tuple[int, bytes]]:
    """All writes but the header's, as (offset, bytes), in pieces of bounded size. Zeroes are left out."""
    bits = layout.geometry.cluster_bits
    yield from pointers(1 << bits, layout.first_refcount_block << bits, layout.refcount_blocks, bits, 0)
    yield from refcount_blocks(layout)
    yield from pointers(layout.l1_cluster << bits, layout.first_l2_table << bits, layout.l2_tables, bits, COPIED)
    # L2 tables stand side by side, so that together they are one long table of all guest clusters. The bitmaps of
    # extended entries stay 0: there is room for the subclusters, but no data that would hide what lies below.
    yield from pointers(
        layout.first_l2_table << bits,
        0 if layout.geometry.data_file else layout.first_data_cluster << bits,
        layout.guest_clusters,
        bits,
        COPIED,
        words=layout.geometry.l2_entry_bytes // 8,
    )


def pointers(
    table: int, first: int, count: int, bits: int, flags: int, *, words: int = 1
) -> Iterator[tuple[int, bytes]]:
    """*count* entries of so many *words* at *table* that point at clusters side by side from *first* on."""
    step = 1 << bits
    for start in range(0, count, _CHUNK // 8):
        stop = min(start + _CHUNK // 8, count)
        low, high = first + start * step, first + stop * step
        if high - step > L2_OFFSET_MASK:
            raise LimitExceeded(TOO_LARGE)
        entries = array("Q", range(low | flags, high | flags, step))
        if words > 1:
            entries, pointers = array("Q", bytes(len(entries) * words * 8)), entries
            entries[::words] = pointers
        yield table + start * words * 8, table_to_bytes(entries)


def refcount_blocks(layout: Layout) -> Iterator[tuple[int, bytes]]:
    """A refcount of 1 for every cluster of the file."""
    geometry = layout.geometry
    codec = RefcountCodec.of(geometry.refcount_order)
    # Eight refcounts fill whole bytes whatever their width.
    full = codec.encode(array("B", b"\1" * 8)) * (geometry.refcount_block_entries // 8)
    offset = layout.first_refcount_block << geometry.cluster_bits
    whole, rest = divmod(layout.total_clusters, geometry.refcount_block_entries)
    at_once = max(1, _CHUNK // geometry.cluster_size)
    for start in range(0, whole, at_once):
        yield offset + (start << geometry.cluster_bits), full * min(at_once, whole - start)
    if rest:
        last = bytearray(geometry.cluster_size)
        for index in range(rest):
            codec.put(last, index, 1)
        yield offset + (whole << geometry.cluster_bits), bytes(last)
