"""What a driver finds in an image of a stranger, without opening it.

An inspection reads the image's own bytes and nothing else, and no more than so many of them: what it says of an image
is what the header says, believed or not, and everything that would keep a careful program from opening it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, Protocol

import msgspec

from blockio.driver.gate import ReferenceKind
from blockio.errors import BlockError, LimitExceeded, UnsupportedFeature

__all__ = ["Finding", "FindingKind", "HeaderReport", "InspectSource", "Naming"]


_LONGEST: Final = 1000
"""Characters of a message: an error may quote as much of an image as it has."""


class FindingKind(Enum):
    """How bad something is. All but NOTE are reasons not to take the image as it is."""

    NOTE = "note"
    """Worth knowing."""
    LIMIT = "limit"
    """It asks for more than ``Limits`` grants; opening it is refused."""
    CORRUPT = "corrupt"
    """It contradicts itself."""
    UNSUPPORTED = "unsupported"
    """It needs something that is not there."""
    DISGUISE = "disguise"
    """It is not, or not only, what it is said to be."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that was found. The message may hold the image's own words: escape it before showing it."""

    kind: FindingKind
    message: str

    @classmethod
    def of(cls, error: BlockError) -> Finding:
        """What opening the image would fail with."""
        if isinstance(error, LimitExceeded):
            kind = FindingKind.LIMIT
        else:
            kind = FindingKind.UNSUPPORTED if isinstance(error, UnsupportedFeature) else FindingKind.CORRUPT
        return cls(kind, error.message[:_LONGEST])


class Naming(msgspec.Struct, frozen=True):
    """The image names something that it wants opened. Strings are the image's own and may be hostile."""

    kind: ReferenceKind
    name: str
    format: str | None = None


class HeaderReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can say of an image by its metadata."""

    virtual_size: int | None = None
    """The disk's length in bytes, as the image claims it."""
    namings: tuple[Naming, ...] = ()
    findings: tuple[Finding, ...] = ()
    facts: dict[str, Any] = msgspec.field(default_factory=dict)
    """Some values of the header by name, as for JSON."""


class InspectSource(Protocol):
    """The bytes that an inspection may look at."""

    @property
    def length(self) -> int:
        """How long the file is."""

    async def read(self, offset: int, nbytes: int) -> bytearray:
        """*nbytes* at *offset*.

        CorruptImage where that reaches past the end of the file; LimitExceeded where the inspection has read as much
        as it may.
        """
