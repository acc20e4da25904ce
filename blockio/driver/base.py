"""What a driver author implements.

A driver is a class found through the entry-point group ``blockio.drivers``. There are three kinds:

* a **protocol** moves bytes itself (``file``): it implements ``co_preadv`` and ``co_pwritev``;
* a **format** answers *where are these bytes* (``raw``, ``qcow2``): it implements ``co_map`` and
  ``co_allocate``, and the framework moves the data;
* a **filter** passes everything to its ``file`` child and overrides what it changes.

Before any method here is called the framework has checked range and alignment and emulated what the driver does
not declare, so a driver never checks again (the contract wall, ``blockio.io.wall``). Every coroutine may be
cancelled at any await: it then leaves its metadata whole and its locks free.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import msgspec

from blockio.errors import UnsupportedFeature
from blockio.types import (
    BlockInfo,
    BlockLimits,
    BlockSizes,
    BlockStatus,
    Capability,
    Extent,
    ExtentKind,
    Geometry,
    OpenFlags,
    Perm,
    PreallocMode,
    RequestFlags,
    Role,
    StatusFlags,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.buffers import IoVector
    from blockio.driver.child import Child
    from blockio.types import Limits

__all__ = [
    "Allocation",
    "BlockDriver",
    "Capabilities",
    "CheckFix",
    "CheckResult",
    "ChildOpener",
    "CreateTarget",
    "DriverHost",
    "DriverKind",
    "FilterDriver",
    "FormatDriver",
    "NoOptions",
    "ProtocolDriver",
    "ReopenState",
    "default_child_perm",
]


class DriverKind(Enum):
    """Which of the three kinds a driver is."""

    PROTOCOL = "protocol"
    FORMAT = "format"
    FILTER = "filter"


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the driver does by itself. EMULATED asks the framework to do it; NONE refuses with ENOTSUP."""

    write_zeroes: Capability = Capability.EMULATED
    discard: Capability = Capability.NONE
    fua: Capability = Capability.EMULATED
    resize: Capability = Capability.NONE
    write_compressed: Capability = Capability.NONE
    copy_range: Capability = Capability.NONE
    backing: bool = False
    """Whether images of this format can have a COW child."""
    zero_flags: RequestFlags = RequestFlags.NONE
    """The flags ``co_pwrite_zeroes`` understands (MAY_UNMAP, NO_FALLBACK, FUA); others are dropped or emulated."""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a driver that has none of its own."""


class DriverHost(Protocol):
    """The driver's own node, as far as the driver may know it."""

    @property
    def node_name(self) -> str:
        """The node's name in the graph."""

    @property
    def filename(self) -> str:
        """The name for messages."""

    @property
    def flags(self) -> OpenFlags:
        """How the node is opened, kept up to date by reopen."""

    @property
    def context(self) -> AioContext:
        """The loop and thread the node lives in."""

    @property
    def trust(self) -> Limits:
        """What the image may cost."""

    @property
    def probed(self) -> bool:
        """The format was guessed from the image's first bytes because nobody said it.

        A guest that owns a raw disk owns those bytes too. So a write to the first 512 bytes of a *probed* raw node
        must fail with EPERM where the new content would be taken for another format (``probe.guess_format`` says
        which), and the node's request alignment must be 512 so that such a write is seen whole.
        """

    def fall_back_read_only(self, message: str) -> None:
        """The driver found, while opening, that it cannot write.

        With ``auto_read_only`` the node becomes read-only; without it ReadOnly (EACCES) with *message* is raised.
        On a node that is read-only already nothing happens.
        """

    def length_changed(self) -> None:
        """The driver's ``length`` is a new one: tell the parents."""

    def media_changed(self, load: bool) -> None:
        """A medium was put into the device (*load*), or is gone: tell the parents."""

    def limits_changed(self) -> None:
        """The driver's ``limits()`` answers differently now."""

    def report(self, message: str) -> None:
        """One line for the person at the tool (``ERROR cluster 5 refcount=0 reference=1``, ``Repairing …``)."""

    def corrupted(self, message: str, *, offset: int = -1, size: int = -1, fatal: bool = True) -> None:
        """Report a corruption once as an event; *fatal* shuts the node: later I/O is NoMedium."""


