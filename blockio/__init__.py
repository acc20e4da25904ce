"""blockio: an asyncio-native block layer.

>>> async with blockio.open("disk.qcow2", format="qcow2") as blk:
...     memory = bytearray(4096)
...     await blk.co_preadv(0, memory)

Everything public is listed in ``__all__`` and loaded when it is first used, so that ``import blockio`` is instant.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractAsyncContextManager
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

    from blockio import img
    from blockio.aio.context import AioContext, IOThread
    from blockio.backend import (
        AioRequest,
        BlockBackend,
        BlockDevOps,
        BlockIoError,
        DeviceTrayMoved,
        ErrorAction,
        ErrorReported,
        EventsDropped,
        EventStream,
        IoOperation,
        IoStatus,
        MachineState,
        OnError,
        RunState,
        activate_all,
        all_backends,
        all_events,
        by_name,
        drain_all,
        drained_all,
        inactivate_all,
        listen_to_all,
        named_backends,
        top_nodes,
    )
    from blockio.bitmaps.dirty import DirtyBitmap, DirtyBitmapInfo
    from blockio.buffers import IoVector, aligned_buffer, is_zero
    from blockio.driver.gate import (
        Allow,
        AllowAll,
        Decision,
        Deny,
        DenyAll,
        OpenGate,
        Reference,
        ReferenceKind,
        Replace,
    )
    from blockio.errors import (
        BlockError,
        CorruptImage,
        ImageError,
        ImageLocked,
        LimitExceeded,
        NoMedium,
        NotThisFormat,
        OpenDenied,
        OptionError,
        OutOfRange,
        PermissionConflict,
        ReadOnly,
        UnsupportedFeature,
    )
    from blockio.graph.drain import outside_requests
    from blockio.graph.events import ImageCorrupted
    from blockio.types import (
        BlockInfo,
        BlockLimits,
        BlockStatus,
        DetectZeroes,
        Limits,
        OpenFlags,
        Perm,
        PreallocMode,
        RequestFlags,
        Role,
        StatusFlags,
    )

_HOME = {
    "blockio.aio.context": ("AioContext", "IOThread"),
    "blockio.backend": (
        "AioRequest",
        "BlockBackend",
        "BlockDevOps",
        "BlockIoError",
        "DeviceTrayMoved",
        "ErrorAction",
        "ErrorReported",
        "EventStream",
        "EventsDropped",
        "IoOperation",
        "IoStatus",
        "MachineState",
        "OnError",
        "RunState",
        "activate_all",
        "all_backends",
        "all_events",
        "by_name",
        "drain_all",
        "drained_all",
        "inactivate_all",
        "listen_to_all",
        "named_backends",
        "top_nodes",
    ),
    "blockio.bitmaps.dirty": ("DirtyBitmap", "DirtyBitmapInfo"),
    "blockio.buffers": ("IoVector", "aligned_buffer", "is_zero"),
    "blockio.driver.gate": (
        "Allow",
        "AllowAll",
        "Decision",
        "Deny",
        "DenyAll",
        "OpenGate",
        "Reference",
        "ReferenceKind",
        "Replace",
    ),
    "blockio.errors": (
        "BlockError",
        "CorruptImage",
        "ImageError",
        "ImageLocked",
        "LimitExceeded",
        "NoMedium",
        "NotThisFormat",
        "OpenDenied",
        "OptionError",
        "OutOfRange",
        "PermissionConflict",
        "ReadOnly",
        "UnsupportedFeature",
    ),
    "blockio.graph.drain": ("outside_requests",),
    "blockio.graph.events": ("ImageCorrupted",),
    "blockio.types": (
        "BlockInfo",
        "BlockLimits",
        "BlockStatus",
        "DetectZeroes",
        "Limits",
        "OpenFlags",
        "Perm",
        "PreallocMode",
        "RequestFlags",
        "Role",
        "StatusFlags",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AioContext",
    "AioRequest",
    "Allow",
    "AllowAll",
    "BlockBackend",
    "BlockDevOps",
    "BlockError",
    "BlockInfo",
    "BlockIoError",
    "BlockLimits",
    "BlockStatus",
    "CorruptImage",
    "Decision",
    "Deny",
    "DenyAll",
    "DetectZeroes",
    "DeviceTrayMoved",
    "DirtyBitmap",
    "DirtyBitmapInfo",
    "ErrorAction",
    "ErrorReported",
    "EventStream",
    "EventsDropped",
    "IOThread",
    "ImageCorrupted",
    "ImageError",
    "ImageLocked",
    "IoOperation",
    "IoStatus",
    "IoVector",
    "LimitExceeded",
    "Limits",
    "MachineState",
    "NoMedium",
    "NotThisFormat",
    "OnError",
    "OpenDenied",
    "OpenFlags",
    "OpenGate",
    "OptionError",
    "OutOfRange",
    "Perm",
    "PermissionConflict",
    "PreallocMode",
    "ReadOnly",
    "Reference",
    "ReferenceKind",
    "Replace",
    "RequestFlags",
    "Role",
    "RunState",
    "StatusFlags",
    "UnsupportedFeature",
    "activate_all",
    "aligned_buffer",
    "all_backends",
    "all_events",
    "by_name",
    "drain_all",
    "drained_all",
    "img",
    "inactivate_all",
    "is_zero",
    "listen_to_all",
    "named_backends",
    "open",
    "outside_requests",
    "top_nodes",
]


def __getattr__(name: str) -> Any:
    if name == "img":
        return import_module("blockio.img")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'blockio' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Opening(AbstractAsyncContextManager["BlockBackend"]):
    """What ``open`` returns: ``await`` it for a backend to close yourself, or ``async with`` it."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._blk: BlockBackend | None = None

    def __await__(self) -> Generator[Any, None, BlockBackend]:
        return self._open().__await__()

    async def _open(self) -> BlockBackend:
        # The backend room is needed from here on, and only from here on.
        from blockio.backend import BlockBackend

        return await BlockBackend.new_open(**self._arguments)

    if not TYPE_CHECKING:  # type checkers find such a mistake themselves

        def __getattr__(self, name):
            raise AttributeError(f"no {name!r} before anything is open: await blockio.open(…), or async with it")

    async def __aenter__(self) -> BlockBackend:
        if self._blk is not None:
            raise RuntimeError("one blockio.open() opens once; call it again")
        self._blk = await self._open()
        return self._blk

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        blk, self._blk = self._blk, None
        if blk is not None:
            await blk.__aexit__(kind, error, tb)


