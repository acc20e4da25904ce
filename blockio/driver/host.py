"""What a driver is given: its own node, a way to its children, and a place for a new image."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.bitmaps.owner import DirtyBitmaps
    from blockio.driver.child import Child
    from blockio.types import Limits, OpenFlags, Role

__all__ = [
    "ChildOpener",
    "CreateTarget",
    "DriverHost",
    "FrozenChain",
    "ImageStream",
    "MeasureSource",
    "Measurement",
    "StreamRun",
]


class DriverHost(Protocol):
    """The driver's own node, as far as the driver may know it."""

    @property
    def node_name(self) -> str:
        """The node's name in the graph."""

    @property
    def filename(self) -> str:
        """The name for messages."""

    @property
    def flags(self) -> OpenFlags:
        """How the node is opened, kept up to date by reopen."""

    @property
    def context(self) -> AioContext:
        """The loop and thread the node lives in."""

    @property
    def trust(self) -> Limits:
        """What the image may cost."""

    @property
    def probed(self) -> bool:
        """The format was guessed from the image's first bytes because nobody said it.

        A guest that owns a raw disk owns those bytes too. So a write to the first 512 bytes of a *probed* raw node
        must fail with EPERM where the new content would be taken for another format (``probe.guess_format`` says
        which), and the node's request alignment must be 512 so that such a write is seen whole.
        """

    @property
    def dirty_bitmaps(self) -> DirtyBitmaps:
        """The bitmaps that the node's writes are recorded in. A driver that stores bitmaps loads them into it."""

    def fall_back_read_only(self, message: str) -> None:
        """The driver found, while opening, that it cannot write.

        With ``auto_read_only`` the node becomes read-only; without it ReadOnly (EACCES) with *message* is raised.
        On a node that is read-only already nothing happens.
        """

    def length_changed(self) -> None:
        """The driver's ``length`` is a new one: tell the parents."""

    def media_changed(self, load: bool) -> None:
        """A medium was put into the device (*load*), or is gone: tell the parents."""

    def limits_changed(self) -> None:
        """The driver's ``limits()`` answers differently now."""

    def permissions_changed(self) -> None:
        """``child_perm`` answers differently now, and asks for less: recompute. Cannot fail."""

    def report(self, message: str) -> None:
        """One line for the person at the tool (``ERROR cluster 5 refcount=0 reference=1``, ``Repairing …``)."""

    def warn(self, message: str, hint: str = "") -> None:
        """Something about the image that its user should know, although it can be used; *hint*: what to do."""

    def corrupted(self, message: str, *, offset: int = -1, size: int = -1, fatal: bool = True) -> None:
        """Report a corruption once as an event; *fatal* shuts the node: later I/O is NoMedium."""


class ChildOpener(Protocol):
    """How a driver gets its children while it opens. Children belong to the node and are closed with it."""

    async def child(
        self, name: str, role: Role, *, optional: bool = False, filename: str | None = None
    ) -> Child | None:
        """The child that the caller's options name (``file``, ``file.filename`` …).

        *filename*: the options named the child by a file name as well, which may have a prefix.
        None where the options name none and *optional* is set, or where they say ``null``. OptionError where
        it is missing and not optional.
        """

    async def required(self, name: str, role: Role) -> Child:
        """As ``child``, for one that must be there."""

    async def implicit(self, name: str, role: Role, *, target: str, format: str | None, kind: str) -> Child | None:
        """The child that the *image* names; *kind* is a ``ReferenceKind`` value.

        The caller's own options for *name* win without asking the gate; else the reference goes through it.
        *target* is as the image holds it; a backing file is resolved against the image's folder here.
        """

    def ignore(self, name: str) -> None:
        """The caller's options for child *name*, if any, are known but not wanted now."""

    def frozen_chain(self, bottom: str) -> FrozenChain:
        """Freeze the images below this node down to the node called *bottom*. The child they begin at is open.

        OptionError (EINVAL) where *bottom* is not among them; BlockError (EPERM) where a part is frozen already.
        """


class FrozenChain(Protocol):
    """The images from a node down to one below it, all of whose links stay what they are until ``release``."""

    async def co_is_allocated(self, offset: int, nbytes: int) -> tuple[int, int]:
        """Which layer has the first bytes from *offset*: 1 the upper end, 0 none of them; and for how many bytes.

        The lower end is one of the layers. At or past the end of the disk: 0 bytes.
        """

    def release(self) -> None:
        """The links may change again."""


class CreateTarget(Protocol):
    """What ``co_create`` writes onto: an empty file, and a way to open what was written through the graph."""

    @property
    def file(self) -> Child:
        """The new, empty protocol node with WRITE and RESIZE."""

    def beside(self, filename: str) -> AbstractAsyncContextManager[Child]:
        """Create one more empty file, which the caller's options name; the child holds WRITE and RESIZE.

        Raises what creating and opening raise. Where all comes to nothing it is removed, unless it was there before.
        """

    def open_image(self) -> AbstractAsyncContextManager[Child]:
        """Open the image just written with its own driver; the child holds WRITE and RESIZE on it."""


class Measurement(msgspec.Struct, frozen=True):
    """How many bytes a new image takes."""

    required: int
    """With the data there is."""
    fully_allocated: int
    """When every byte has been written."""
    bitmaps: int | None = None
    """What the persistent bitmaps of the source take beside that; None where there can be none."""


class MeasureSource(Protocol):
    """A disk whose content a new image would get."""

    length: int
    bitmaps: Sequence[tuple[str, int]] | None
    """Name and granularity of each persistent bitmap; None where the disk's format knows none."""

    def data(self) -> AsyncIterator[tuple[int, int]]:
        """Offset and length of everything that does not read as zeroes, in order."""


class StreamRun(msgspec.Struct, frozen=True):
    """A part of a disk that a new image shall hold itself: data, or zeroes that nothing below may show through."""

    offset: int
    nbytes: int
    zero: bool = False


class ImageStream(msgspec.Struct, frozen=True):
    """A whole image as it is written in one go, from front to back, to somebody who cannot go back."""

    metadata: Iterable[bytes]
    """First comes all of this."""
    data: Sequence[tuple[int, int]]
    """Then the disk's content: offset and length of each part, in order. The last one may reach past the disk's end,
    where it is zeroes."""
    nbytes: int
    """How many bytes all of it is."""