class ChildOpener(Protocol):
    """How a driver gets its children while it opens. Children belong to the node and are closed with it."""

    async def child(self, name: str, role: Role, *, optional: bool = False) -> Child | None:
        """The child that the caller's options name (``file``, ``file.filename`` …).

        None where the options name none and *optional* is set, or where they say ``null``. OptionError where
        it is missing and not optional.
        """

    async def required(self, name: str, role: Role) -> Child:
        """As ``child``, for one that must be there."""

    async def implicit(self, name: str, role: Role, *, target: str, format: str | None, kind: str) -> Child | None:
        """The child that the *image* names; *kind* is a ``ReferenceKind`` value.

        The caller's own options for *name* win without asking the gate; else the reference goes through it.
        *target* is as the image holds it; it is resolved against the image's folder here.
        """


@dataclass(slots=True)
class ReopenState:
    """A prepared reopen: what the node will be, and what the driver noted for commit or abort."""

    flags: OpenFlags
    options: Any
    notes: dict[str, Any] = field(default_factory=dict)


class CheckFix(Enum):
    """What a check may repair."""

    NONE = "none"
    LEAKS = "leaks"
    ALL = "all"


@dataclass(slots=True)
class CheckResult:
    """QEMU's BdrvCheckResult: counts before (``corruptions``, ``leaks``) and what was mended."""

    check_errors: int = 0
    corruptions: int = 0
    leaks: int = 0
    corruptions_fixed: int = 0
    leaks_fixed: int = 0
    image_end_offset: int = 0
    total_clusters: int = 0
    allocated_clusters: int = 0
    fragmented_clusters: int = 0
    compressed_clusters: int = 0


class CreateTarget(Protocol):
    """What ``co_create`` writes onto: an empty file, and a way to open what was written through the graph."""

    @property
    def file(self) -> Child:
        """The new, empty protocol node with WRITE and RESIZE."""

    def open_image(self) -> AbstractAsyncContextManager[Child]:
        """Open the image just written with its own driver; the child holds WRITE and RESIZE on it."""


class Allocation(ABC):
    """Room for guest bytes ``offset .. offset+length``, seen by nobody until it is linked.

    The framework writes ``cow_head`` bytes of old content, the data and ``cow_tail`` bytes of old content as one
    request to ``child`` at ``host_offset - cow_head``, then awaits ``link``; if anything failed, ``abandon``.
    Exactly one of the two is called, shielded from cancellation. ``fresh`` says the host bytes around the data
    already read as zeroes, so that COW from nothing need not be written.
    """

    __slots__ = ("child", "cow_head", "cow_tail", "fresh", "host_offset", "length", "offset")

    def __init__(
        self,
        child: Child,
        offset: int,
        length: int,
        host_offset: int,
        *,
        cow_head: int = 0,
        cow_tail: int = 0,
        fresh: bool = False,
    ) -> None:
        self.child = child
        self.offset = offset
        self.length = length
        self.host_offset = host_offset
        self.cow_head = cow_head
        self.cow_tail = cow_tail
        self.fresh = fresh

    @abstractmethod
    async def link(self) -> None:
        """The data is written: make it the guest's."""

    @abstractmethod
    async def abandon(self) -> None:
        """The data is not (all) written: give the room back, leave the old content the guest's."""


