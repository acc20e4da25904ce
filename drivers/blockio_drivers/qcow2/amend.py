"""Amending an open image: version, key slots, refcount width, lazy refcounts, length.

In QEMU's order: first what a higher version allows, last the lower version, so that features can go before. Each step
leaves an image that is sound and holds the same disk; a failure, a cancellation or a crash ends between two of them,
or inside one with clusters that leaked at worst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.errors import OptionError
from blockio_drivers.qcow2.amend_plan import AmendPlan
from blockio_drivers.qcow2.downgrade import ZeroExpansion
from blockio_drivers.qcow2.header import Autoclear, Compatible, CompressionType
from blockio_drivers.qcow2.image import finish
from blockio_drivers.qcow2.refcount_width import RefcountWidth

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from blockio_drivers.qcow2.driver import Qcow2Driver
    from blockio_drivers.qcow2.header import Header
    from blockio_drivers.qcow2.options import Qcow2AmendOptions

__all__ = ["amend_image"]


async def amend_image(
    driver: Qcow2Driver,
    options: Qcow2AmendOptions,
    *,
    force: bool,
    resize: Callable[[int], Awaitable[None]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Make *driver*'s image, which is fit for changes and at rest, what *options* say.

    *resize* sets the disk's length; with *force* the last passphrase may go. Raises what ``AmendPlan.of`` does before
    anything changes, what ``LuksVolume.amend`` does, and any I/O error.
    """
    parts = driver.parts
    plan = AmendPlan.of(options, parts.image.header, parts.snapshots.entries, lazy=parts.image.lazy)
    if plan.version > parts.image.header.version:
        await _upgrade(driver)
    if options.touches_encryption:
        await _change_key_slots(driver, options, force=force)
    if plan.refcount_order != driver.parts.image.header.refcount_order:
        await _change_width(driver, plan.refcount_order, progress)
    await _set_data_file(driver, options)
    if plan.lazy != driver.parts.image.lazy:
        await _set_lazy(driver, plan.lazy)
    if plan.size is not None:
        await resize(plan.size)
    if plan.version < driver.parts.image.header.version:
        await _downgrade(driver, progress)


async def _upgrade(driver: Qcow2Driver) -> None:
    """Version 3, which wants to know more of snapshots."""
    await driver.parts.snapshots.complete()
    await driver.parts.write_back.settle_all()
    await _set_version(driver, driver.parts.image.header.with_(version=3))


async def _change_key_slots(driver: Qcow2Driver, options: Qcow2AmendOptions, *, force: bool) -> None:
    """Those of LUKS: the plan has refused all others. They lie in the LUKS header, and no cluster changes hands."""
    # only encrypted images need the ciphers' house
    from blockio_drivers.crypto.volume import KeySlotChange

    if options.encrypt_state is None:
        raise OptionError("Parameter 'state' is missing")
    change = KeySlotChange(
        options.encrypt_state,
        options.encrypt_new_secret,
        options.encrypt_old_secret,
        options.encrypt_keyslot,
        options.encrypt_iter_time,
    )
    encryption = driver.parts.image.encryption
    assert encryption is not None  # so the plan found it
    await encryption.amend(change, driver.host.trust, force=force)


async def _set_version(driver: Qcow2Driver, header: Header) -> None:
    """Another version; everything is settled. Where only a flush failed it is the image's all the same."""
    image = driver.parts.image
    version = image.header.version
    try:
        await image.replace_header(header)
    finally:
        if image.header.version != version:
            driver.renew()


async def _change_width(driver: Qcow2Driver, order: int, progress: Callable[[int, int], None] | None) -> None:
    parts = driver.parts
    image = parts.image
    await parts.write_back.settle_all()
    await image.barrier()
    change = RefcountWidth(image, parts.allocator, order, progress)
    async with parts.write_back.exclusive():
        await change.build()
    await finish(_turn_width(driver, change))


async def _turn_width(driver: Qcow2Driver, change: RefcountWidth) -> None:
    """The new structure is the image's, then the old one is given back; where that is not sure it stays untouched."""
    image = driver.parts.image
    try:
        await change.turn()
    finally:
        if image.header.refcount_order != image.geometry.refcount_order:
            driver.renew(change.table)
    for first, count in change.left:
        driver.parts.allocator.replaced(first, count)
    await driver.parts.write_back.settle_all()


async def _set_data_file(driver: Qcow2Driver, options: Qcow2AmendOptions) -> None:
    """The name of the external data file, and whether it is raw by itself: asked for, it may only be no more."""
    image = driver.parts.image
    header = image.header
    if options.data_file is not None:
        header = header.with_(data_file=options.data_file or None)
    if options.data_file_raw is False:
        header = header.with_(autoclear=header.autoclear & ~Autoclear.DATA_FILE_RAW)
    if header != image.header:
        await image.replace_header(header)


async def _set_lazy(driver: Qcow2Driver, lazy: bool) -> None:
    """Before refcounts must be true all the time, they become so."""
    image = driver.parts.image
    header = image.header
    if lazy:
        await image.replace_header(header.with_(compatible=header.compatible | Compatible.LAZY_REFCOUNTS))
        image.lazy = True
        return
    await driver.parts.write_back.settle_all()
    await image.barrier()
    await image.mark_clean()
    image.lazy = False
    header = image.header
    await image.replace_header(header.with_(compatible=header.compatible & ~Compatible.LAZY_REFCOUNTS))


async def _downgrade(driver: Qcow2Driver, progress: Callable[[int, int], None] | None) -> None:
    """Version 2: no zero clusters, no feature bits, no bitmaps."""
    parts = driver.parts
    image = parts.image
    await parts.write_back.settle_all()
    await image.barrier()
    async with parts.write_back.exclusive():
        expansion = ZeroExpansion(image, parts.allocator, backed=driver.backing is not None, progress=progress)
        try:
            await expansion.run(parts.snapshots)
        finally:
            parts.mapping.cache.drop()
    await parts.bitmaps.remove_all()
    await parts.write_back.settle_all()
    await image.barrier()
    await image.mark_clean()
    image.lazy = False
    await _set_version(
        driver,
        image.header.with_(
            version=2,
            incompatible=0,
            compatible=0,
            autoclear=0,
            compression_type=CompressionType.ZLIB,
            unknown_fields=b"",
            feature_names=(),
        ),
    )
