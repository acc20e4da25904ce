"""blkdebug: a filter that makes requests fail, or wait, when something particular happens (QEMU's blkdebug).

What happens are debug events (``blockio.driver.debug``): of the format above that keeps its image here, and of this
node's own requests. Rules (``blkdebug_rules``) say which event makes which requests fail with which errno; a
breakpoint suspends the request that meets its event until somebody resumes it. A suspended request is in flight: a
drain waits for it. A cancelled one goes away.

``align``, ``max-transfer`` and the like make the node a device with these limits.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.base import Capabilities, ChildOpener, DriverHost, FilterDriver
from blockio.driver.debug import EVENTS, DebugDriver, DebugEvent
from blockio.driver.options import Size
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.types import BlockLimits, BlockStatus, Perm, RequestFlags, Role
from blockio_drivers.filters.blkdebug_rules import Breakpoint, IoType, Rules, parse_config, rules_of_options

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.buffers import IoVector

__all__ = ["BlkdebugDriver", "BlkdebugOptions"]

_INT_MAX: Final = (1 << 31) - 1
_MAX_CONFIG: Final = 1 << 20
_PERMS: Final = {
    "consistent-read": Perm.CONSISTENT_READ,
    "write": Perm.WRITE,
    "write-unchanged": Perm.WRITE_UNCHANGED,
    "resize": Perm.RESIZE,
}


class BlkdebugOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Sizes in bytes, 0 for no limit of its own.

    ``config``: a file of rules. ``inject-error`` and ``set-state``: rules as lists of mappings, or one mapping.
    ``take-child-perms``, ``unshare-child-perms``: what the node holds on its image beyond what its users need, and does
    not share although they would. ``x-image``: the image's name, as ``blkdebug:CONFIG:IMAGE`` has it.
    """

    config: str | None = None
    inject_error: Any = None
    set_state: Any = None
    align: Size = 0
    max_transfer: Size = 0
    opt_write_zero: Size = 0
    max_write_zero: Size = 0
    opt_discard: Size = 0
    max_discard: Size = 0
    take_child_perms: Any = None
    unshare_child_perms: Any = None
    x_image: str | None = None


