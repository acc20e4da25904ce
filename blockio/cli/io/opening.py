"""How an image is opened for the tool: by its own options and by the ``open`` command alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from blockio.backend import BlockBackend
from blockio.cli.definitions import AIO_MODES, stronger_aio
from blockio.driver.gate import AllowAll
from blockio.driver.options import flatten, nest, split_protocol
from blockio.errors import BlockError, OptionError
from blockio.img.opening import cache_flags
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.io.session import Session

__all__ = ["Opening", "open_image", "set_aio", "set_cache", "set_discard"]

_DISCARD_MODES: Final = {"ignore": False, "off": False, "unmap": True, "on": True}
_RAW_WARNING: Final = """\
WARNING: Image format was not specified for '{}' and probing guessed raw.
         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.
         Specify the 'raw' format explicitly to remove the restrictions.
"""


@dataclass(slots=True)
class Opening:
    """What is to be opened, and how; filled in while options are read."""

    filename: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    """Flat or nested; a later one wins over an earlier one."""
    flags: OpenFlags = field(default_factory=lambda: OpenFlags(unmap=True, cache_writeback=False))
    """Discards are passed on unless told otherwise (``-d``), and writes are flushed unless ``-t`` says when not to."""
    aio: str | None = None
    snapshot: bool = False
    copy_on_read: bool = False


def set_cache(opening: Opening, mode: str) -> None:
    """``-t``, ``-c``: a cache mode replaces all of an earlier one. OptionError."""
    plain = opening.flags.with_(cache_direct=False, cache_no_flush=False, cache_writeback=True)
    opening.flags = cache_flags(mode, plain)


def set_discard(opening: Opening, mode: str) -> None:
    """``-d``. OptionError."""
    if mode not in _DISCARD_MODES:
        raise OptionError(f"Invalid discard option: {mode}")
    opening.flags = opening.flags.with_(unmap=_DISCARD_MODES[mode])


def set_aio(opening: Opening, mode: str) -> None:
    """``-i``, ``-k``. OptionError."""
    if mode not in AIO_MODES:
        raise OptionError(f"Invalid aio option: {mode}")
    opening.aio = stronger_aio(opening.aio, mode)


async def open_image(session: Session, opening: Opening) -> None:
    """Make what *opening* describes the session's image. BlockError: ``can't open device …``, and nothing is open."""
    if session.blk is not None:
        raise BlockError("file open already, try 'help close'")
    try:
        session.blk = await _open(session, opening)
    except BlockError as error:
        name = f" device {opening.filename}" if opening.filename is not None else ""
        raise error.prefixed(f"can't open{name}: ") from error


async def _open(session: Session, opening: Opening) -> BlockBackend:
    flags = opening.flags
    if opening.snapshot:
        from blockio.cli.io.snapshot import open_on_snapshot  # only -s needs to create images

        blk = await open_on_snapshot(opening, _options(opening))
    else:
        blk = await BlockBackend.new_open(opening.filename, options=_options(opening), flags=flags, gate=AllowAll())
    try:
        _warn_if_guessed(session, blk)
        if opening.copy_on_read:
            _enable_copy_on_read(blk)
    except BaseException:
        await blk.close()
        raise
    if not flags.cache_writeback:
        blk.set_enable_write_cache(False)
    return blk


def _options(opening: Opening) -> dict[str, Any]:
    flat = flatten(opening.options)
    plain_path = opening.filename is not None and split_protocol(opening.filename) in (None, "file")
    if opening.aio is not None and (plain_path or _stands_on_file(flat)):
        flat.setdefault("aio" if flat.get("driver") in ("file", "host_device") else "file.aio", opening.aio)
    return nest(flat)


def _stands_on_file(flat: Mapping[str, Any]) -> bool:
    return "file.filename" in flat and flat.get("file.driver", "file") in ("file", "host_device")


def _warn_if_guessed(session: Session, blk: BlockBackend) -> None:
    node = blk.bs
    if node is not None and node.probed and node.driver_class.name == "raw" and not node.read_only:
        session.output.report(_RAW_WARNING.format(node.filename))


def _enable_copy_on_read(blk: BlockBackend) -> None:
    node = blk.bs
    assert node is not None
    if node.read_only:
        raise OptionError("Can't use copy-on-read on read-only device")
    node.copy_on_read += 1
    node.path.refresh_lanes()
