"""How the image commands open images: a format, a cache mode and a gate become a ``BlockBackend``."""

from __future__ import annotations

import posixpath
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from blockio.backend import BlockBackend
from blockio.driver.options import split_protocol
from blockio.errors import BlockError, OptionError
from blockio.types import Limits, OpenFlags, Perm

if TYPE_CHECKING:
    from blockio.driver.gate import OpenGate
    from blockio.graph.node import BlockNode

__all__ = [
    "SECTOR",
    "SPOOL_LIMIT",
    "Image",
    "ImageLike",
    "Pipe",
    "cache_flags",
    "full_backing_name",
    "image_of",
    "nodes_of",
    "opened",
    "sectors_up",
    "with_engine",
]

SECTOR: Final = 512
"""Disks are as long as whole sectors of this many bytes to whoever uses these commands, as in QEMU's."""

SPOOL_LIMIT: Final = 64 << 30
"""Bytes of a pipe that are kept, unless somebody says otherwise."""

_CACHE_MODES: Final = {
    "none": {"cache_direct": True},
    "off": {"cache_direct": True},
    "writeback": {},
    "unsafe": {"cache_no_flush": True},
    "writethrough": {"cache_writeback": False},
    "directsync": {"cache_direct": True, "cache_writeback": False},
}


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """One image as its user names it.

    Either ``filename`` (with the ``format``, or None to have it guessed) or ``options``, nested and with a
    ``driver``. ``label`` is the name in messages, ``filename`` by default.
    """

    filename: str | None = None
    format: str | None = None
    options: Mapping[str, Any] | None = None
    label: str | None = None
    cache: str = "writeback"
    """``none``, ``writeback``, ``unsafe``, ``writethrough`` or ``directsync``."""
    force_share: bool = False
    gate: OpenGate | None = None
    """Asked for what the image refers to. None: the image opens nothing."""
    trust: Limits | None = None
    on_guess: Callable[[str], object] | None = None
    """Called with the file's name where it is opened for writing, and was only guessed to be raw."""

    @property
    def name(self) -> str:
        """What messages call it."""
        if self.label is not None:
            return self.label
        return "<options>" if self.filename is None else self.filename


ImageLike: TypeAlias = "Image | str"


class Pipe(msgspec.Struct, frozen=True, kw_only=True):
    """One end of a pipe, in the place of an image; a socket, a terminal or a file will do. ``fd`` stays its owner's.

    What comes out of a pipe is kept in a file without a name before it is opened, for disks are read here and there: at
    most ``spool_limit`` bytes of it. ``format``, ``gate``, ``trust`` as an ``Image``'s.
    """

    fd: int
    format: str | None = None
    label: str = "-"
    spool_limit: int = SPOOL_LIMIT
    gate: OpenGate | None = None
    trust: Limits | None = None


def image_of(image: ImageLike) -> Image:
    """*image*, or the image at that path."""
    return image if isinstance(image, Image) else Image(filename=image)


def cache_flags(mode: str, flags: OpenFlags, what: str = "cache") -> OpenFlags:
    """*flags* with the cache *mode* of that name. OptionError (``Invalid cache option: x``)."""
    changes = _CACHE_MODES.get(mode)
    if changes is None:
        raise OptionError(f"Invalid {what} option: {mode}")
    return flags.with_(**changes) if changes else flags


def with_engine(image: Image, aio: str) -> Image:
    """*image* with the engine of that name under its first file, whatever filters and formats stand above that."""
    return msgspec.structs.replace(image, options=_engine_below(image.options or {}, aio))


def _engine_below(options: Mapping[str, Any], aio: str) -> dict[str, Any]:
    if options.get("driver") in {"file", "host_device"}:
        return {**options, "aio": aio}
    below = options.get("file")
    if isinstance(below, str):  # a node that stands already
        return dict(options)
    return {**options, "file": {"aio": aio} if below is None else _engine_below_file(below, aio)}


def _engine_below_file(options: Mapping[str, Any], aio: str) -> dict[str, Any]:
    return _engine_below(options, aio) if "file" in options else {**options, "aio": aio}


def nodes_of(node: BlockNode) -> Iterator[BlockNode]:
    """*node* and all that it stands on."""
    yield node
    for edge in node.children.values():
        yield from nodes_of(edge.node)


def sectors_up(nbytes: int) -> int:
    """*nbytes* rounded up to whole sectors."""
    return (nbytes + SECTOR - 1) & -SECTOR


@asynccontextmanager
async def opened(
    image: ImageLike,
    flags: OpenFlags,
    *,
    resize: bool = False,
    alone: bool = False,
    prefix: str = "Could not open '{}': ",
) -> AsyncIterator[BlockBackend]:
    """Open *image* and close it again; *alone*: nobody else may change it meanwhile, in this process or another.

    Whatever fails in opening begins with *prefix*, which may hold the image's name.
    """
    image = image_of(image)
    flags = cache_flags(image.cache, flags)
    if image.force_share:
        flags = flags.with_(force_share=True)
    options = image.options
    if image.format is not None:
        options = {**(options or {}), "driver": image.format}
    try:
        blk = await BlockBackend.new_open(
            image.filename,
            options=options,
            flags=flags,
            gate=image.gate,
            trust=image.trust,
            resize=resize,
            shared=Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED if alone else Perm.ALL,
        )
    except BlockError as error:
        raise error.prefixed(prefix.format(image.name)) from error
    if not flags.cache_writeback:
        blk.set_enable_write_cache(False)
    node = blk.bs
    if image.on_guess is not None and node is not None and node.probed and not node.read_only:
        _tell_guess(node, image.on_guess)
    try:
        yield blk
    except BaseException:
        # The error under way says more than a failing last write-back.
        await _close_quietly(blk)
        raise
    await blk.close()


def _tell_guess(node: BlockNode, tell: Callable[[str], object]) -> None:
    if node.driver_class.name == "raw":
        tell(node.filename)


async def _close_quietly(blk: BlockBackend) -> None:
    with suppress(OSError):
        await blk.close()


def full_backing_name(image: str, backing: str) -> str:
    """*backing* seen from *image*'s folder; prefixed names stay as they are."""
    if split_protocol(backing) is not None or posixpath.isabs(backing) or image.startswith("json:"):
        return backing
    _, _, path = image.partition(":") if split_protocol(image) is not None else ("", "", image)
    return posixpath.join(posixpath.dirname(path), backing)
