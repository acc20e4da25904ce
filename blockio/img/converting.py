"""``convert``: the content of one disk, or of several in a row, as another image.

A target that is a new file is written under a name of its own beside the final one (``.NAME.XXXXXXXX.part``) and gets
its name when it is whole: who sees the name sees all of it. What is there already is written in place, as it may be a
device or have links to it; when that fails half-way, a regular file is removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.registry import find_protocol
from blockio.errors import BlockError, OptionError, OutOfRange, UnsupportedFeature
from blockio.img.copying import Copier, Source
from blockio.img.creating import CreatePlan, option_pairs, plan_create
from blockio.img.opening import Image, ImageLike, Pipe, opened, sectors_up
from blockio.img.progress import Meter
from blockio.img.results import ConvertResult, DigestResult, Observer
from blockio.img.snapshots import load_snapshot
from blockio.types import Capability, OpenFlags

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.driver.gate import OpenGate
    from blockio.img.limiting import RateLimit
    from blockio.types import Limits

__all__ = ["MAX_SPARSE", "MAX_WORKERS", "Place", "convert"]

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
    the target afterwards, as far as the sources reach. All must be read for it: OptionError with a backing file,
    *copy_offload* or into a pipe.

    A ``Pipe`` may be in the place of a source, and of a new raw or qcow2 target: that is written in order, and zeroes
    are left out as far as the source's map knows them. Broken or cancelled, the other end has got a part of it.

    Raises BlockError; ``error while reading at byte N: …`` or ``writing`` for I/O on the way; UnsupportedFeature for
    *compress* and *bitmaps* where one side knows none. A failed or cancelled conversion leaves no
    half-written file behind.
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
        output = Image(filename=target, format=format, cache="unsafe", gate=gate, trust=trust)
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
            from blockio.img.bitmapping import refuse_broken_bitmaps  # noqa: PLC0415  # few conversions copy them

            if len(disks) > 1:
                raise OptionError("Copying bitmaps only possible with single source")
            refuse_broken_bitmaps(disks[0].node, skip_broken=skip_broken_bitmaps)
            if plan is not None and not plan.driver.stores_bitmaps:
                raise UnsupportedFeature(f"Format driver '{format}' does not support bitmaps")
        ordered = None
        if digest is not None:
            from blockio.img.digesting import OrderedChecksum  # noqa: PLC0415  # few conversions make one

            if copy_offload or backing_file is not None or isinstance(target, Pipe):
                raise OptionError("A digest needs all data: it goes with no copy offloading, backing file or pipe")
            ordered = stack.enter_context(OrderedChecksum(digest))
        if isinstance(target, Pipe):
            from blockio.img.streaming import stream_disks  # noqa: PLC0415  # as above

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
                on_warning=on_warning,
            )
            meter.finish()
            return ConvertResult(output.name, format, start, streamer.copied, streamer.zeroed, streamer.salvaged)
        place = Place(output, plan, trust)
        await outer.enter_async_context(place)
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
        copier = Copier(
            disks,
            blk,
            meter,
            workers=workers,
            in_order=in_order,
            sparse=sparse,
            cluster_size=(await blk.co_get_info()).cluster_size,
            zero_init=target_is_zero or (plan is not None and bool(sparse) and _reads_zero(blk, backing_file)),
            backing_length=None if backing_file is None else _backing_length(blk),
            copy_offload=copy_offload,
            salvage=salvage,
            compress=compress,
            limit=limit,
            checksum=ordered,
            on_warning=on_warning,
        )
        await copier.run()
        if compress:
            await blk.co_pwrite_compressed(0, b"")
        if bitmaps:
            from blockio.img.bitmapping import copy_bitmaps  # noqa: PLC0415  # as above

            await copy_bitmaps(disks[0].node, node, on_warning=on_warning)
    meter.finish()
    return ConvertResult(
        output.name,
        None if output.options else format,
        start,
        copier.copied,
        copier.zeroed,
        copier.salvaged,
        None if digest is None or ordered is None else DigestResult(output.name, digest, ordered.hexdigest(), start),
    )


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
        from blockio.img.piping import spooled  # noqa: PLC0415  # few conversions read from a pipe

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


class Place:
    """Where the target is written, and what becomes of it.

    Entered: a new target has been created, under ``image``'s name. Left by an error: what was begun is removed.
    Left without one, after everything was closed: it gets its final name.
    """

    def __init__(
        self, output: Image, plan: CreatePlan | None, trust: Limits | None, failing: str = "error while converting {}"
    ) -> None:
        self.image = output
        self._failing = failing
        self._output = output
        self._plan = plan
        self._trust = trust
        self._path: str | None = None
        """The target as it is named, where it is a path."""
        self._final: str | None = None
        """Where a regular file is in the end; None for everything else."""
        self._beside: str | None = None
        """Where it is meanwhile, if elsewhere."""
        self._ours = False
        """The regular file there is what we have made of it."""

    async def __aenter__(self) -> Place:
        plan = self._plan
        if plan is None:
            return self
        self._choose_name(plan)
        try:
            await plan.write(trust=self._trust, onto=self._beside)
        except BlockError as error:
            what = f"{self._output.name}: {self._failing.format(plan.driver.name)}: "
            raise self._by_final_name(error).prefixed(what) from error
        self._ours = self._final is not None
        # What encrypts the new image opens it, too.
        secrets = {name: value for name, value in plan.values.items() if name.endswith("key-secret")}
        if secrets:
            self.image = msgspec.structs.replace(self.image, options={**(self.image.options or {}), **secrets})
        return self

    def _choose_name(self, plan: CreatePlan) -> None:
        self._path = path = _plain_path(plan)
        if path is None:
            return
        # Only a link is followed: what the image refers to is found from its folder as it is named.
        final = os.path.realpath(path) if os.path.islink(path) else path
        if not os.path.lexists(final):
            self._final, self._beside = final, _temporary_name(final)
            self.image = msgspec.structs.replace(self._output, filename=self._beside, label=self._output.name)
        elif os.path.isfile(final):
            self._final = final

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object
    ) -> None:
        if kind is None:
            self._settle()
            return
        leftover = self._beside or self._final
        if leftover is not None and self._ours:
            with suppress(OSError):
                os.unlink(leftover)
        if self._beside is not None and isinstance(error, BlockError) and self._beside in error.message:
            raise self._by_final_name(error) from error

    def _settle(self) -> None:
        """The target is whole and closed: let it be seen under its name."""
        if self._beside is None or self._final is None:
            return
        try:
            os.rename(self._beside, self._final)
        except OSError as error:
            with suppress(OSError):
                os.unlink(self._beside)
            raise BlockError(f"Could not create '{self._path}': {error.strerror}", error.errno) from error

    def _by_final_name(self, error: BlockError) -> BlockError:
        """*error* as if the file had had its final name all the time."""
        if self._beside is None or self._path is None:
            return error
        message = error.message.replace(self._beside, self._path)
        return type(error)(message, error.errno, hint=error.hint.replace(self._beside, self._path))


def _plain_path(plan: CreatePlan) -> str | None:
    """The path of a target that is a plain file, or None."""
    if find_protocol(plan.filename).name != "file":
        return None
    path = plan.protocol.parse_filename(plan.filename).get("filename")
    return path if isinstance(path, str) else None


def _temporary_name(final: str) -> str:
    folder, name = os.path.split(final)
    # Short enough for every file system; random, so that two conversions to one name do not meet.
    short = os.fsdecode(os.fsencode(name)[:200])
    return os.path.join(folder, f".{short}.{os.urandom(4).hex()}.part")
