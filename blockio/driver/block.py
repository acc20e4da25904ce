"""The base of all drivers (QEMU's BlockDriver), and the values that its methods take and give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from blockio.errors import UnsupportedFeature
from blockio.types import (
    BlockInfo,
    BlockLimits,
    BlockSizes,
    BlockStatus,
    Capability,
    Geometry,
    OpenFlags,
    Perm,
    PreallocMode,
    RequestFlags,
    Role,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.aio.flight import Flight
    from blockio.aio.hauling import Haul, Part, Put
    from blockio.buffers import IoVector
    from blockio.driver.child import Child
    from blockio.driver.host import ChildOpener, DriverHost, ImageStream, Measurement, MeasureSource, StreamRun
    from blockio.driver.inspection import HeaderReport, InspectSource
    from blockio.driver.snapshots import SnapshotInfo
    from blockio.types import Limits

__all__ = [
    "BlockDriver",
    "Capabilities",
    "CheckFix",
    "CheckResult",
    "DriverKind",
    "NoOptions",
    "ReopenState",
    "default_child_perm",
]


class DriverKind(Enum):
    """Which of the three kinds a driver is."""

    PROTOCOL = "protocol"
    FORMAT = "format"
    FILTER = "filter"


class Capabilities(msgspec.Struct, frozen=True):
    """What the driver does by itself. EMULATED asks the framework to do it; NONE refuses with ENOTSUP."""

    write_zeroes: Capability = Capability.EMULATED
    discard: Capability = Capability.NONE
    fua: Capability = Capability.EMULATED
    resize: Capability = Capability.NONE
    write_compressed: Capability = Capability.NONE
    copy_range: Capability = Capability.NONE
    backing: bool = False
    """Whether images of this format can have a COW child."""
    read_flags: RequestFlags = RequestFlags.NONE
    """The flags ``co_preadv`` understands (PREFETCH: store what is read elsewhere; the vector may have no memory)."""
    zero_flags: RequestFlags = RequestFlags.NONE
    """The flags ``co_pwrite_zeroes`` understands (MAY_UNMAP, NO_FALLBACK, FUA); others are dropped or emulated."""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a driver that has none of its own."""


class ReopenState(msgspec.Struct):
    """A prepared reopen: what the node will be, and what the driver noted for commit or abort."""

    flags: OpenFlags
    options: Any
    notes: dict[str, Any] = msgspec.field(default_factory=dict)


class CheckFix(Enum):
    """What a check may repair."""

    NONE = "none"
    LEAKS = "leaks"
    ALL = "all"


class CheckResult(msgspec.Struct):
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


