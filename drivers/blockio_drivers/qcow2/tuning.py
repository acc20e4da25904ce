"""What an image's options come to: all that can become something else while it is open. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from blockio.errors import OptionError
from blockio_drivers.qcow2.options import LEVELS
from blockio_drivers.qcow2.sizing import CacheSizes
from blockio_drivers.qcow2.tables import Geometry

if TYPE_CHECKING:
    from blockio.types import Limits
    from blockio_drivers.qcow2.header import Header
    from blockio_drivers.qcow2.options import Qcow2Options

__all__ = ["Tuning"]

_UINT_MAX: Final = 2**32 - 1


class Tuning(msgspec.Struct, frozen=True):
    """The metadata caches, after how many seconds they let go (0: never), and how changes are made."""

    sizes: CacheSizes
    clean_interval: int
    lazy: bool
    protected: frozenset[str]

    @classmethod
    def of(cls, options: Qcow2Options, header: Header, trust: Limits) -> Tuning:
        """Of the image with *header*. OptionError where *options* contradict each other or the image."""
        sizes = CacheSizes.of(options, Geometry.of(header), header.disk_size, trust)
        if not 0 <= options.cache_clean_interval <= _UINT_MAX:
            raise OptionError("Cache clean interval too big")
        if options.lazy_refcounts and header.version < 3:
            raise OptionError("Lazy refcounts require a qcow2 image with at least qemu 1.1 compatibility level")
        lazy = header.lazy_refcounts if options.lazy_refcounts is None else options.lazy_refcounts
        protected = options.protected()
        if options.compression_level not in LEVELS:
            raise OptionError(f"Compression level must be between {LEVELS[0]} and {LEVELS[-1]}")
        return cls(sizes, options.cache_clean_interval, lazy, protected)
