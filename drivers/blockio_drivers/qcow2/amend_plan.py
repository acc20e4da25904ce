"""What an amend comes to, checked against the image before anything of it is changed. Pure.

Stands on QEMU's qcow2_amend_options: its options, its order and its messages. One thing is stricter here: what will be
refused is refused first, and not when half of the rest is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from blockio.errors import OptionError, UnsupportedFeature
from blockio_drivers.qcow2.header import Autoclear, CryptMethod, Incompatible

if TYPE_CHECKING:
    from blockio_drivers.qcow2.header import Header
    from blockio_drivers.qcow2.options import Qcow2AmendOptions
    from blockio_drivers.qcow2.snapshot_table import SnapshotEntry

__all__ = ["AmendPlan"]

_VERSIONS: Final = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_UINT32_MAX: Final = (1 << 32) - 1
_MAX_WIDTH: Final = 64
_VERSION_2_WIDTH: Final = 16


class AmendPlan(NamedTuple):
    """What the image shall be; what it is already costs nothing."""

    version: int
    refcount_order: int
    lazy: bool
    size: int | None
    """The disk's new length in bytes; None: it stays."""

    @classmethod
    def of(
        cls, options: Qcow2AmendOptions, header: Header, snapshots: Sequence[SnapshotEntry], *, lazy: bool
    ) -> AmendPlan:
        """For the image with *header* and *snapshots*, whose refcounts are *lazy*.

        OptionError (EINVAL) and UnsupportedFeature in QEMU's words.
        """
        if options.touches_encryption and not header.crypt_method:
            raise OptionError("Can't amend encryption options - encryption not present")
        if options.touches_encryption and header.crypt_method != CryptMethod.LUKS:
            raise UnsupportedFeature("Only LUKS encryption options can be amended")
        version = header.version
        if options.compat is not None:
            if options.compat not in _VERSIONS:
                raise OptionError(f"Unknown compatibility level {options.compat}")
            version = _VERSIONS[options.compat]
        if options.data_file is not None and not header.has_data_file:
            raise OptionError("data-file can only be set for images that use an external data file")
        if options.data_file_raw and not header.autoclear & Autoclear.DATA_FILE_RAW:
            raise OptionError("data-file-raw cannot be set on existing images")
        bits = header.refcount_bits if options.refcount_bits is None else options.refcount_bits
        if not 0 < bits <= _MAX_WIDTH or bits & (bits - 1):
            raise OptionError("Refcount width must be a power of two and may not exceed 64 bits")
        if bits not in (header.refcount_bits, _VERSION_2_WIDTH) and version < 3:
            raise OptionError(
                "Refcount widths other than 16 bits require compatibility level 1.1 or above "
                "(use compat=1.1 or greater)"
            )
        backing = (options.backing_file, options.backing_fmt)
        if backing not in ((None, None), (header.backing_file, header.backing_format)):
            raise OptionError("Cannot amend the backing file", hint="You can use 'qemu-img rebase' instead.")
        wanted = lazy if options.lazy_refcounts is None else options.lazy_refcounts
        if wanted and not lazy and version < 3:
            raise OptionError(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use compat=1.1 or greater)"
            )
        plan = cls(version, bits.bit_length() - 1, wanted, options.size or None)
        if version < header.version:
            _refuse_downgrade(plan, header, snapshots)
        return plan


def _refuse_downgrade(plan: AmendPlan, header: Header, snapshots: Sequence[SnapshotEntry]) -> None:
    if header.has_data_file:
        raise UnsupportedFeature("Cannot downgrade an image with a data file")
    if 1 << plan.refcount_order != _VERSION_2_WIDTH:
        raise UnsupportedFeature("compat=0.10 requires refcount_bits=16")
    size = header.disk_size if plan.size is None else plan.size
    if any(entry.vm_state_size > _UINT32_MAX or entry.disk_size != size for entry in snapshots):
        raise UnsupportedFeature("Internal snapshots prevent downgrade of image")
    features = header.incompatible & ~(Incompatible.DIRTY | Incompatible.COMPRESSION)
    if features:
        raise UnsupportedFeature(f"Cannot downgrade an image with incompatible features {int(features):#x} set")
