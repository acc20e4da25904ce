"""Memory that a ring keeps pinned (IORING_REGISTER_BUFFERS2), so that requests in it skip the pinning of pages.

Reference: io_uring_register(2). The ring gets an empty table of ``SLOTS`` when the first buffer comes, and single slots
are filled and emptied afterwards (Linux 5.19), because replacing a whole table would wait for all requests under way.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right, insort
from typing import Any, Final

from blockio.aio import syscalls

__all__ = ["SLOTS", "RegisteredBuffers", "checked", "sys_register"]

SLOTS: Final = 256
"""How many buffers one ring keeps; more are refused."""

_NR_REGISTER: Final = 427
_REGISTER_BUFFERS2: Final = 15
_REGISTER_BUFFERS_UPDATE: Final = 16
_SPARSE: Final = 1
_RSRC_REGISTER: Final = struct.Struct("=IIQQQ")
"""``struct io_uring_rsrc_register``: how many, flags, reserved, data, tags."""
_RSRC_UPDATE: Final = struct.Struct("=IIQQII")
"""``struct io_uring_rsrc_update2``: first slot, reserved, data, tags, how many, reserved."""
_IOVEC: Final = struct.Struct("@PN")


def checked(result: int) -> int:
    """*result* of a system call; OSError where it is negative."""
    if result >= 0:
        return result
    import ctypes  # a ring exists, so it is imported; named here only where a call failed

    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def sys_register(fd: int, opcode: int, argument: Any, count: int) -> int:
    """``io_uring_register``."""
    return checked(syscalls.libc().syscall(_NR_REGISTER, fd, opcode, argument, count))


class RegisteredBuffers:
    """The registered buffers of one ring.

    Invariant: ``_slots`` maps the address of each pinned buffer to its slot, its length and how often it was added;
    ``addresses`` are those addresses in order, in one list for good.
    True where there is any.
    """

    __slots__ = ("_fd", "_free", "_slots", "addresses")

    def __init__(self, fd: int) -> None:
        """None yet, in the ring of descriptor *fd*."""
        self._fd = fd
        self.addresses: list[int] = []
        self._slots: dict[int, tuple[int, int, int]] = {}
        self._free: list[int] | None = None
        """Empty slots; None while the kernel has no table."""

    def __bool__(self) -> bool:
        return bool(self.addresses)

    def find(self, address: int, nbytes: int) -> int:
        """The slot of a buffer that holds all of *nbytes* at *address*, or -1."""
        at = bisect_right(self.addresses, address) - 1
        if at < 0:
            return -1
        start = self.addresses[at]
        slot, length, _ = self._slots[start]
        return slot if address + nbytes <= start + length else -1

    def add(self, address: int, nbytes: int) -> bool:
        """Have the kernel pin that memory; False where it will not (its age, RLIMIT_MEMLOCK, no slot is left)."""
        known = self._slots.get(address)
        if known is not None:
            slot, length, times = known
            self._slots[address] = (slot, length, times + 1)
            return nbytes <= length
        if not nbytes or not self._has_table() or not self._free:
            return False
        slot = self._free[-1]
        try:
            self._update(slot, address, nbytes)
        except OSError:
            return False
        self._free.pop()
        self._slots[address] = (slot, nbytes, 1)
        insort(self.addresses, address)
        return True

    def remove(self, address: int) -> None:
        """Undo one ``add``; with the last one the kernel lets go, once no request uses the memory any more."""
        known = self._slots.get(address)
        if known is None:
            return  # it was refused
        slot, length, times = known
        if times > 1:
            self._slots[address] = (slot, length, times - 1)
            return
        del self._slots[address]
        self.addresses.remove(address)
        self._update(slot, 0, 0)
        assert self._free is not None
        self._free.append(slot)

    def _has_table(self) -> bool:
        if self._free is None:
            import ctypes

            argument = ctypes.create_string_buffer(_RSRC_REGISTER.pack(SLOTS, _SPARSE, 0, 0, 0), _RSRC_REGISTER.size)
            try:
                sys_register(self._fd, _REGISTER_BUFFERS2, argument, _RSRC_REGISTER.size)
            except OSError:
                self._free = []
            else:
                self._free = list(range(SLOTS))
        return bool(self._free)

    def _update(self, slot: int, address: int, nbytes: int) -> None:
        import ctypes

        vector = ctypes.create_string_buffer(_IOVEC.pack(address, nbytes), _IOVEC.size)
        update = _RSRC_UPDATE.pack(slot, 0, ctypes.addressof(vector), 0, 1, 0)
        sys_register(
            self._fd, _REGISTER_BUFFERS_UPDATE, ctypes.create_string_buffer(update, len(update)), _RSRC_UPDATE.size
        )