class _Suspended:
    """A request at a breakpoint."""

    __slots__ = ("resumed", "tag")

    def __init__(self, tag: str) -> None:
        self.tag = tag
        self.resumed: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class BlkdebugDriver(DebugDriver, FilterDriver):
    """Fails and suspends requests by rules.

    Invariant: ``_suspended`` is what waits at breakpoints now and has not been resumed, the latest last.
    """

    name = "blkdebug"
    protocols = ("blkdebug",)
    Options = BlkdebugOptions
    strong_options = frozenset(("config", "inject-error", "set-state"))
    capabilities = Capabilities()

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._rules = Rules()
        self._limits = BlockLimits()
        self._taken = self._unshared = Perm.NONE
        self._suspended: list[_Suspended] = []
        self._arrived = asyncio.Event()

    # -- names

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """``blkdebug:CONFIG:IMAGE``, in which CONFIG may be empty; without the prefix it is the image's name."""
        if not filename.startswith("blkdebug:"):
            return {"x-image": filename}
        config, colon, image = filename.removeprefix("blkdebug:").partition(":")
        if not colon:
            raise OptionError("blkdebug requires both config file and image path")
        return {"config": config, "x-image": image} if config else {"x-image": image}

    @classmethod
    def join_filename(cls, options: Mapping[str, Any], children: Mapping[str, str]) -> str | None:
        """The inverse of ``parse_filename``, where nothing but a file of rules was given."""
        if options.keys() - {"config", "x-image"}:
            return None
        return f"blkdebug:{options.get('config') or ''}:{children['image']}"

    # -- life

    async def open(self, options: BlkdebugOptions, opener: ChildOpener) -> None:
        if options.config is not None:
            for rule in parse_config(await _text_of(options.config)):
                self._rules.add(rule)
        for section, given in (("inject-error", options.inject_error), ("set-state", options.set_state)):
            for rule in () if given is None else rules_of_options(section, given):
                self._rules.add(rule)
        self._taken = _perms("take-child-perms", options.take_child_perms)
        self._unshared = _perms("unshare-child-perms", options.unshare_child_perms)
        image = await opener.child("image", Role.FILTERED | Role.PRIMARY, filename=options.x_image)
        if image is None:
            raise OptionError('A block device must be specified for "image"')
        self.filters(image)
        self._limits = _limits_of(options, image.limits.request_alignment)
        self._rules.happens("none")

    def child_perm(self, child: str, role: Role, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        perm, shared = super().child_perm(child, role, perm, shared)
        return perm | self._taken, shared & ~self._unshared

    def limits(self) -> BlockLimits:
        return self._limits

    # -- DebugDriver

    async def co_get_allocated_file_size(self) -> int | None:
        raise UnsupportedFeature  # QEMU takes it for a protocol, which spends nothing that it knew of

    async def co_debug_event(self, event: DebugEvent) -> None:
        tags = self._rules.happens(event)
        if not tags:
            return
        mine = [_Suspended(tag) for tag in tags]
        self._suspended += mine
        for tag in tags:
            self.host.report(f"blkdebug: Suspended request '{tag}'")
        self._arrived.set()
        try:
            for suspended in mine:
                await suspended.resumed
        finally:
            for suspended in mine:  # those that a cancelled request still waited for
                if suspended in self._suspended:
                    self._suspended.remove(suspended)

    def debug_breakpoint(self, event: str, tag: str) -> None:
        if event not in EVENTS:
            raise BlockError(errno=errno.ENOENT)
        self._rules.add(Breakpoint(event, tag))

    def debug_remove_breakpoint(self, tag: str) -> None:
        found = self._rules.remove_breakpoints(tag)
        while self._resume_one(tag):
            continue
        if not found:
            raise BlockError(errno=errno.ENOENT)

    def debug_resume(self, tag: str) -> None:
        if not self._resume_one(tag):
            raise BlockError(errno=errno.ENOENT)

    def _resume_one(self, tag: str) -> bool:
        found = next((one for one in reversed(self._suspended) if one.tag == tag), None)
        if found is None:
            return False
        self._suspended.remove(found)
        self.host.report(f"blkdebug: Resuming request '{tag}'")
        if not found.resumed.done():  # else its request was cancelled a moment ago
            found.resumed.set_result(None)
        return True

    def debug_is_suspended(self, tag: str) -> bool:
        return any(one.tag == tag for one in self._suspended)

    async def co_debug_wait(self, tag: str) -> None:
        while not self.debug_is_suspended(tag):
            self._arrived.clear()
            await self._arrived.wait()

    # -- requests

    async def _check(self, iotype: IoType, offset: int = 0, nbytes: int = 0) -> None:
        """Fail the request if a rule says so."""
        rule = self._rules.verdict(iotype, offset, nbytes)
        if rule is not None:
            if not rule.immediately:
                await asyncio.sleep(0)
            raise BlockError(errno=rule.errno)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._check("read", offset, iov.nbytes)
        await self.file.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self._check("write", offset, iov.nbytes)
        await self.file.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        if nbytes < max(self._limits.request_alignment, self._limits.pwrite_zeroes_alignment):
            raise UnsupportedFeature  # a device that zeroes in units: the rest is written
        await self._check("write-zeroes", offset, nbytes)
        await self.file.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        if nbytes < max(self._limits.request_alignment, self._limits.pdiscard_alignment):
            raise UnsupportedFeature
        await self._check("discard", offset, nbytes)
        await self.file.co_pdiscard(offset, nbytes)

    async def co_flush_to_disk(self) -> None:
        await self._check("flush")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        await self._check("block-status", offset, nbytes)
        return await self.file.co_block_status(offset, nbytes, want_zero=want_zero)

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False  # a request that must be able to fail or to wait takes the slow lane

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return False


async def _text_of(name: str) -> str:
    import aiofiles  # only a configuration file needs it

    try:
        async with aiofiles.open(name, encoding="utf-8", errors="surrogateescape") as file:
            text = await file.read(_MAX_CONFIG + 1)
    except (OSError, ValueError) as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        raise BlockError(f"Could not read blkdebug config file: {os.strerror(number)}", number) from error
    if len(text) > _MAX_CONFIG:
        raise OptionError(f"The blkdebug config file is longer than {_MAX_CONFIG} characters")
    return text


def _perms(option: str, given: Any) -> Perm:
    if given is None:
        return Perm.NONE
    if not isinstance(given, (list, tuple)):
        raise OptionError(f"Block protocol 'blkdebug' doesn't support the option '{option}'")
    perms = Perm.NONE
    for name in given:
        if name not in _PERMS:
            raise OptionError(f"Parameter 'null' does not accept value '{name}'")  # QEMU has no name for it either
        perms |= _PERMS[name]
    return perms


def _limits_of(options: BlkdebugOptions, below: int) -> BlockLimits:
    """The limits that *options* give the node, of whole blocks of the image (*below* bytes each) and of its own."""

    def constrained(name: str, value: int, unit: int) -> int:
        if value and (value >= _INT_MAX or value % unit):
            raise OptionError(f"Cannot meet constraints with {name} {value}")
        return value

    align = options.align
    if align & (align - 1):
        raise OptionError(f"Cannot meet constraints with align {align}")
    constrained("align", align, 1)
    block = max(align, below)
    zero_unit = constrained("opt-write-zero", options.opt_write_zero, block)
    discard_unit = constrained("opt-discard", options.opt_discard, block)
    return BlockLimits(
        request_alignment=align or 1,
        max_transfer=constrained("max-transfer", options.max_transfer, block),
        pwrite_zeroes_alignment=zero_unit,
        max_pwrite_zeroes=constrained("max-write-zero", options.max_write_zero, max(zero_unit, block)),
        pdiscard_alignment=discard_unit,
        max_pdiscard=constrained("max-discard", options.max_discard, max(discard_unit, block)),
    )
