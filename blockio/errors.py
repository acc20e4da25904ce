"""What can go wrong, in families by whose fault it is.

::

    OSError
    └── BlockError                  every I/O failure; ``errno`` is true, ``str()`` is the message users know
        ├── NoMedium                ENOMEDIUM  nothing inserted, the tray is open, or the driver was shut by corruption
        ├── OutOfRange              EIO        the request does not fit the disk
        ├── ReadOnly                EPERM/EACCES  the node or the file may not be written
        ├── PermissionConflict      EPERM      another user of the node does not allow it
        ├── ImageLocked             EAGAIN     another process holds the file
        ├── OpenDenied              EPERM      the open gate refused what an image asked for
        ├── OptionError             EINVAL/ENOENT  the caller's options name something that does not exist
        ├── ImageError              EINVAL     the image's fault
        │   ├── NotThisFormat       EINVAL     the bytes are not this format's
        │   ├── CorruptImage        EIO        the image contradicts itself
        │   └── LimitExceeded       EFBIG      the image wants more than ``Limits`` grants
        └── UnsupportedFeature      ENOTSUP    valid, but not something we (or this driver) can do

After any of these the object that raised is usable unless its class says otherwise; a node that raised
``CorruptImage`` *while writing* answers NoMedium from then on, as QEMU does after a fatal corruption.
Mistakes of the caller's program (a wrong type, a closed object, a drain that would wait for itself) are
``ValueError``, ``TypeError`` or ``RuntimeError`` and never a ``BlockError``.
"""

from __future__ import annotations

import errno as _errno
import os
from typing import ClassVar

__all__ = [
    "BlockError",
    "CorruptImage",
    "ImageError",
    "ImageLocked",
    "LimitExceeded",
    "NoMedium",
    "NotThisFormat",
    "OpenDenied",
    "OptionError",
    "OutOfRange",
    "PermissionConflict",
    "ReadOnly",
    "UnsupportedFeature",
    "message_of",
]


class BlockError(OSError):
    """An I/O failure with a true ``errno``. ``message`` is written for people; ``str()`` gives just it."""

    default_errno: ClassVar[int] = _errno.EIO

    def __init__(self, message: str = "", errno: int | None = None, *, hint: str = "") -> None:
        """*message* defaults to the errno's text; *hint* is a second line (``Is another process …?``)."""
        code = self.default_errno if errno is None else errno
        super().__init__(code, message or os.strerror(code))
        self.message = message or os.strerror(code)
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.errno), {"hint": self.hint})

    def prefixed(self, prefix: str) -> BlockError:
        """The same failure with *prefix* before its message (``Could not open 'X': …``), chained to this."""
        twin = type(self)(prefix + self.message, self.errno, hint=self.hint)
        twin.__cause__ = self
        return twin


class NoMedium(BlockError):
    """Nothing is inserted, the tray is open, or the driver was shut down by a fatal corruption."""

    default_errno = _errno.ENOMEDIUM


class OutOfRange(BlockError):
    """The request does not fit the disk. The caller's data was not touched."""

    default_errno = _errno.EIO


class ReadOnly(BlockError):
    """A write to something opened, or only openable, read-only."""

    default_errno = _errno.EPERM


class PermissionConflict(BlockError):
    """A permission is needed by one user of a node and unshared by another. Nothing changed."""

    default_errno = _errno.EPERM


class ImageLocked(BlockError):
    """Another process holds the file's lock bytes. Nothing was read or written."""

    default_errno = _errno.EAGAIN


class OpenDenied(BlockError):
    """An image asked for a file that the open gate does not allow. Nothing was opened."""

    default_errno = _errno.EPERM


class OptionError(BlockError):
    """The caller's options name a driver, option or node that does not exist or do not fit together."""

    default_errno = _errno.EINVAL


class ImageError(BlockError):
    """The image is at fault."""

    default_errno = _errno.EINVAL


class NotThisFormat(ImageError):
    """The bytes are not an image of the asked format."""


class CorruptImage(ImageError):
    """The image contradicts itself."""

    default_errno = _errno.EIO


class LimitExceeded(ImageError):
    """The image wants more memory, depth or time than ``Limits`` grants."""

    default_errno = _errno.EFBIG


class UnsupportedFeature(BlockError):
    """Valid, but not something this library, driver or file can do."""

    default_errno = _errno.ENOTSUP


def message_of(error: OSError) -> str:
    """The text users know for *error*: its own message, or ``strerror`` of a bare OSError."""
    if isinstance(error, BlockError):
        return str(error)
    return os.strerror(error.errno) if error.errno else str(error)