class BlockDriver(ABC):
    """The base of every driver; see the module's docstring for its three kinds.

    Invariant: between ``open`` and ``close`` the driver's ``length`` is the node's length in bytes.
    """

    name: ClassVar[str]
    """The format or protocol name users write: ``driver=NAME``."""
    kind: ClassVar[DriverKind]
    protocols: ClassVar[tuple[str, ...]] = ()
    """The prefixes of file names that mean this protocol (``("nbd",)`` for ``nbd:…``)."""
    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    CreateOptions: ClassVar[type[msgspec.Struct] | None] = None
    capabilities: Capabilities = Capabilities()
    strong_options: ClassVar[frozenset[str] | None] = None
    """Those of ``Options`` that change which data the node shows, beside ``filename``; None: all of them.

    A node that was given one cannot be opened again by its file name alone, so it is named by a ``json:`` name.
    """

    sg: bool = False
    """Whether this is a SCSI generic device: commands instead of reads and writes (QEMU's ``bs->sg``)."""

    def __init__(self, host: DriverHost) -> None:
        self.host = host
        self.length = 0

    # -- probing and creation

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """0..100: how sure the driver is that *head* (the first 2048 bytes or fewer) begins one of its images."""
        return 0

    @classmethod
    def parse_filename(cls, filename: str) -> dict[str, Any]:
        """The options that a plain or prefixed *filename* stands for."""
        return {"filename": filename}

    # -- life

    @abstractmethod
    async def open(self, options: Any, opener: ChildOpener) -> None:
        """Open with validated *options* (an instance of ``Options``); children come from *opener*.

        When it raises or is cancelled, the framework calls nothing more on the driver but closes the children:
        whatever else the driver acquired it must have released.
        """

    async def close(self) -> None:
        """Write back, flush and release. Called drained, once; must release even when it raises."""

    async def reopen_prepare(self, state: ReopenState) -> None:
        """Make ready for ``state``; may raise, and then nothing may have changed. Called drained and flushed."""

    def reopen_commit(self, state: ReopenState) -> None:
        """Carry out a prepared reopen. Must not fail."""

    def reopen_abort(self, state: ReopenState) -> None:
        """Undo ``reopen_prepare``. Must not fail."""

    def detach_context(self) -> None:
        """The node is leaving its context (drained): let go of engines and timers."""

    def attach_context(self, context: AioContext) -> None:
        """The node has arrived in *context*."""

    async def inactivate(self) -> None:
        """Somebody else is going to write the image: write everything back, change nothing any more.

        Called drained and flushed, while the node is still active; ``invalidate_cache`` is called before anything else
        is asked of a driver that was inactivated, if the node was.
        """

    async def invalidate_cache(self) -> None:
        """The image is ours again: forget what is cached of it and read anew what is kept (``length`` included).

        Called drained; the children are awake. Where it raises, the node stays inactive and is only read.
        """

    # -- removable media (for protocols whose medium can go while the device stays)

    def is_inserted(self) -> bool:
        """Whether there is a medium in the device. Asked before each request: only look, never wait."""
        return True

    def eject(self, eject_flag: bool) -> None:
        """Open the device's tray, or close it. Errors are the driver's own affair."""

    def lock_medium(self, locked: bool) -> None:
        """Lock the device's medium in, or let it go."""

    # -- permissions (plain functions: the transaction over the graph has no await in it)

    def child_perm(self, child: str, role: Role, perm: Perm, shared: Perm) -> tuple[Perm, Perm]:
        """What the node needs of and shares on *child*, given what its own parents need and share."""
        return default_child_perm(role, perm, shared, self.host.flags)

    def check_perm(self, perm: Perm, shared: Perm) -> None:
        """Can the node's users have *perm* while sharing *shared*? Take what it takes (locks), or raise."""

    def set_perm(self, perm: Perm, shared: Perm) -> None:
        """The transaction succeeded: keep what ``check_perm`` took, let go of the rest."""

    def abort_perm(self) -> None:
        """The transaction failed: let go of what ``check_perm`` took."""

    # -- facts

    def limits(self) -> BlockLimits:
        """What one request may be; the framework merges in the children's."""
        return BlockLimits()

    def has_zero_init(self) -> bool:
        """Whether a new image reads as zeroes without anybody writing them."""
        return False

    async def co_getlength(self) -> int:
        """The length, asked anew where it can change behind our back. Must also update ``length``."""
        return self.length

    async def co_get_info(self) -> BlockInfo:
        """Cluster size and state."""
        return BlockInfo()

    async def co_get_allocated_file_size(self) -> int | None:
        """How many bytes of storage this driver itself spends; None where that is for its children to say."""
        return None

    def specific_info(self) -> dict[str, Any] | None:
        """The ``format-specific`` part of ``info``, in QEMU's words: ``{"type": …, "data": {…}}``."""
        return None

    def backing_reference(self) -> tuple[str, str | None] | None:
        """The backing file name and format as the image holds them, or None."""
        return None

    # -- requests: slow lane

    @abstractmethod
    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """What the first bytes from *offset* hold. ``want_zero=False`` allows a cheaper answer about zeroes."""

    @abstractmethod
    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """Fill *iov* from *offset*."""

    @abstractmethod
    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        """Write *iov* at *offset*. FUA is set only where ``capabilities.fua`` is NATIVE."""

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        """Make the range read as zeroes; UnsupportedFeature: the framework writes zeroes itself.

        The range crosses no ``pwrite_zeroes_alignment`` unless it consists of whole ones. Where a format is asked for a
        part of one, no other request is in the rest of it meanwhile: it may zero all of it if the rest reads as zeroes.
        """
        raise UnsupportedFeature

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """Let go of the range; UnsupportedFeature is taken as done."""
        raise UnsupportedFeature

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        """Write one cluster (or the disk's last part of one) compressed; empty *iov* ends the stream."""
        raise UnsupportedFeature

    async def co_flush_to_os(self) -> None:
        """Write back what the driver caches to its children. No barrier yet."""

    async def co_flush_to_disk(self) -> None:
        """Make what reached the driver durable. The framework flushes the children afterwards."""

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        """Set the length. ``exact=False``: longer is fine where the device cannot do otherwise."""
        raise UnsupportedFeature("Image format driver does not support resize")

    async def co_copy_range_to(self, offset: int, target: BlockDriver, target_offset: int, nbytes: int) -> None:
        """Copy into *target*'s storage, inside the storage; UnsupportedFeature where the two do not know each other.

        Called only on protocol drivers whose ``capabilities.copy_range`` is NATIVE, with another such driver, of this
        class or of another, as *target*: ``blockio.io.copy`` has found the way down through both sides' mappings.
        """
        raise UnsupportedFeature

    async def co_check(self, fix: CheckFix, progress: Callable[[int, int], None] | None = None) -> CheckResult:
        """Check the metadata; messages go through ``host``'s report. UnsupportedFeature where there is none."""
        raise UnsupportedFeature("This image format does not support checks")

    async def co_ioctl(self, request: int, buf: Buffer | int) -> int:
        """A device's own request."""
        raise UnsupportedFeature

    async def co_save_vmstate(self, iov: IoVector, pos: int) -> None:
        """Keep *iov* at *pos* of the image's area for a machine's state. Left alone: the primary child is asked."""
        raise UnsupportedFeature

    async def co_load_vmstate(self, iov: IoVector, pos: int) -> None:
        """Fill *iov* from *pos* of that area."""
        raise UnsupportedFeature

    async def co_make_empty(self) -> None:
        """Let go of everything this layer holds, so that the backing file shows. Called drained."""
        raise UnsupportedFeature(f"{self.name} does not support emptying of block device files")

    async def co_probe_blocksizes(self) -> BlockSizes:
        """A real device's own. Left alone: what a filter filters is asked."""
        raise UnsupportedFeature

    async def co_probe_geometry(self) -> Geometry:
        """As ``co_probe_blocksizes``."""
        raise UnsupportedFeature

    def register_buf(self, memory: memoryview) -> bool:
        """Requests will use *memory* often: make it known to whoever gains by that. False: nobody does.

        Each call is paired with ``unregister_buf``, in this context or in the one the node has moved to. Must not fail.
        """
        return False

    def unregister_buf(self, memory: memoryview) -> None:
        """*memory* will go; no request uses it."""

    def io_plug(self) -> None:
        """Requests may be held back until ``io_unplug``, so that they go together. Nests; nobody awaits in between."""

    def io_unplug(self) -> None:
        """Undo one ``io_plug``."""

    async def drain_begin(self) -> None:
        """Stop background work that would send requests; called when the node becomes quiesced."""

    async def drain_end(self) -> None:
        """Background work may go on."""

    # -- requests: fast lane

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Fill *bufs* without suspending, or answer False. The framework has checked the range."""
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Write *bufs* without suspending, or answer False having written nothing."""
        return False


