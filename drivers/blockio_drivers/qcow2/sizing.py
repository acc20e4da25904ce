"""How large the metadata caches are: QEMU's options and defaults, in bytes. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from blockio.errors import OptionError

if TYPE_CHECKING:
    from blockio.types import Limits
    from blockio_drivers.qcow2.options import Qcow2Options
    from blockio_drivers.qcow2.tables import Geometry

__all__ = ["CacheSizes"]

_DEFAULT_L2_MAX: Final = 32 << 20
_DEFAULT_ENTRY: Final = 64 << 10
_MIN_REFCOUNT_CLUSTERS: Final = 4
_INT_MAX: Final = 2**31 - 1


class CacheSizes(msgspec.Struct, frozen=True):
    """Bytes for L2 tables and for refcount blocks, and how much of an L2 table is read at once."""

    l2: int
    refcount: int
    l2_entry: int

    @classmethod
    def of(cls, options: Qcow2Options, geometry: Geometry, disk_size: int, trust: Limits) -> CacheSizes:
        """From what the caller asked for. OptionError where that contradicts itself.

        By default the L2 tables of the whole disk are kept, up to 32 MiB, and four refcount blocks.
        """
        cluster = geometry.cluster_size
        covering = -(-disk_size // cluster) * geometry.l2_entry_bytes
        least = _MIN_REFCOUNT_CLUSTERS * cluster
        both, l2, refcount = options.cache_size, options.l2_cache_size, options.refcount_cache_size
        if both is not None:
            if l2 is not None and refcount is not None:
                raise OptionError("cache-size, l2-cache-size and refcount-cache-size may not be set at the same time")
            if l2 is not None and l2 > both:
                raise OptionError("l2-cache-size may not exceed cache-size")
            if refcount is not None and refcount > both:
                raise OptionError("refcount-cache-size may not exceed cache-size")
            if l2 is not None:
                refcount = both - l2
            elif refcount is not None:
                l2 = both - refcount
            elif both >= covering + least:
                l2, refcount = covering, both - covering
            else:
                refcount = min(both, least)
                l2 = both - refcount
        entry = options.l2_cache_entry_size
        if entry is None:
            entry = min(cluster, _DEFAULT_ENTRY)
        if not 512 <= entry <= cluster or entry & (entry - 1):
            raise OptionError(
                f"L2 cache entry size must be a power of two between 512 and the cluster size ({cluster})"
            )
        if refcount is not None and refcount // cluster > _INT_MAX:
            raise OptionError("Refcount cache size too big")
        top = trust.max_metadata_cache
        return cls(
            min(_DEFAULT_L2_MAX if l2 is None else l2, covering, top),
            min(least if refcount is None else refcount, top),
            entry,
        )
