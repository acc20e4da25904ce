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

from blockio.driver.block import (
    BlockDriver,
    Capabilities,
    CheckFix,
    CheckResult,
    DriverKind,
    NoOptions,
    ReopenState,
    default_child_perm,
)
from blockio.driver.filter import FilterDriver
from blockio.driver.format import Allocation, FormatDriver
from blockio.driver.host import (
    ChildOpener,
    CreateTarget,
    DriverHost,
    FrozenChain,
    ImageStream,
    Measurement,
    MeasureSource,
    StreamRun,
)
from blockio.driver.protocol import ProtocolDriver

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
    "FrozenChain",
    "ImageStream",
    "MeasureSource",
    "Measurement",
    "NoOptions",
    "ProtocolDriver",
    "ReopenState",
    "StreamRun",
    "default_child_perm",
]
