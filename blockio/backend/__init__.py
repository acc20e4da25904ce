"""BlockBackend: the reference document, one system a file. Import it from ``blockio``.

Names that a backend itself stands on are here at once, the others are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blockio.backend.aio import AioRequest
from blockio.backend.backend import BlockBackend
from blockio.backend.device import BlockDevOps
from blockio.backend.drain import drain_all, drained_all
from blockio.backend.error_policy import ErrorPolicy, OnError
from blockio.backend.events import (
    BlockIoError,
    DeviceTrayMoved,
    ErrorAction,
    ErrorReported,
    EventsDropped,
    EventStream,
    IoOperation,
    all_events,
    listen_to_all,
)
from blockio.backend.iostatus import IoStatus
from blockio.backend.names import DriveInfo, all_backends, by_name, named_backends
from blockio.backend.root_state import RootState
from blockio.backend.run_state import MachineState, RunState, default_run_state

if TYPE_CHECKING:
    from blockio.backend.handover import activate_all, inactivate_all
    from blockio.backend.iteration import BdrvNextIterator, first_blk, has_blk, is_root_node, top_nodes

_HOME = {
    "blockio.backend.handover": ("activate_all", "inactivate_all"),
    "blockio.backend.iteration": ("BdrvNextIterator", "first_blk", "has_blk", "is_root_node", "top_nodes"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "AioRequest",
    "BdrvNextIterator",
    "BlockBackend",
    "BlockDevOps",
    "BlockIoError",
    "DeviceTrayMoved",
    "DriveInfo",
    "ErrorAction",
    "ErrorPolicy",
    "ErrorReported",
    "EventStream",
    "EventsDropped",
    "IoOperation",
    "IoStatus",
    "MachineState",
    "OnError",
    "RootState",
    "RunState",
    "activate_all",
    "all_backends",
    "all_events",
    "by_name",
    "default_run_state",
    "drain_all",
    "drained_all",
    "first_blk",
    "has_blk",
    "inactivate_all",
    "is_root_node",
    "listen_to_all",
    "named_backends",
    "top_nodes",
]


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'blockio.backend' has no attribute {name!r}")
    value = getattr(import_module(module), name)
    globals()[name] = value
    return value
