"""BlockBackend: the reference document, one system a file. Import it from ``blockio``."""

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
from blockio.backend.handover import activate_all, inactivate_all
from blockio.backend.iostatus import IoStatus
from blockio.backend.iteration import BdrvNextIterator, first_blk, has_blk, is_root_node, top_nodes
from blockio.backend.names import DriveInfo, all_backends, by_name, named_backends
from blockio.backend.root_state import RootState
from blockio.backend.run_state import MachineState, RunState, default_run_state

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