class BlockDriver(ABC):
    """The base of every driver; ``blockio.driver.base`` tells its three kinds.

    Invariant: between ``open`` and ``close`` the driver's ``length`` is the node's length in bytes.
    """

    name: ClassVar[str]
    """The format or protocol name users write: ``driver=NAME``."""
    kind: ClassVar[DriverKind]
    protocols: ClassVar[tuple[str, ...]] = ()
    """The prefixes of file names that mean this protocol (``("nbd",)`` for ``nbd:…``)."""
    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    CreateOptions: ClassVar[type[msgspec.Struct] | None] = None
    AmendOptions: ClassVar[type[msgspec.Struct] | None] = None
    """What ``co_amend`` can change of an image; None: nothing."""
    capabilities: Capabilities = Capabilities()
    strong_options: ClassVar[frozenset[str] | None] = None
    """Those of ``Options`` that change which data the node shows, beside ``filename``; None: all of them.

    A node that was given one cannot be opened again by its file name alone, so it is named by a ``json:`` name.
    """

    stores_bitmaps: ClassVar[bool] = False
    """Whether images hold dirty bitmaps: the driver loads those that its image has and stores persistent ones."""

    reopen_options: ClassVar[frozenset[str]] = frozenset()
    """Those of ``Options`` that a reopen may change: ``reopen_prepare`` finds them in ``ReopenState.options``."""

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

    @classmethod
    def join_filename(cls, options: Mapping[str, Any], children: Mapping[str, str]) -> str | None:
        """A filter's file name, if it has one, given its *options* and the file names of its *children*."""
        return None

    @classmethod
    def join_options(cls, old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        """What a reopen with *new* options makes of the *old* ones, both by dotted names: what is not said stays."""
        return {**old, **new}

    @classmethod
    async def co_inspect(cls, source: InspectSource, trust: Limits) -> HeaderReport:
        """What *source*, which looks like an image of this driver, says of itself; nothing of it is believed.

        Never raises for what the bytes are: that is a ``Finding``. It reads little, whatever they are.
        """
        # most processes inspect nothing
        from blockio.driver.inspection import HeaderReport

        return HeaderReport()

    @classmethod
    async def co_measure(cls, options: Any, source: MeasureSource | None) -> Measurement:
        """How large a new image of *options* (a ``CreateOptions``) gets, empty or with what *source* holds."""
        raise UnsupportedFeature(f"Block driver '{cls.name}' does not support size measurement")

    @classmethod
    def stream(cls, options: Any, length: int, runs: Sequence[StreamRun]) -> ImageStream:
        """A new image of *options* (a ``CreateOptions``), *length* bytes long, that holds *runs*, which are in order.

        OptionError, LimitExceeded, UnsupportedFeature for what cannot be laid out before it is written.
        """
        raise UnsupportedFeature(f"Format driver '{cls.name}' cannot be written to a pipe")

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

    async def reopen_done(self) -> None:
        """A reopen that the driver had prepared is over, carried out or undone: what needs I/O may be done now.

        Called drained, with the permissions of the outcome. An error is reported and changes nothing else.
        """

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
        """How many bytes of storage this driver itself spends; None where that is for its children to say.

        UnsupportedFeature where nobody can tell.
        """
        return None

    def specific_info(self) -> dict[str, Any] | None:
        """The ``format-specific`` part of ``info``, in QEMU's words: ``{"type": …, "data": {…}}``."""
        return None

    def backing_reference(self) -> tuple[str, str | None] | None:
        """The backing file name and format as the image holds them, or None."""
        return None

    def supports_persistent_dirty_bitmap(self) -> bool:
        """Whether this image can hold bitmaps."""
        return self.stores_bitmaps

    # -- requests: slow lane

    @abstractmethod
    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """What the first bytes from *offset* hold. ``want_zero=False`` allows a cheaper answer about zeroes."""

    async def co_block_statuses(self, offset: int, nbytes: int) -> list[BlockStatus]:
        """As ``co_block_status``, several in a row where that costs no more; for whoever looks at the whole disk."""
        return [await self.co_block_status(offset, nbytes, want_zero=True)]

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

    @property
    def hauls(self) -> bool:
        """Of a protocol driver: whether ``co_haul_to`` can be expected to work, as it is open now."""
        return False

    async def co_haul_to(
        self,
        parts: Sequence[Part],
        target: BlockDriver,
        target_offset: int,
        nbytes: int,
        haul: Haul,
        phase: int,
        *,
        packed: int,
    ) -> list[Put]:
        """As ``co_copy_range_to``, but through the memory of a worker, without the zeroes that *haul* leaves out.

        *parts* (of this driver's storage), *phase* and *packed* as for ``blockio.aio.hauling.haul``; what was put
        where, in order.
        """
        raise UnsupportedFeature

    async def co_check(self, fix: CheckFix, progress: Callable[[int, int], None] | None = None) -> CheckResult:
        """Check the metadata; messages go through ``host``'s report. UnsupportedFeature where there is none."""
        raise UnsupportedFeature("This image format does not support checks")

    async def co_can_store_new_dirty_bitmap(self, name: str, granularity: int) -> None:
        """Raise what speaks against storing one more persistent bitmap like this in the image."""
        what = self.host.node_name
        raise UnsupportedFeature(f"Can't store persistent bitmaps to {what}: Operation not supported")

    async def co_remove_persistent_dirty_bitmap(self, name: str) -> None:
        """Take the bitmap of that name out of the image. Nothing to do where it holds none."""
        raise UnsupportedFeature(f"Can't remove persistent bitmaps from {self.host.node_name}: Operation not supported")

    async def co_ioctl(self, request: int, buf: Buffer | int) -> int:
        """A device's own request."""
        raise UnsupportedFeature

    async def co_save_vmstate(self, iov: IoVector, pos: int) -> None:
        """Keep *iov* at *pos* of the image's area for a machine's state. Left alone: the primary child is asked."""
        raise UnsupportedFeature

    async def co_load_vmstate(self, iov: IoVector, pos: int) -> None:
        """Fill *iov* from *pos* of that area."""
        raise UnsupportedFeature

    async def co_snapshot_list(self) -> tuple[SnapshotInfo, ...]:
        """The internal snapshots that the image holds, in its order."""
        raise UnsupportedFeature

    async def co_snapshot_create(self, snapshot: SnapshotInfo) -> SnapshotInfo:
        """Keep the disk (and the machine's state beside it) as it is now, under ``snapshot.name``.

        The image chooses ``id`` and knows ``disk_size``; the answer has them. Called with no request under way, as
        the next three are. Whatever is raised, nothing has changed. Left alone, the only child that stores this node's
        data is asked, as for all but loading.
        """
        raise UnsupportedFeature

    async def co_snapshot_goto(self, name: str) -> None:
        """Make the disk what the snapshot with that id, or else of that name, kept. What it was is lost."""
        raise UnsupportedFeature

    async def co_snapshot_delete(self, id: str | None, name: str | None) -> None:
        """Let go of the first snapshot with that *id* and *name*, of which one may be None."""
        raise UnsupportedFeature

    async def co_snapshot_rename(self, id: str | None, name: str | None, new_name: str) -> None:
        """Call the first snapshot with that *id* and *name* *new_name*."""
        raise UnsupportedFeature

    async def co_snapshot_load(self, id: str | None, name: str | None) -> None:
        """Show what that snapshot kept, without changing the image, which is open read-only, until it is closed."""
        raise UnsupportedFeature(
            f"Block format '{self.name}' used by device '' does not support temporarily loading internal snapshots"
        )

    async def co_make_empty(self) -> None:
        """Let go of everything this layer holds, so that the backing file shows. Called drained."""
        raise UnsupportedFeature(f"{self.name} does not support emptying of block device files")

    async def co_amend(
        self,
        options: Any,
        *,
        force: bool,
        resize: Callable[[int], Awaitable[None]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Make the image what *options* (an ``AmendOptions``) say. Called drained, on a writable node.

        *force* allows what may lose data. *resize* sets the node's length, with all that belongs to it. *progress* is
        told of steps done, and of how many, as far as that is known. At each await the image is whole and holds the
        same disk, so that a failure, a cancellation and a crash leave no more than a part undone.
        """
        raise UnsupportedFeature(f"Format driver '{self.name}' does not support option amendment")

    async def co_change_backing_file(self, name: str | None, format: str | None) -> None:
        """Let the image name *name*, of *format*, as its backing file; None: it has none. Called drained.

        What was written before is stable before that changes, and that when this returns; a crash leaves the old name
        or the new one. The node's children stay as they are.
        """
        raise UnsupportedFeature

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

    def try_descend(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool | Child:
        """As ``try_preadv``; or the backing child, where all of these bytes come from there.

        For formats: the framework goes on at that child, so that a long chain is a loop and not a stack of calls.
        """
        return self.try_preadv(offset, bufs, nbytes)

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Write *bufs* without suspending, or answer False having written nothing."""
        return False

    # -- requests: started by a plain call, ended by an engine

    def start_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Begin to fill *bufs*, or answer None having done nothing. The framework has checked the range.

        What must be done when it has ended (a guard given back) is a leg of the flight; see ``blockio.aio.flight``.
        """
        return None

    def start_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> Flight | None:
        """Begin to write *bufs* in place, or answer None."""
        return None


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
