"""The medium: whether there is one, and the tray it lies in.

Stands on the system *tray-media* of the reference document. A backend without a root, with an open tray, or whose real
device is empty has no medium: everything is NoMedium then.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from blockio.backend.device import DeviceAttachment
from blockio.backend.events import DeviceTrayMoved
from blockio.driver.base import BlockDriver
from blockio.types import Perm, Role

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.aio.context import AioContext
    from blockio.backend.accounting import TryTransfer
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode

__all__ = ["Medium"]


class Medium(DeviceAttachment):
    """``is_inserted`` to ``eject``.

    Invariant: ``_removable`` are the drivers below the root that can lose their medium, as of the last time the graph
    below was changed; all but always there are none.
    """

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """No medium."""
        self._removable: tuple[BlockDriver, ...] = ()
        super().__init__(perm, shared, context)

    def is_inserted(self) -> bool:
        """Whether there is a root whose driver works, with a medium in every device below (``blk_is_inserted``)."""
        return super().is_inserted() and (
            not self._removable or all(driver.is_inserted() for driver in self._removable)
        )

    def is_available(self) -> bool:
        """Whether requests can be served: a medium is inserted and the tray is not open (``blk_is_available``)."""
        return self.is_inserted() and not self.dev_is_tray_open()

    # -- questions to the device

    def dev_has_removable_media(self) -> bool:
        """Whether the device's medium can be changed. True without a device."""
        return self.device.model is None or self.device.removable

    def dev_has_tray(self) -> bool:
        """Whether the device has a tray."""
        return self.device.tray

    def dev_is_tray_open(self) -> bool:
        """Whether it is open; False without a tray."""
        ops = self.device.ops
        return ops is not None and self.device.tray and ops.is_tray_open()

    def dev_is_medium_locked(self) -> bool:
        """Whether the device has locked its medium in; False where it cannot."""
        ops = self.device.ops
        return ops is not None and self.device.locks and ops.is_medium_locked()

    def dev_eject_request(self, force: bool) -> None:
        """Ask the device for its medium; with *force* it is about to be taken anyway."""
        if self.device.ops is not None:
            self.device.ops.eject_request(force)

    def dev_change_media_cb(self, load: bool) -> None:
        """Tell the device that there is a medium now (*load*), or none. Where that moves its tray, the event is sent.

        What the device raises against a load is raised here, without an event. RuntimeError where it raises against
        losing its medium: that cannot be refused.
        """
        ops = self.device.ops
        if ops is None or not self.device.removable:
            return
        was_open = self.dev_is_tray_open()
        try:
            ops.change_media(load)
        except OSError as error:
            if load:
                raise
            raise RuntimeError("a device cannot refuse that its medium is gone; only a load may be refused") from error
        is_open = self.dev_is_tray_open()
        if was_open != is_open:
            self.emit(DeviceTrayMoved(self._name, self.device.id, is_open))

    # -- commands to the real device below

    def lock_medium(self, locked: bool) -> None:
        """Lock the medium of the real device below in, or let it go. Does nothing where there is none."""
        driver = self._real_device()
        if driver is not None:
            driver.lock_medium(locked)

    def eject(self, eject_flag: bool) -> None:
        """The guest opened its tray (*eject_flag*) or closed it: a real device below follows; the event is sent."""
        driver = self._real_device()
        if driver is not None:
            driver.eject(eject_flag)
        self.emit(DeviceTrayMoved(self._name, self.device.id, eject_flag))

    def _real_device(self) -> BlockDriver | None:
        """The root's driver, or what filters and plain windows show of one."""
        node = self.bs
        while node is not None:
            driver = node.driver
            if driver is None:
                return None
            cls = type(driver)
            if cls.eject is not BlockDriver.eject or cls.lock_medium is not BlockDriver.lock_medium:
                return driver
            node = next((edge.node for edge in node.children.values() if edge.role & Role.FILTERED), None)
        return None

    # -- ChildParent

    def change_media(self, edge: Edge, load: bool) -> None:
        """The medium below changed: tell the device, which cannot refuse it any more (``blk_root_change_media``)."""
        with contextlib.suppress(OSError):
            self.dev_change_media_cb(load)

    # -- the fast lane

    def _bind_lanes(self) -> None:
        if self._root is None:
            self._removable = ()
        elif not self._quiesce:  # while it is drained the graph below may be changing
            self._removable = _removable_below(self._root.node)
        super()._bind_lanes()

    def _guarded(self, lane: TryTransfer) -> TryTransfer:
        # Whether there is a medium is then asked each time, as in the slow lane; nobody else pays for that.
        return partial(self._if_available, lane) if self._removable or self.device.tray else lane

    def _if_available(
        self,
        lane: TryTransfer,
        offset: int,
        bufs: Sequence[Buffer],
        nbytes: int,
    ) -> bool:
        return self.is_available() and lane(offset, bufs, nbytes)


def _removable_below(top: BlockNode) -> tuple[BlockDriver, ...]:
    found: list[BlockDriver] = []
    seen = {top}
    queue = [top]
    while queue:
        node = queue.pop()
        driver = node.driver
        if driver is not None and type(driver).is_inserted is not BlockDriver.is_inserted:
            found.append(driver)
        for edge in node.children.values():
            if edge.node not in seen:
                seen.add(edge.node)
                queue.append(edge.node)
    return tuple(found)
