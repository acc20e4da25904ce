"""``convert``: the content of one disk, or of several in a row, as another image.

Where that is written, and what is left when it does not end well, is ``placing``'s; what goes on after an
interruption, ``resuming``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.errors import OptionError, OutOfRange, UnsupportedFeature
from blockio.img.copying import Copier, Source
from blockio.img.creating import CreatePlan, option_pairs, plan_create
from blockio.img.opening import Image, ImageLike, Pipe, opened, sectors_up
from blockio.img.placing import Place
from blockio.img.progress import Meter
from blockio.img.results import ConvertResult, DigestResult, Observer
from blockio.img.snapshots import load_snapshot
from blockio.io.copy import can_haul
from blockio.types import Capability, OpenFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.driver.gate import OpenGate
    from blockio.img.digesting import OrderedChecksum
    from blockio.img.limiting import RateLimit
    from blockio.img.resuming import Checkpoints, ResumablePlace
    from blockio.types import Limits

__all__ = ["MAX_SPARSE", "MAX_WORKERS", "convert"]

MAX_WORKERS: Final = 16
MAX_SPARSE: Final = 16 << 20
_NO_COMPRESSION: Final = "Compression not supported for this file format"


async def convert(
    sources: ImageLike | Pipe | Sequence[ImageLike | Pipe],
    target: ImageLike | Pipe,
    format: str = "raw",
    *,
    options: Mapping[str, Any] | Iterable[tuple[str, str]] = (),
    backing_file: str | None = None,
    backing_format: str | None = None,
    create: bool = True,
    target_is_zero: bool = False,
    sparse: int = 4096,
    workers: int = 8,
    in_order: bool = True,
    copy_offload: bool = False,
    compress: bool = False,
    compression_level: int | None = None,
    salvage: bool = False,
    bitmaps: bool = False,
    skip_broken_bitmaps: bool = False,
    snapshot: str | None = None,
    digest: str | None = None,
    resume: bool = False,
    limit: RateLimit | None = None,
    gate: OpenGate | None = None,
    trust: Limits | None = None,
    observer: Observer | None = None,
    on_warning: Callable[[str], object] | None = None,
) -> ConvertResult:
    """Copy *sources*, one after the other, onto *target*, a new image of *format* with *options*.

    *create* False: *target* exists, is at least as long, and is written in place (*target_is_zero*: it reads as
    zeroes). With *backing_file* the new image only gets what the source's top image holds itself. *sparse*: runs of
    that many zeroes take no space if possible; 0 writes everything. *workers* requests are under way at once;
    *in_order* False lets their writes begin in any order. *copy_offload* asks the storage to copy. *compress*:
    clusters are written compressed, as hard as *compression_level* says (the target's option ``compression-level``;
    by default fast). *salvage*: what cannot be read becomes zeroes. *bitmaps* are copied as well; inconsistent ones
    are refused, or left out where *skip_broken_bitmaps* says so. *snapshot* is the id or the name of the one to
    copy, or ``snapshot.id=…,snapshot.name=…``. *limit* slows it down, and may be changed meanwhile. The target is
    cached ``unsafe`` unless it is an ``Image`` that says otherwise: flush it yourself where a power failure
    matters.

    *digest* names the algorithm of a checksum, made in the same pass, of what was written: what ``img.digest`` says of
    the target afterwards, as far as the sources reach. All must be read for it: OptionError with a backing file or
    *copy_offload*.

    *resume*: what an interrupted or failed conversion has got done stays, and the next call with the same arguments
    goes on from there, after a crash of the machine as well; see ``resuming``. The target must be a new regular file,
    the sources regular files (OptionError, UnsupportedFeature). Where they have changed since, it starts from nothing,
    and *on_warning* is told why; where the arguments are others it refuses (OptionError); ImageLocked while the same
    conversion runs elsewhere. The target is cached ``writeback`` then, and stable when this returns. With *digest* what
    is there already is read once more.

    A ``Pipe`` may be in the place of a source, and of a new raw or qcow2 target: that is written in order, and zeroes
    are left out as far as the source's map knows them. Broken or cancelled, the other end has got a part of it.

    Raises BlockError; ``error while reading at byte N: …`` or ``writing`` for I/O on the way; UnsupportedFeature for
    *compress* and *bitmaps* where one side knows none. A failed or cancelled conversion leaves no half-written file
    behind, but with *resume*, and never one under the target's name.
    """
    inputs = [sources] if isinstance(sources, (str, Image, Pipe)) else list(sources)
    if not inputs:
        raise ValueError("nothing to convert")
    if not 1 <= workers <= MAX_WORKERS:
        raise ValueError(f"{workers} workers: 1 to {MAX_WORKERS} can be")
    if sparse % 512 or not 0 <= sparse <= MAX_SPARSE:
        raise ValueError(f"zeroes cannot be looked for in runs of {sparse} bytes")
    if isinstance(target, Pipe):
        output = Image(filename="", label=target.label)
        _refuse_for_pipe(create=create, copy_offload=copy_offload, compress=compress, bitmaps=bitmaps)
    elif isinstance(target, Image):
        output = target
    else:
        cache = "writeback" if resume else "unsafe"
        output = Image(filename=target, format=format, cache=cache, gate=gate, trust=trust)
    if resume:
        from blockio.img import resuming  # few conversions can be resumed

        resuming.refuse_unresumable(inputs, target, create=create, cache=output.cache)
    # The place is left last: whatever fails or is cancelled before, closing included, is a failed conversion.
    async with AsyncExitStack() as outer, AsyncExitStack() as stack:
        disks: list[Source] = []
        start = 0
        for image in inputs:
            disks.append(Source(await _open_source(stack, image), start))
            start += disks[-1].size
        if snapshot is not None:
            if len(disks) > 1:
                raise OptionError("No support for concatenating multiple snapshot")
            await load_snapshot(disks[0].blk, snapshot)
        plan: CreatePlan | None = None
        if create:
            plan = _plan(output, format, option_pairs(options), start, backing_file, backing_format)
            backing_file = plan.get("backing_file")
        if len(disks) > 1 and backing_file is not None:
            raise OptionError(
                "Having a backing file for the target makes no sense when concatenating multiple input images"
            )
        if plan is not None and backing_file is not None and plan.get("backing_fmt") is None:
            raise OptionError("Use of backing file requires explicit backing format")
        if compress and plan is not None:
            _refuse_compression(plan)
        if bitmaps:
            from blockio.img.bitmapping import refuse_broken_bitmaps  # few conversions copy them

            if len(disks) > 1:
                raise OptionError("Copying bitmaps only possible with single source")
            refuse_broken_bitmaps(disks[0].node, skip_broken=skip_broken_bitmaps)
            if plan is not None and not plan.driver.stores_bitmaps:
                raise UnsupportedFeature(f"Format driver '{format}' does not support bitmaps")
        ordered = None
        if digest is not None:
            from blockio.img.digesting import OrderedChecksum, hash_disk  # few conversions make one

            if copy_offload or backing_file is not None:
                raise OptionError("A digest needs all data: it goes with no copy offloading and no backing file")
            ordered = stack.enter_context(OrderedChecksum(digest))
        if isinstance(target, Pipe):
            from blockio.img.streaming import stream_disks

            assert plan is not None
            meter = Meter(observer, start)
            streamer = await stream_disks(
                disks,
                target,
                plan.driver,
                plan.values,
                meter,
                workers=workers,
                backing_length=None if backing_file is None else -1,
                salvage=salvage,
                limit=limit,
                checksum=ordered,
                on_warning=on_warning,
            )
            meter.finish()
            return ConvertResult(
                output.name,
                format,
                start,
                streamer.copied,
                streamer.zeroed,
                streamer.salvaged,
                _summed(output, digest, ordered, start),
            )
        place: Place
        resumable: ResumablePlace | None = None
        if resume:
            assert plan is not None
            place = resumable = await resuming.resumable_place(
                inputs,
                disks,
                output,
                plan,
                trust,
                on_warning,
                format=format,
                sparse=sparse,
                compress=compress,
                level=compression_level,
                salvage=salvage,
                bitmaps=bitmaps,
                snapshot=snapshot,
            )
        else:
            place = Place(output, plan, trust)
        await outer.enter_async_context(place)
        if resumable is not None and resumable.finished:
            from blockio.img.digesting import digest as digest_of

            summed = None if digest is None else await digest_of(place.image, digest, limit=limit)
            return ConvertResult(output.name, format, start, 0, 0, digest=summed, resumed=start)
        written = place.image if plan is None else msgspec.structs.replace(place.image, format=format)
        if compress and compression_level is not None:
            options_of_it = {**(written.options or {}), "compression-level": compression_level}
            written = msgspec.structs.replace(written, options=options_of_it)
        blk = await stack.enter_async_context(opened(written, _flags(sparse)))
        node = blk.bs
        assert node is not None
        if compress and (node.driver is None or node.driver.capabilities.write_compressed is Capability.NONE):
            raise UnsupportedFeature(_NO_COMPRESSION)
        if plan is None and sectors_up(blk.getlength()) < start:
            raise OutOfRange("output file is smaller than input file")
        if bitmaps and not node.supports_persistent_dirty_bitmap:
            raise UnsupportedFeature(f"Format driver '{node.driver_class.name}' does not support bitmaps")
        meter = Meter(observer, start)
        since, again = 0, False
        checkpoints: Checkpoints | None = None
        if resumable is not None:
            checkpoints = await resumable.begin(blk)
            since, again = resumable.done, resumable.resumed
        if since:
            meter.resume(since)
            if ordered is not None:
                await hash_disk(blk, since, ordered, Meter(None, since), limit)
                ordered.recount()
        # Another time salvaging may find other sectors bad: what it had then must not show through their zeroes.
        reads_zero = plan is not None and bool(sparse) and not (again and salvage) and _reads_zero(blk, backing_file)
        zero_init = target_is_zero or reads_zero
        copier = Copier(
            resuming.remaining(disks, since) if since else disks,
            resuming.Rewriting(blk) if compress and again else blk,
            meter,
            workers=workers,
            in_order=in_order,
            sparse=sparse,
            cluster_size=(await blk.co_get_info()).cluster_size,
            zero_init=zero_init,
            backing_length=None if backing_file is None else _backing_length(blk),
            copy_offload=copy_offload,
            haul=blk.enable_write_cache
            and (zero_init or not sparse)
            and all(map(can_haul, (node, *(disk.node for disk in disks)))),
            salvage=salvage,
            compress=compress,
            limit=limit,
            checksum=ordered,
            landed=None if checkpoints is None else checkpoints.landed,
            on_warning=on_warning,
        )
        await (copier.run() if checkpoints is None else checkpoints.during(copier.run()))
        if compress:
            await blk.co_pwrite_compressed(0, b"")
        if again:
            await resuming.mended(node)
        if bitmaps:
            from blockio.img.bitmapping import copy_bitmaps

            await copy_bitmaps(disks[0].node, node, on_warning=on_warning)
        if resumable is not None:
            await blk.co_flush()
    meter.finish()
    return ConvertResult(
        output.name,
        None if output.options else format,
        start,
        copier.copied,
        copier.zeroed,
        copier.salvaged,
        _summed(output, digest, ordered, start),
        since,
    )


def _summed(output: Image, algorithm: str | None, ordered: OrderedChecksum | None, size: int) -> DigestResult | None:
    if algorithm is None or ordered is None:
        return None
    return DigestResult(output.name, algorithm, ordered.hexdigest(), size)


def _plan(
    output: Image,
    format: str,
    pairs: list[tuple[str, str]],
    size: int,
    backing_file: str | None,
    backing_format: str | None,
) -> CreatePlan:
    if output.filename is None:
        raise ValueError("a new image needs a file name")
    plan = plan_create(output.filename, format, pairs)
    plan.set("size", size)
    if backing_file is not None:
        plan.set("backing_file", backing_file, f"Backing file not supported for file format '{format}'")
    if backing_format is not None:
        plan.set("backing_fmt", backing_format, f"Backing file format not supported for file format '{format}'")
    return plan


async def _open_source(stack: AsyncExitStack, image: ImageLike | Pipe) -> BlockBackend:
    """*image*, which nobody may change until *stack* is left."""
    if isinstance(image, Pipe):
        from blockio.img.piping import spooled  # few conversions read from a pipe

        image = await stack.enter_async_context(spooled(image))
    return await stack.enter_async_context(opened(image, OpenFlags(read_only=True), alone=True))


def _refuse_for_pipe(**wanted: bool) -> None:
    """UnsupportedFeature for what is not possible in order, or means nothing there."""
    if not wanted["create"]:
        raise OptionError("What is written to a pipe is a new image: it does not exist yet")
    for name, what in (("copy_offload", "Copy offloading"), ("compress", "Compression"), ("bitmaps", "Bitmaps")):
        if wanted[name]:
            raise UnsupportedFeature(f"{what} cannot be had where the new image is written to a pipe")


def _refuse_compression(plan: CreatePlan) -> None:
    """UnsupportedFeature where the new image can hold no compressed clusters."""
    if plan.driver.capabilities.write_compressed is Capability.NONE:
        raise UnsupportedFeature(_NO_COMPRESSION)
    if plan.get("encrypt.format") is not None or plan.get("encryption") not in {None, False, "off"}:
        raise UnsupportedFeature("Compression and encryption not supported at the same time")
    if plan.get("preallocation") not in {None, "off"}:
        raise UnsupportedFeature("Compression and preallocation not supported at the same time")


def _flags(sparse: int) -> OpenFlags:
    return OpenFlags(unmap=bool(sparse))


def _reads_zero(blk: BlockBackend, backing_file: str | None) -> bool:
    node = blk.bs
    assert node is not None
    return backing_file is None and node.driver is not None and node.driver.has_zero_init()


def _backing_length(blk: BlockBackend) -> int:
    node = blk.bs
    assert node is not None
    edge = node.backing
    return -1 if edge is None else sectors_up(edge.node.length)
