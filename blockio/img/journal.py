"""What of a long work is done for sure: a file of lines beside what is made, so that another process can go on.

A line is the CRC-32 of its JSON in eight hexadecimal digits, a space, and the JSON. The first says what the work is,
each later one how far it has come; nothing is said before it is true on stable storage. A crash leaves the lines from
the first on to one that is missing or torn: what stands behind the first bad line was never said.

Whoever has the file open holds a lock on it, which ends with the process however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import zlib
from typing import Any, Final

import msgspec

from blockio.errors import BlockError, ImageLocked

__all__ = ["Journal", "line_of", "lines_in"]

_CRC_DIGITS: Final = 8
_LARGEST: Final = 64 << 20
"""A line for each 64 MiB of eight exabytes would fit; what is larger was not written here."""


def line_of(value: Any) -> bytes:
    """*value*, of which msgspec makes JSON, as a line."""
    text = msgspec.json.encode(value)
    return b"%0*x %s\n" % (_CRC_DIGITS, zlib.crc32(text), text)


def lines_in(data: bytes) -> tuple[list[bytes], int]:
    """The JSON of the good lines at the beginning of *data*, and how many bytes those are."""
    found: list[bytes] = []
    good = 0
    while (end := data.find(b"\n", good)) >= 0:
        crc, _, text = data[good:end].partition(b" ")
        if crc != b"%0*x" % (_CRC_DIGITS, zlib.crc32(text)):
            break
        found.append(text)
        good = end + 1
    return found, good


class Journal:
    """One such file, open and locked. All calls block: make them in a worker thread.

    Invariant: ``_end`` bytes are good lines, on stable storage once ``append`` has returned.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._end = 0

    @classmethod
    def open(cls, path: str) -> Journal:
        """The one at *path*, made where there is none. ImageLocked where another process has it open; BlockError."""
        while True:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise BlockError(f"Could not open '{path}': {error.strerror}", error.errno) from error
            try:
                _lock(path, fd)
                _refuse_strangers(path, fd)
                if _is_still(path, fd):
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)  # whoever had it locked has finished and removed it meanwhile

    def read(self) -> list[bytes]:
        """The JSON of all good lines; what stands behind them is cut off. An empty list also where none is good."""
        data = bytearray()
        while part := os.pread(self._fd, 1 << 20, len(data)):
            data += part
            if len(data) > _LARGEST:
                data.clear()
                break
        found, self._end = lines_in(bytes(data))
        os.ftruncate(self._fd, self._end)
        return found

    @property
    def empty(self) -> bool:
        """Whether nothing was ever said."""
        return os.fstat(self._fd).st_size == 0

    def restart(self) -> None:
        """Take back all that was said, on stable storage as well."""
        self._end = 0
        try:
            os.ftruncate(self._fd, 0)
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error) from error

    def append(self, value: Any) -> None:
        """Say *value*, for good. BlockError where that fails: then it may or may not have been said."""
        line = line_of(value)
        try:
            done = 0
            while done < len(line):
                done += os.pwrite(self._fd, line[done:], self._end + done)
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._failed(error) from error
        self._end += len(line)

    def remove(self) -> None:
        """The work is over, or nothing came of it."""
        os.unlink(self.path)

    def close(self) -> None:
        """Give up the lock."""
        os.close(self._fd)

    def _failed(self, error: OSError) -> BlockError:
        return BlockError(f"Could not write '{self.path}': {error.strerror}", error.errno)


def _lock(path: str, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ImageLocked(
            f"Could not open '{path}': another process has it open", hint="Is the same conversion running already?"
        ) from error
    except OSError as error:
        raise BlockError(f"Could not lock '{path}': {error.strerror}", error.errno) from error


def _refuse_strangers(path: str, fd: int) -> None:
    """In a folder that others may write to, somebody else may have put a file there for us to trust."""
    if os.fstat(fd).st_uid != os.geteuid():
        raise BlockError(f"Could not open '{path}': it belongs to another user", errno.EPERM)


def _is_still(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