def open(
    filename: str | None = None,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    read_only: bool = False,
    flags: OpenFlags | None = None,
    gate: OpenGate | None = None,
    trust: Limits | None = None,
    resize: bool = False,
    node_name: str | None = None,
    context: AioContext | None = None,
) -> _Opening:
    """Open a disk image: ``async with blockio.open(…) as blk`` or ``blk = await blockio.open(…)``.

    *filename* is a path, a protocol name or a ``json:`` name; *options* are nested options as users of QEMU know them;
    either or both. *format* names the driver; without it the bytes would have to tell, which *gate* must allow. What
    the image refers to (a backing file, a data file) goes through *gate* too, which denies by default: pass
    ``AllowAll()`` for images whose maker you trust. *flags* say how in full; *read_only* alone is enough for most.
    Sizes are bytes. Raises a ``BlockError`` with the message users of qemu-img know; nothing stays open then.
    """
    from blockio.types import OpenFlags as Flags  # types may be the only room a caller needs

    flags = flags or Flags()
    if read_only:
        flags = flags.with_(read_only=True)
    if format is not None:
        options = {**(options or {}), "driver": format}
    return _Opening(
        {
            "filename": filename,
            "options": options,
            "flags": flags,
            "gate": gate,
            "trust": trust,
            "resize": resize,
            "node_name": node_name,
            "context": context,
        }
    )
