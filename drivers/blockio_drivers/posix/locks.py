"""QEMU's lock bytes: how processes that use one image keep out of each other's way.

For every permission bit i held, byte 100+i of the file is locked (shared, as an open file description lock); for every
one not shared with others, byte 200+i. Whoever wants a permission then looks whether anybody has locked 200+i, and
whoever unshares one, 100+i. The bytes need not exist. See the reference's page on permissions.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
from typing import Final

from blockio.aio import syscalls
from blockio.errors import BlockError, ImageLocked
from blockio.types import Perm

__all__ = ["LockBytes"]

_PERM_BASE: Final = 100
_SHARED_BASE: Final = 200
_BITS: Final = range(4)
_NAMES: Final = ("consistent read", "write", "write unchanged", "resize")
_UNAVAILABLE: Final = frozenset((errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL))


class LockBytes:
    """The lock bytes of one open file description.

    Invariant: ``_held`` are the bytes locked on ``fd``. Outside of a permission transaction they are those of the
    permissions last committed.
    """

    def __init__(self, fd: int, filename: str, *, required: bool) -> None:
        """*required* (``locking=on``): a file system without locks is an error, and not silently unlocked."""
        self.fd = fd
        self.filename = filename
        self.required = required
        self._held: frozenset[int] = frozenset()
        self._perm = 0
        self._shared = int(Perm.ALL)
        self._available = True

    def take(self, perm: Perm | int, shared: Perm | int) -> None:
        """Lock what *perm* and *shared* need, on top of what is held, and look for conflicts.

        ImageLocked where another description is in the way, with nothing changed. A pure loosening takes nothing and
        cannot fail.
        """
        perm, shared = int(perm), int(shared)
        if not self._available or (perm & ~self._perm == 0 and self._shared & ~shared == 0):
            return
        wanted = _bytes_of(perm | self._perm, shared & self._shared)
        try:
            self._lock(wanted)
            self._check(perm, shared)
        except BaseException:
            self.give_back()
            raise

    def keep(self, perm: Perm | int, shared: Perm | int) -> None:
        """The transaction succeeded: *perm* and *shared* are what is held; unlock the rest."""
        self._perm, self._shared = int(perm), int(shared)
        self.give_back()

    def give_back(self) -> None:
        """Unlock all but what is committed."""
        needed = _bytes_of(self._perm, self._shared)
        for byte in sorted(self._held - needed):
            syscalls.ofd_lock(self.fd, fcntl.F_UNLCK, byte)
        self._held &= needed

    def move(self, fd: int) -> None:
        """Lock on *fd* what is held, and be about *fd* from then on; shared locks do not conflict. Cannot fail.

        Where the kernel has no room for the new locks (ENOLCK) they stay where they are: ``fd`` says where, and that
        descriptor must then stay open.
        """
        try:
            for byte in sorted(self._held):
                syscalls.ofd_lock(fd, fcntl.F_RDLCK, byte)
        except OSError:
            for byte in sorted(self._held):
                # A lock too few here is harmless, one too many would be taken for another process's.
                with contextlib.suppress(OSError):
                    syscalls.ofd_lock(fd, fcntl.F_UNLCK, byte)
            return
        self.fd = fd

    def _lock(self, wanted: frozenset[int]) -> None:
        for byte in sorted(wanted - self._held):
            try:
                syscalls.ofd_lock(self.fd, fcntl.F_RDLCK, byte)
            except OSError as error:
                if error.errno in {errno.EAGAIN, errno.EACCES}:
                    raise ImageLocked(f"Failed to lock byte {byte}") from error
                if error.errno in _UNAVAILABLE and not self.required:
                    self._available = False
                    return
                raise BlockError(f"Failed to lock byte {byte}: {error.strerror}", error.errno) from error
            self._held |= {byte}

    def _check(self, perm: int, shared: int) -> None:
        if not self._available:
            return
        hint = f"Is another process using the image [{self.filename}]?"
        for bit in _BITS:
            if perm >> bit & 1 and self._taken(_SHARED_BASE + bit):
                raise ImageLocked(f'Failed to get "{_NAMES[bit]}" lock', hint=hint)
            if not shared >> bit & 1 and self._taken(_PERM_BASE + bit):
                raise ImageLocked(f'Failed to get shared "{_NAMES[bit]}" lock', hint=hint)

    def _taken(self, byte: int) -> bool:
        # Everybody's locks are shared ones, so whether an exclusive one could be had tells of any other holder.
        return syscalls.ofd_locked(self.fd, fcntl.F_WRLCK, byte)


def _bytes_of(perm: int, shared: int) -> frozenset[int]:
    held = {_PERM_BASE + bit for bit in _BITS if perm >> bit & 1}
    return frozenset(held | {_SHARED_BASE + bit for bit in _BITS if not shared >> bit & 1})
