"""The ``format-specific`` part of ``info``: what is particular to a qcow2 image, in the words of qemu-img."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from blockio_drivers.qcow2.header import Header

__all__ = ["specific_info"]


def specific_info(
    header: Header, bitmaps: Sequence[dict[str, Any]] = (), encryption: dict[str, Any] | None = None
) -> dict[str, Any]:
    """``{"type": "qcow2", "data": {…}}`` with the keys of QEMU's ImageInfoSpecificQCow2, in its order.

    A version 2 image has no feature bits, and QEMU says nothing of them.
    """
    data: dict[str, Any] = {"compat": header.compat}
    if header.version >= 3:
        data |= {
            "compression-type": header.compression_type.name.lower(),
            "lazy-refcounts": header.lazy_refcounts,
            "refcount-bits": header.refcount_bits,
            **_data_file(header),
            "corrupt": header.corrupt,
            "extended-l2": header.extended_l2,
        }
    else:
        data |= {"compression-type": header.compression_type.name.lower(), "refcount-bits": header.refcount_bits}
    if encryption is not None:
        data["encrypt"] = encryption
    if bitmaps:
        data["bitmaps"] = list(bitmaps)
    return {"type": "qcow2", "data": data}


def _data_file(header: Header) -> dict[str, Any]:
    if not header.has_data_file:
        return {}
    name = {} if header.data_file is None else {"data-file": header.data_file}
    return {**name, "data-file-raw": header.data_file_raw}