class ProtocolDriver(BlockDriver):
    """A driver that moves bytes itself."""

    kind = DriverKind.PROTOCOL

    @classmethod
    async def co_create_file(cls, filename: str, options: Any) -> None:
        """Make a new file or device area by that name, as ``qemu-img create -f raw`` would."""
        raise UnsupportedFeature(f"Driver '{cls.name}' does not support image creation")

    @classmethod
    async def co_file_exists(cls, filename: str) -> bool:
        """Whether something has that name already. A driver that cannot tell says yes, and nothing is ever removed."""
        return True

    @classmethod
    async def co_delete_file(cls, filename: str) -> None:
        """Remove what ``co_create_file`` made, because making an image of it failed. UnsupportedFeature: it stays."""
        raise UnsupportedFeature(f"Driver '{cls.name}' does not support image deletion")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """Without better knowledge all is data, where it stands."""
        flags = StatusFlags.DATA | StatusFlags.ALLOCATED | StatusFlags.OFFSET_VALID
        return BlockStatus(flags, nbytes, offset, self.host.node_name)


class FormatDriver(BlockDriver):
    """A driver that answers where bytes are; the framework (``blockio.io.data``) moves them.

    ``file`` (and ``backing``, where there is one) are set by ``open``.
    """

    kind = DriverKind.FORMAT
    file: Child
    backing: Child | None = None

    @classmethod
    async def co_create(cls, target: CreateTarget, options: Any) -> None:
        """Write a new, empty image described by *options* (an instance of ``CreateOptions``)."""
        raise UnsupportedFeature(f"Format driver '{cls.name}' does not support image creation")

    # -- the mapping

    @abstractmethod
    async def co_map(self, offset: int, nbytes: int) -> Extent:
        """Where the first bytes from *offset* are; one extent, as long as the answer is the same."""

    def try_map(self, offset: int, nbytes: int) -> Extent | None:
        """The same from cached metadata only, or None."""
        return None

    @abstractmethod
    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        """Room for the first bytes of a write; covers at least one byte, at most *nbytes*.

        Waits for overlapping allocations that are not linked yet. The caller ends it with ``link`` or ``abandon``.
        """

    async def co_read_compressed(self, offset: int, iov: IoVector, extent: Extent) -> None:
        """Fill *iov* with guest bytes from *offset* on, which lie in the COMPRESSED *extent*."""
        raise UnsupportedFeature

    async def co_data_may_be_hole(self) -> bool:
        """Whether DATA extents may be holes of the file because only metadata was preallocated.

        Block status then looks into the file as well (QEMU's BDRV_BLOCK_RECURSE). Finding out may cost a look through
        the refcounts: a driver does that once, when it is first asked.
        """
        return False

    def map_begin(self) -> object:
        """A reader starts to rely on mappings: nothing it was told may be given to another use until map_end.

        Between the two calls host clusters may be freed but not reused. Cheap: called for every slow read.
        """
        return None

    def map_end(self, token: object) -> None:
        """The reader that got *token* is done."""

    # -- what the framework does with the mapping; a format overrides these only with a reason written down

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        raise AssertionError("blockio.io.data reads formats through their mapping")

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        raise AssertionError("blockio.io.data writes formats through their allocations")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        raise AssertionError("blockio.io.status derives this from the mapping")

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        extent = self.try_map(offset, nbytes)
        if extent is None or extent.kind is not ExtentKind.DATA or extent.length < nbytes:
            return False
        child = extent.child
        return child is not None and child.try_preadv(extent.host_offset, bufs, nbytes)


