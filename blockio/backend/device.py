"""The device model above a backend: ``blk.device``.

Stands on the system *device-attach-devops* of the reference document. A device holds a reference on its backend, is
told of what happens below, and is asked about its tray (``medium.py``).
"""

from __future__ import annotations

import asyncio
import errno
from typing import TYPE_CHECKING, Final

from blockio.aio.context import finish
from blockio.backend.iostatus import IoStatusKeeping
from blockio.backend.life import Life
from blockio.backend.names import all_backends
from blockio.backend.run_state import MachineState
from blockio.errors import BlockError
from blockio.types import Perm

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.backend.backend import BlockBackend
    from blockio.graph.edge import Edge

__all__ = ["GUEST_BLOCK_SIZE", "AttachedDevice", "BlockDevOps", "DeviceAttachment"]

GUEST_BLOCK_SIZE: Final = 512
"""Bytes that a guest may expect to be written as one, until its device says otherwise."""


class BlockDevOps:
    """What a device model does for its backend: derive from it and override what the device has.

    Not overriding is saying something: a device without ``change_media`` has no removable media, one without
    ``is_tray_open`` has no tray. All of it is called in the backend's thread and must not wait.
    """

    def change_media(self, load: bool) -> None:
        """The medium is there now (*load*), or gone. A BlockError refuses a load; nothing refuses that one goes."""

    def eject_request(self, force: bool) -> None:
        """Somebody wants the medium back; with *force* it is about to be taken whatever the guest does."""

    def is_tray_open(self) -> bool:
        """Whether the tray is open. Asked before every request: there is no medium while it is."""
        return False

    def is_medium_locked(self) -> bool:
        """Whether the guest has locked the medium in."""
        return False

    def resize(self) -> None:
        """The disk's length is a new one (``blk.getlength()``)."""

    def drained_begin(self) -> None:
        """Send no more requests; those sent nevertheless park. Called once, however many sections nest."""

    def drained_end(self) -> None:
        """Send again; what parked goes on right after."""


class AttachedDevice:
    """``blk.device``: who is above a backend, and what it can do.

    Invariant: ``ops`` is None where no device set any; ``removable`` and ``tray`` follow from them.
    """

    __slots__ = ("guest_block_size", "locks", "model", "ops", "removable", "tray")

    def __init__(self) -> None:
        """None attached."""
        self.model: object | None = None
        """The device model, whatever it is; ``id`` and ``qom_path`` name it, where it has them."""
        self.guest_block_size = GUEST_BLOCK_SIZE
        """Bytes the guest expects to be written as one."""
        self.set_ops(None)

    def set_ops(self, ops: BlockDevOps | None) -> None:
        """See ``blk.set_dev_ops``."""
        self.ops = ops
        cls = BlockDevOps if ops is None else type(ops)
        self.removable = cls.change_media is not BlockDevOps.change_media
        self.tray = cls.is_tray_open is not BlockDevOps.is_tray_open
        self.locks = cls.is_medium_locked is not BlockDevOps.is_medium_locked

    @property
    def id(self) -> str:
        """The device's ``id``, else its ``qom_path``, else ``""``."""
        return getattr(self.model, "id", None) or getattr(self.model, "qom_path", None) or ""


class DeviceAttachment(Life, IoStatusKeeping):
    """``attach_dev`` to ``set_guest_block_size``.

    Invariant: while a device is attached it holds one reference.
    """

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """No device."""
        super().__init__(perm, shared, context)
        self.device = AttachedDevice()

    def attach_dev(self, dev: object) -> None:
        """*dev* is this backend's device model now; it holds a reference until ``detach_dev``.

        BlockError (EBUSY) where one is attached. While the machine is still arriving, what permissions the device sets
        is only noted, and taken when the image is activated.
        """
        self._must_be_home("attach_dev", "call it through blk.context.schedule_bh")
        if dev is None:
            raise TypeError("a device model is not None; detach_dev() takes one away")
        if self.device.model is not None:
            raise BlockError(errno=errno.EBUSY)
        self.ref()
        if self._run_state.check(MachineState.INMIGRATE):
            self._disable_perm = True
        self.device.model = dev
        self.iostatus_reset()

    async def detach_dev(self, dev: object) -> None:
        """*dev* is gone: its operations, permissions and reference too, which may be the last one.

        Cancelled while that waits for requests in flight: it goes on to its end first.

        RuntimeError where *dev* is not the device attached, or its reference is the last one of a backend that cannot
        be closed yet; see ``unref``.
        """
        self._must_be_home("detach_dev", "await blk.context.run(blk.detach_dev(dev))")
        if self.device.model is not dev or dev is None:
            raise RuntimeError(
                f"{dev!r} is not attached to {self._describe()}; get_attached_dev() says that {self.device.model!r} is"
            )
        if self._refcnt == 1:
            self._refuse_inside_request()
            self._refuse_last_unref()
        self.device.model = None
        self.device.set_ops(None)
        self.device.guest_block_size = GUEST_BLOCK_SIZE
        self.set_perm(Perm.NONE, Perm.ALL)
        # Nobody but us knows of this reference: cancelled or not, it is given back.
        await finish(asyncio.ensure_future(self.unref()))

    def get_attached_dev(self) -> object | None:
        """The device model attached, or None."""
        return self.device.model

    def get_attached_dev_id(self) -> str:
        """The attached device's ``id``, else its ``qom_path``, else ``""``."""
        return self.device.id

    @staticmethod
    def by_dev(dev: object) -> BlockBackend | None:
        """The backend that *dev* is attached to, nameless ones included, or None. TypeError for None."""
        if dev is None:
            raise TypeError("None is no device model")
        return next((blk for blk in all_backends() if blk.device.model is dev), None)

    def set_dev_ops(self, ops: BlockDevOps | None) -> None:
        """What the device does from now on; one that comes while the backend is drained is told so at once."""
        self._must_be_home("set_dev_ops", "call it through blk.context.schedule_bh")
        self.device.set_ops(ops)
        self._bind_lanes()
        if self._quiesce and ops is not None:
            ops.drained_begin()

    def set_guest_block_size(self, align: int) -> None:
        """The guest expects *align* bytes to be written as one. ValueError for none or fewer."""
        if align < 1:
            raise ValueError(f"a block of {align} bytes")
        self.device.guest_block_size = align

    def parent_desc(self) -> str:
        """The backend's name, else its device's id, else ``a block device`` (``blk_root_get_parent_desc``)."""
        return self._name or self.device.id or "a block device"

    def _has_device(self) -> bool:
        return self.device.model is not None

    # -- what the device is told

    def resized(self, edge: Edge) -> None:
        """The disk's length changed (``blk_root_resize``)."""
        super().resized(edge)
        if self.device.ops is not None:
            self.device.ops.resize()

    def _quiesce_begin(self) -> None:
        super()._quiesce_begin()
        if self._quiesce == 1 and self.device.ops is not None:
            self.device.ops.drained_begin()

    def _resuming(self) -> None:
        if self.device.ops is not None:
            self.device.ops.drained_end()
