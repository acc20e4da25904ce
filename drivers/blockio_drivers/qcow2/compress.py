"""Turning the data of a compressed cluster into guest bytes, and guest bytes into such data.

Stands on the *Compressed Clusters Descriptor* section of QEMU's ``docs/interop/qcow2.txt``: the descriptor says
where the data ends only to a sector, and "decompression stops when it has produced a cluster of data". What
follows is somebody else's. All functions below release the interpreter lock while they work, so that callers
may run them in a worker thread; none produces more than one cluster whatever the data says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from blockio.errors import CorruptImage
from blockio_drivers.qcow2.header import CompressionType

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zstandard import ZstdDecompressor

__all__ = ["compress_clusters", "decompress_cluster", "decompress_clusters"]

_READ_WINDOW_BITS: Final = 15
"""Writers keep to a window of 4 KiB (12); a reader with the largest window reads all of theirs, and
those of programs that did not."""

_WINDOW_BITS: Final = 12
"""QEMU's readers have a window of 4 KiB."""
_ISAL_LEVELS: Final = 3
"""Up to this level ISA-L compresses, ten times as fast as zlib, which takes over from there."""

_DAMAGED: Final = "Compressed cluster is damaged"

_FRAME_SLICE: Final = 256

_MAX_ZSTD_WINDOW: Final = 8 << 20
"""What RFC 8878 asks every decoder to take. No cluster is larger than 2 MiB, so no frame needs more."""


def prepare(kind: CompressionType) -> None:
    """Load the library for *kind*: before a job in a worker does, for whose import the loop might then have to wait."""
    if kind is CompressionType.ZLIB:
        from isal import igzip_lib  # noqa: F401  # for its effect
    else:
        import zstandard  # noqa: F401  # as above


def compress_clusters(
    kind: CompressionType, clusters: Sequence[bytes | memoryview], cluster_size: int, level: int
) -> list[bytes | None]:
    """Each of *clusters* compressed at *level* (of ``LEVELS``); None for one that does not get smaller.

    One that is shorter than *cluster_size*, the disk's last one, counts as filled up with zeroes.
    """
    squeeze = _deflater(level) if kind is CompressionType.ZLIB else _zstd_compressor(level)
    packed: list[bytes | None] = []
    for cluster in clusters:
        data = squeeze(cluster if len(cluster) == cluster_size else bytes(cluster).ljust(cluster_size, b"\0"))
        packed.append(data if len(data) < cluster_size else None)
    return packed


def _deflater(level: int) -> Callable[[bytes | memoryview], bytes]:
    if level <= _ISAL_LEVELS:
        # most processes compress nothing
        from isal import igzip_lib

        def fast(data: bytes | memoryview) -> bytes:
            return igzip_lib.compress(data, level, igzip_lib.COMP_DEFLATE, igzip_lib.MEM_LEVEL_DEFAULT, _WINDOW_BITS)

        return fast
    import zlib

    def thorough(data: bytes | memoryview) -> bytes:
        packer = zlib.compressobj(level, zlib.DEFLATED, -_WINDOW_BITS)
        return packer.compress(data) + packer.flush()

    return thorough


def _zstd_compressor(level: int) -> Callable[[bytes | memoryview], bytes]:
    # most processes compress nothing
    import zstandard

    return zstandard.ZstdCompressor(level=level).compress


def decompress_cluster(kind: CompressionType, data: bytes | bytearray | memoryview, cluster_size: int) -> bytes:
    """Exactly *cluster_size* guest bytes from *data*. CorruptImage (EIO) where it does not hold them."""
    out = bytearray(cluster_size)
    decompress_clusters(kind, [(data, memoryview(out))])
    return bytes(out)


def decompress_clusters(
    kind: CompressionType, clusters: Iterable[tuple[bytes | bytearray | memoryview, memoryview]]
) -> None:
    """Fill each memory, of a cluster's size, from its data. CorruptImage as above; what is filled then is undefined."""
    fill = _inflater() if kind is CompressionType.ZLIB else _unzstd()
    for data, out in clusters:
        fill(data, out)


def _inflater() -> Callable[[bytes | bytearray | memoryview, memoryview], None]:
    # most images have no compressed cluster
    from isal import igzip_lib

    def inflate(data: bytes | bytearray | memoryview, out: memoryview) -> None:
        try:
            inflated = igzip_lib.IgzipDecompressor(igzip_lib.DECOMP_DEFLATE, _READ_WINDOW_BITS).decompress(
                data, len(out)
            )
        except igzip_lib.IsalError as error:  # type: ignore[misc]  # its stub declares an instance where the class is
            raise CorruptImage(_DAMAGED) from error
        if len(inflated) != len(out):
            raise CorruptImage(_DAMAGED)
        out[:] = inflated

    return inflate


def _unzstd() -> Callable[[bytes | bytearray | memoryview, memoryview], None]:
    # most images have no compressed cluster
    import zstandard

    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_ZSTD_WINDOW)

    def unzstd(data: bytes | bytearray | memoryview, out: memoryview) -> None:
        try:
            if zstandard.frame_content_size(data) == len(out):
                with decompressor.stream_reader(data, read_size=len(data)) as reader:
                    filled = reader.readinto(out)
                if filled != len(out):
                    raise CorruptImage(_DAMAGED)
            else:
                out[:] = _of_unknown_size(decompressor, data, len(out))
        except zstandard.ZstdError as error:
            raise CorruptImage(_DAMAGED) from error

    return unzstd


def _of_unknown_size(
    decompressor: ZstdDecompressor, data: bytes | bytearray | memoryview, cluster_size: int
) -> bytes | memoryview:
    """A cluster whose first frame does not say that it holds one.

    CorruptImage for too little data, and, as in QEMU, where the last frame holds more.
    """
    # Room for one byte more than there may be, so that a frame that goes on shows itself.
    out = memoryview(bytearray(cluster_size + 1))
    with decompressor.stream_reader(data, read_size=len(data)) as reader:
        filled = reader.readinto(out)
    if filled == cluster_size:
        return out[:cluster_size]
    if 0 < filled < cluster_size:
        return _several_frames(decompressor, bytes(data), cluster_size)
    raise CorruptImage(_DAMAGED)


def _several_frames(decompressor: ZstdDecompressor, data: bytes, cluster_size: int) -> bytes:
    """A cluster made of more than one frame, which nobody writes but the format allows.

    Fed in slices, because a frame object has no bound on its output: a block of four bytes yields at most 128 KiB.
    """
    out = bytearray()
    while len(out) < cluster_size and data:
        frame = decompressor.decompressobj()
        at = 0
        while at < len(data) and not frame.eof and len(out) <= cluster_size:
            out += frame.decompress(data[at : at + _FRAME_SLICE])
            at += _FRAME_SLICE
        if not frame.eof:
            break
        data = frame.unused_data + data[at:]
    if len(out) != cluster_size or not frame.eof:
        raise CorruptImage(_DAMAGED)
    return bytes(out)
