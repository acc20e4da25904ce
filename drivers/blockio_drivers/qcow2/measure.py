"""How large an image gets, from the layout that ``create`` gives to one whose space is all there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec.structs import replace

from blockio.driver.base import Measurement
from blockio.types import PreallocMode
from blockio_drivers.qcow2.bitmap_directory import persistent_size
from blockio_drivers.qcow2.create import Layout, geometry_of

if TYPE_CHECKING:
    from blockio.driver.base import MeasureSource
    from blockio_drivers.qcow2.options import Qcow2CreateOptions

__all__ = ["measure_image"]


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
    # Neither is asked about here; an image that has both may be refused when it is made.
    replace(options, backing_file=None, backing_fmt=None, lazy_refcounts=False).validate()
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
    if source is not None and source.bitmaps is not None and options.version >= 3:
        bitmaps = persistent_size(source.bitmaps, source.length, cluster)
    return Measurement(whole - disk + data, whole, bitmaps)


async def _clusters_with_data(source: MeasureSource, cluster: int) -> int:
    count = counted_to = 0
    async for offset, nbytes in source.data():
        first = max(offset // cluster, counted_to)
        counted_to = max(counted_to, -(-(offset + nbytes) // cluster))
        count += max(0, counted_to - first)
    return count
