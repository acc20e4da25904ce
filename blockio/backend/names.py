"""The list of all backends, and the monitor's list of those that have a name.

Stands on the systems *naming-monitor-list* and *lifecycle-refcount* of the reference document. The tables are the
process's and may be used from every thread: one lock guards both and is held for a few operations, never across an
await. A backend without a name is listed as long as somebody holds it; the monitor's list holds what it names.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.backend.core import BackendCore
from blockio.errors import OptionError
from blockio.graph.names import find_node, name_guards

if TYPE_CHECKING:
    from blockio.backend.backend import BlockBackend

__all__ = ["DriveInfo", "Names", "all_backends", "by_name", "id_wellformed", "named_backends"]

_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9\-._]*")
_lock: Final = threading.Lock()
_all: Final[dict[int, weakref.ref[BlockBackend]]] = {}
"""By ``id``, in the order of creation."""
_named: Final[dict[str, BlockBackend]] = {}
"""The monitor's, in the order of naming."""


class DriveInfo(msgspec.Struct, frozen=True, eq=False):
    """What an old style ``-drive`` option said of a backend, kept for who made it (``DriveInfo``)."""

    id: str = ""
    options: Mapping[str, Any] = msgspec.field(default_factory=dict)


def id_wellformed(name: str) -> bool:
    """Whether *name* is a letter followed by letters, digits, ``-``, ``.`` and ``_`` (ASCII)."""
    return _ID.fullmatch(name) is not None


def enlist(blk: BlockBackend) -> None:
    """A backend came to life."""
    key = id(blk)

    def gone(reference: weakref.ref[BlockBackend]) -> None:
        # No lock: this runs wherever the collector does, perhaps inside the lock. One dict operation is atomic.
        if _all.get(key) is reference:
            _all.pop(key, None)

    with _lock:
        _all[key] = weakref.ref(blk, gone)


def delist(blk: BackendCore) -> None:
    """A backend was closed."""
    with _lock:
        _all.pop(id(blk), None)


def all_backends() -> list[BlockBackend]:
    """Every backend that is not closed, the nameless ones too, oldest first."""
    with _lock:
        references = list(_all.values())
    return [blk for reference in references if (blk := reference()) is not None]


def named_backends() -> list[BlockBackend]:
    """The backends that the monitor knows by name, in the order of naming."""
    with _lock:
        return list(_named.values())


def by_name(name: str) -> BlockBackend | None:
    """The backend with exactly that name, or None; a nameless one is never found."""
    with _lock:
        return _named.get(name)


def _guard(name: str) -> None:
    """Node names and backend names are one name space (QEMU: "node-name=x is conflicting with a device id")."""
    if by_name(name) is not None:
        raise OptionError(f"node-name={name} is conflicting with a device id")


name_guards.append(_guard)


class Names(BackendCore):
    """A backend's name and its place in the lists."""

    _dinfo: DriveInfo | None = None

    @property
    def name(self) -> str:
        """The name the monitor knows it by, or ``""``."""
        return self._name

    def monitor_add_blk(self: BlockBackend, name: str) -> None:  # type: ignore[misc]  # the lists hold whole backends
        """Give it *name* and put it on the monitor's list, which holds it until ``monitor_remove_blk``.

        OptionError where the name is not well formed, taken by another backend, or by a node. ValueError for an
        empty one, RuntimeError where it has a name.
        """
        if not name:
            raise ValueError("a backend's name must not be empty")
        if self._closed:
            raise RuntimeError(f"{self._describe()} is closed")
        if self._name:
            raise RuntimeError(f"{self._describe()} has a name; call monitor_remove_blk() first")
        if not id_wellformed(name):
            raise OptionError("Invalid device name")
        conflicts = find_node(name) is not None
        with _lock:
            if name in _named:
                raise OptionError(f"Device with id '{name}' already exists")
            if conflicts:
                raise OptionError(f"Device name '{name}' conflicts with an existing node name")
            _named[name] = self
        self._name = name

    def monitor_remove_blk(self) -> None:
        """Take name and place on the monitor's list away; does nothing without a name."""
        if not self._name:
            return
        with _lock:
            _named.pop(self._name, None)
        self._name = ""

    # -- the legacy of -drive

    def legacy_dinfo(self) -> DriveInfo | None:
        """The DriveInfo it was given, or None."""
        return self._dinfo

    def set_legacy_dinfo(self, dinfo: DriveInfo) -> DriveInfo:
        """Keep *dinfo* with it until it is closed, and return it. RuntimeError where it has one."""
        if self._dinfo is not None:
            raise RuntimeError(f"{self._describe()} has a DriveInfo already, and keeps it for life")
        self._dinfo = dinfo
        return dinfo

    @staticmethod
    def by_legacy_dinfo(dinfo: DriveInfo) -> BlockBackend:
        """The named backend that has this very *dinfo*. LookupError where none has."""
        for blk in named_backends():
            if blk.legacy_dinfo() is dinfo:
                return blk
        raise LookupError(f"no backend with a name has {dinfo!r}; name it with monitor_add_blk() first")

    def _drive_info_del(self) -> None:
        """The backend ends (``drive_info_del``)."""
        self._dinfo = None
