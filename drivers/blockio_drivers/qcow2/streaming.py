"""A whole qcow2 image laid out before its first byte is written, for somebody who cannot go back.

The layout is that of a new image: header, refcount table, refcount blocks, L1 table, L2 tables, data in the disk's
order. So all that has to be known first is which clusters there will be, not what is in them.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from msgspec.structs import replace

from blockio.driver.base import ImageStream, StreamRun
from blockio.errors import UnsupportedFeature
from blockio.types import PreallocMode
from blockio_drivers.qcow2.create import Layout, encode_header, geometry_of, pointers, refcount_blocks
from blockio_drivers.qcow2.options import Qcow2CreateOptions
from blockio_drivers.qcow2.tables import ALL_ALLOCATED, ALL_ZERO, COPIED, ZERO, Geometry, table_to_bytes

__all__ = ["stream_image"]


class _Span(NamedTuple):
    """Guest clusters of one kind: from number *first* up to *stop*."""

    first: int
    stop: int
    zero: bool


def stream_image(options: Qcow2CreateOptions, length: int, runs: Sequence[StreamRun]) -> ImageStream:
    """See ``BlockDriver.stream``. A cluster that is only partly in *runs* becomes data as a whole.

    Zeroes are left out where the image has no backing file; where it has one they become zero clusters, or data in
    version 2, which has none. Raises what ``Qcow2CreateOptions.validate`` raises.
    """
    options = replace(options, size=length)
    options.validate()
    if PreallocMode(options.preallocation) is not PreallocMode.OFF:
        raise UnsupportedFeature("Preallocation means nothing for an image that is written to a pipe")
    if options.data_file is not None:
        raise UnsupportedFeature("An image that is written to a pipe cannot have a data file")
    if options.wanted_encryption is not None:
        raise UnsupportedFeature("An image that is written to a pipe cannot be encrypted")
    geometry = geometry_of(options)
    spans = list(_spans(runs, geometry, length, backing=bool(options.backing_file), zeroes=options.version >= 3))
    entries = geometry.l2_entries
    tables = sorted({table for first, stop, _ in spans for table in range(first // entries, (stop - 1) // entries + 1)})
    clusters = sum(stop - first for first, stop, zero in spans if not zero)
    layout = Layout.plan_for(geometry, length, len(tables), clusters)
    return ImageStream(
        _metadata(options, layout, tables, spans),
        [
            (span.first * geometry.cluster_size, (span.stop - span.first) * geometry.cluster_size)
            for span in spans
            if not span.zero
        ],
        layout.total_clusters * geometry.cluster_size,
    )


def _spans(
    runs: Sequence[StreamRun], geometry: Geometry, length: int, *, backing: bool, zeroes: bool
) -> Iterator[_Span]:
    """The clusters that the image holds itself, in order, neighbours of a kind together."""
    cluster = geometry.cluster_size
    current: _Span | None = None
    for run in runs:
        if run.zero and not backing:
            continue
        first, stop = run.offset // cluster, -(-(run.offset + run.nbytes) // cluster)
        parts = [_Span(first, stop, False)]
        if run.zero and zeroes:
            # What the run covers only in part is data; past the end of the disk there is nothing to cover.
            low = -(-run.offset // cluster)
            high = stop if run.offset + run.nbytes == length else (run.offset + run.nbytes) // cluster
            if low < high:
                parts = [_Span(first, low, False), _Span(low, high, True), _Span(high, stop, False)]
        for part in parts:
            # Two runs may meet inside a cluster: then both have made it data.
            begin = part.first if current is None else max(part.first, current.stop)
            if begin >= part.stop:
                continue
            if current is None:
                current = _Span(begin, part.stop, part.zero)
            elif current.stop == begin and current.zero == part.zero:
                current = current._replace(stop=part.stop)
            else:
                yield current
                current = _Span(begin, part.stop, part.zero)
    if current is not None:
        yield current


def _metadata(options: Qcow2CreateOptions, layout: Layout, tables: list[int], spans: list[_Span]) -> Iterator[bytes]:
    """Everything in front of the data, in pieces of bounded size, zeroes between them included."""
    bits = layout.geometry.cluster_bits
    l1 = array("Q", bytes(layout.l1_size * 8))
    for number, table in enumerate(tables):
        l1[table] = (layout.first_l2_table + number) << bits | COPIED
    writes = chain(
        [(0, encode_header(options, layout))],
        pointers(1 << bits, layout.first_refcount_block << bits, layout.refcount_blocks, bits, 0),
        refcount_blocks(layout),
        [(layout.l1_cluster << bits, table_to_bytes(l1))],
        _l2_tables(layout, spans),
    )
    return _without_gaps(writes, layout.first_data_cluster << bits)


def _without_gaps(writes: Iterable[tuple[int, bytes]], end: int) -> Iterator[bytes]:
    at = 0
    for offset, payload in writes:
        if at < offset:
            yield bytes(offset - at)
        yield payload
        at = offset + len(payload)
    if at < end:
        yield bytes(end - at)


def _l2_tables(layout: Layout, spans: list[_Span]) -> Iterator[tuple[int, bytes]]:
    """The tables that anything is in, one after the other; the clusters that they refer to lie in the same order."""
    geometry = layout.geometry
    entries, words, cluster = geometry.l2_entries, geometry.l2_entry_bytes // 8, geometry.cluster_size
    place, data = layout.first_l2_table << geometry.cluster_bits, layout.first_data_cluster << geometry.cluster_bits
    current = -1
    table = array("Q")
    for first, stop, zero in spans:
        at = first
        while at < stop:
            if at // entries != current:
                if current >= 0:
                    yield place, table_to_bytes(table)
                    place += cluster
                current, table = at // entries, array("Q", bytes(cluster))
            low = at % entries
            count = min(stop - at, entries - low)
            here = slice(low * words, (low + count) * words, words)
            bitmaps = slice(here.start + 1, here.stop, words)
            if zero and words > 1:
                table[bitmaps] = array("Q", [ALL_ZERO]) * count
            elif zero:
                table[here] = array("Q", [ZERO]) * count
            else:
                table[here] = array("Q", range(data | COPIED, (data + count * cluster) | COPIED, cluster))
                data += count * cluster
                if words > 1:
                    table[bitmaps] = array("Q", [ALL_ALLOCATED]) * count
            at += count
    if current >= 0:
        yield place, table_to_bytes(table)