class FilterDriver(BlockDriver):
    """A driver that forwards to its ``file`` child; override what the filter is for."""

    kind = DriverKind.FILTER
    file: Child

    async def open(self, options: Any, opener: ChildOpener) -> None:
        self.file = await opener.required("file", Role.FILTERED | Role.PRIMARY)
        self.length = self.file.length
        own = self.capabilities
        self.capabilities = Capabilities(
            write_zeroes=Capability.NATIVE,
            discard=Capability.NATIVE,
            fua=Capability.NATIVE,
            resize=Capability.NATIVE,
            write_compressed=own.write_compressed,
            copy_range=Capability.NONE,
            zero_flags=RequestFlags.MAY_UNMAP | RequestFlags.NO_FALLBACK | RequestFlags.FUA,
        )

    def has_zero_init(self) -> bool:
        return self.file.has_zero_init()

    async def co_getlength(self) -> int:
        self.length = await self.file.co_getlength()
        return self.length

    async def co_get_info(self) -> BlockInfo:
        return await self.file.co_get_info()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        return await self.file.co_block_status(offset, nbytes, want_zero=want_zero)

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await self.file.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int) -> None:
        await self.file.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        await self.file.co_pdiscard(offset, nbytes)

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        await self.file.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)
        self.length = self.file.length

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return self.file.try_preadv(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        return self.file.try_pwritev(offset, bufs, nbytes)


def default_child_perm(role: Role, perm: Perm, shared: Perm, flags: OpenFlags) -> tuple[Perm, Perm]:
    """QEMU's bdrv_default_perms: what a node asks of a child in *role* for its own parents' wishes.

    A filter passes both through. A COW child is only read, and lets others do what cannot change what is read.
    A format's storage must be consistent, may grow, and is nobody else's to write.
    """
    if role & Role.FILTERED:
        return perm, shared
    if role & Role.COW:
        wanted = perm & Perm.CONSISTENT_READ
        allowed = Perm.CONSISTENT_READ | Perm.WRITE_UNCHANGED
        if shared & Perm.WRITE:
            allowed |= Perm.WRITE | Perm.RESIZE
        if flags.inactive:
            allowed |= Perm.WRITE | Perm.RESIZE
        return wanted, allowed
    wanted, allowed = perm, shared
    if role & Role.METADATA:
        if not (flags.read_only or flags.inactive):
            wanted |= Perm.WRITE | Perm.RESIZE
        if not flags.no_io:
            wanted |= Perm.CONSISTENT_READ
        allowed &= ~(Perm.WRITE | Perm.RESIZE)
    if role & Role.DATA:
        allowed &= ~Perm.RESIZE
        if perm & Perm.WRITE_UNCHANGED:
            wanted |= Perm.WRITE
        if perm & Perm.WRITE:
            wanted |= Perm.RESIZE
    if flags.inactive:
        allowed |= Perm.WRITE | Perm.RESIZE
    return wanted, allowed
