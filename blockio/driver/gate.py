"""The gate: an image opens nothing by itself.

Whenever an image's *content* would make the library open something (a backing file, a data file, an extent) or
guess a format, the wish is put as a ``Reference`` to the caller's ``OpenGate``, which allows, denies or
replaces it. What the caller names in its own options never passes the gate, the caller asked for it; but where it
does not say the format either, the probe does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from typing import Any, Protocol, TypeAlias

import msgspec

__all__ = [
    "Allow",
    "AllowAll",
    "Decision",
    "Deny",
    "DenyAll",
    "OpenGate",
    "Reference",
    "ReferenceKind",
    "Replace",
]


class ReferenceKind(Enum):
    """Why an image wants something opened."""

    BACKING = "backing file"
    DATA_FILE = "data file"
    EXTENT = "extent"
    PROBE = "format probe"
    """Nobody says which format *target* has: may its bytes decide? Asked for what the caller names, too."""


class Reference(msgspec.Struct, frozen=True):
    """One wish found in an image. Strings are the image's own and may be hostile."""

    kind: ReferenceKind
    image: str
    """The file name of the image that asks; empty where the caller named *target* (only for PROBE)."""
    target: str
    """What it wants: a path resolved against the image's folder, or a protocol or ``json:`` name as written."""
    format: str | None = None
    """The format the image claims for it, if any."""


class Allow(msgspec.Struct, frozen=True):
    """Open it as asked."""


class Deny(msgspec.Struct, frozen=True):
    """Do not; the open fails with ``OpenDenied`` carrying *reason*."""

    reason: str = ""


class Replace(msgspec.Struct, frozen=True):
    """Open what *options* say (nested options as a caller would give them) instead."""

    options: Mapping[str, Any]


Decision: TypeAlias = Allow | Deny | Replace


class OpenGate(Protocol):
    """Decides over implicit references. Called in the loop of whoever opens; may await."""

    def __call__(self, reference: Reference, /) -> Awaitable[Decision]:
        """What shall become of *reference*? Raising refuses it with that error."""


class _Constant:
    def __init__(self, decide: Callable[[Reference], Decision]) -> None:
        self._decide = decide

    async def __call__(self, reference: Reference, /) -> Decision:
        return self._decide(reference)


class AllowAll(_Constant):
    """Everything, as the QEMU tools do. For images whose maker the caller trusts."""

    def __init__(self) -> None:
        super().__init__(lambda _reference: Allow())


class DenyAll(_Constant):
    """Nothing that an image names: the library's default. The format of the caller's own file may be probed.

    A wrongly guessed format can then reach no other file, and ``DriverHost.probed`` keeps a raw disk raw.
    """

    def __init__(self) -> None:
        super().__init__(
            lambda r: (
                Allow()
                if r.kind is ReferenceKind.PROBE and not r.image
                else Deny(f"{r.kind.value} '{r.target}' of '{r.image}' is not allowed by the open gate")
            )
        )
