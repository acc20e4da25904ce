"""All that a driver author imports.

``from blockio.driver import FormatDriver, Child, …`` loads just the modules those names come from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from blockio.driver.base import (
        Allocation,
        BlockDriver,
        Capabilities,
        CheckFix,
        CheckResult,
        ChildOpener,
        CreateTarget,
        DriverHost,
        DriverKind,
        FilterDriver,
        FormatDriver,
        FrozenChain,
        NoOptions,
        ProtocolDriver,
        ReopenState,
        default_child_perm,
    )
    from blockio.driver.child import Child
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
    from blockio.driver.options import Size
    from blockio.driver.probe import guess_format
    from blockio.driver.registry import find_driver, register, unregister
    from blockio.driver.snapshots import SnapshotInfo

__all__ = [
    "Allocation",
    "Allow",
    "AllowAll",
    "BlockDriver",
    "Capabilities",
    "CheckFix",
    "CheckResult",
    "Child",
    "ChildOpener",
    "CreateTarget",
    "Decision",
    "Deny",
    "DenyAll",
    "DriverHost",
    "DriverKind",
    "FilterDriver",
    "FormatDriver",
    "FrozenChain",
    "NoOptions",
    "OpenGate",
    "ProtocolDriver",
    "Reference",
    "ReferenceKind",
    "ReopenState",
    "Replace",
    "Size",
    "SnapshotInfo",
    "default_child_perm",
    "find_driver",
    "guess_format",
    "register",
    "unregister",
]

_ELSEWHERE: Final = {
    "Child": "child",
    **dict.fromkeys(
        ("Allow", "AllowAll", "Decision", "Deny", "DenyAll", "OpenGate", "Reference", "ReferenceKind", "Replace"),
        "gate",
    ),
    "Size": "options",
    "SnapshotInfo": "snapshots",
    "guess_format": "probe",
    **dict.fromkeys(("find_driver", "register", "unregister"), "registry"),
}
"""Which module a name comes from, where that is not ``base``."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # whoever imports one of our modules needs none of the others

    value = getattr(import_module(f"{__name__}.{_ELSEWHERE.get(name, 'base')}"), name)
    globals()[name] = value
    return value
