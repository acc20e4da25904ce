"""How large an image gets, from the layout that ``create`` gives to one whose space is all there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from blockio.driver.base import Measurement
from blockio.errors import LimitExceeded, OptionError
from blockio.types import PreallocMode
from blockio_drivers.qcow2.bitmap_directory import persistent_size
from blockio_drivers.qcow2.create import Layout, geometry_of

if TYPE_CHECKING:
    from blockio.driver.base import MeasureSource
    from blockio_drivers.qcow2.options import Qcow2CreateOptions

__all__ = ["measure_image"]

_COMPAT: Final = {"0.10": 2, "1.1": 3}
_OTHER_WIDTHS: Final = frozenset((1, 2, 4, 8, 32, 64))
_ENOUGH: Final = 1 << 62
"""A size that is too large whatever the clusters."""


async def measure_image(options: Qcow2CreateOptions, source: MeasureSource | None) -> Measurement:
    """The size of an image of *options*: with the clusters that *source* has data in, and with all of them.

    Metadata is counted as for a full disk in both. On a backing file all data of *source* is counted, because nobody
    knows what of it the backing file holds. Raises what ``Qcow2CreateOptions.validate`` raises.
    """
    if source is not None:
        options = replace(options, size=source.length)
    # With a data file what is in it counts as well, as for QEMU.
    options = replace(options, data_file=None, data_file_raw=False)
    if options.encrypt is None or not options.encrypt.luks or options.encryption:
        options = replace(options, encrypt=None, encryption=False)  # takes no room, and is not looked at
    version = _asked_version(options)
    # What is not asked about here may be refused when the image is made.
    options = replace(options, compat="1.1", compression_type="zlib", lazy_refcounts=False)
    try:
        replace(options, size=min(options.size or 0, _ENOUGH), backing_file=None, backing_fmt=None).validate()
    except LimitExceeded as error:
        raise LimitExceeded("The image size is too large (try using a larger cluster size)") from error
    geometry = geometry_of(options)
    cluster = geometry.cluster_size
    disk = geometry.clusters(options.disk_size) * cluster
    whole = Layout.plan(geometry, options.disk_size, preallocated=True).total_clusters * cluster
    if options.encrypt is not None:
        whole += geometry.clusters(options.encrypt.header_bytes()) * cluster  # not counted by refcounts, as in QEMU
    data = 0
    if options.preallocation in {PreallocMode.FULL, PreallocMode.FALLOC} or (
        source is not None and options.backing_file
    ):
        data = disk
    elif source is not None:
        data = await _clusters_with_data(source, cluster) * cluster
    bitmaps = None
    if source is not None and source.bitmaps is not None and version >= 3:
        bitmaps = persistent_size(source.bitmaps, source.length, cluster)
    return Measurement(whole - disk + data, whole, bitmaps)


def _asked_version(options: Qcow2CreateOptions) -> int:
    """The header version. OptionError, in other words than when an image is made, for what does not suit it."""
    if options.preallocation not in set(PreallocMode):
        raise OptionError(f"invalid parameter value: {options.preallocation}")
    if options.compat not in _COMPAT:
        raise OptionError(f"Invalid compatibility level: '{options.compat}'")
    if _COMPAT[options.compat] < 3 and options.refcount_bits in _OTHER_WIDTHS:
        raise OptionError(
            "Different refcount widths than 16 bits require compatibility level 1.1 or above "
            "(use compat=1.1 or greater)"
        )
    return _COMPAT[options.compat]


async def _clusters_with_data(source: MeasureSource, cluster: int) -> int:
    count = counted_to = 0
    async for offset, nbytes in source.data():
        first = max(offset // cluster, counted_to)
        counted_to = max(counted_to, -(-(offset + nbytes) // cluster))
        count += max(0, counted_to - first)
    return count
