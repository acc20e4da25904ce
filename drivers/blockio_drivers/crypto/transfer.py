"""Reading and writing what is encrypted sector by sector: the way from a request's memory to the file and back.

Data is encrypted into memory of our own: the caller's is not changed, and the file never sees plain text. A request
goes in pieces, so that what it costs in memory is bounded. Small ones are encrypted in place, because handing them
to a thread costs more; larger ones in worker threads, so that the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from blockio.buffers import IoVector

if TYPE_CHECKING:
    from blockio.driver.child import Child
    from blockio_drivers.crypto.ciphers import SectorCipher

__all__ = ["read_decrypted", "write_encrypted"]

_SECTOR: Final = 512
_INLINE: Final = 16 << 10
"""Up to this size a thread costs more than the cipher."""
_PIECE: Final = 1 << 20
"""How much of a request is encrypted and in memory at a time."""
_turn: Final = threading.Lock()
"""One worker at a time: the arithmetic takes the interpreter's lock or hands it over after every 100 KiB, and two that
hand it to each other take half as long again as one after the other."""


async def read_decrypted(cipher: SectorCipher, child: Child, offset: int, iov: IoVector, sector: int) -> None:
    """Fill *iov*, whole sectors, with what lies at *offset* of *child*; the first one's number is *sector*."""
    for at in range(0, iov.nbytes, _PIECE):
        part = iov.slice(at, min(_PIECE, iov.nbytes - at))
        memory = bytearray(part.nbytes)
        await child.co_preadv(offset + at, IoVector.of(memory))
        await _transformed(cipher.decrypt, memory, sector + at // _SECTOR)
        part.copy_from(memory)


async def write_encrypted(cipher: SectorCipher, child: Child, offset: int, iov: IoVector, sector: int) -> None:
    """Write *iov*, whole sectors of which the first has the number *sector*, to *offset* of *child*."""
    for at in range(0, iov.nbytes, _PIECE):
        part = iov.slice(at, min(_PIECE, iov.nbytes - at))
        memory = bytearray().join(part.views)
        await _transformed(cipher.encrypt, memory, sector + at // _SECTOR)
        await child.co_pwritev(offset + at, IoVector.of(memory))


async def _transformed(work: Callable[[bytearray, int], None], memory: bytearray, sector: int) -> None:
    """*work* on *memory*, which is the worker's alone from then on if this is cancelled."""
    if len(memory) <= _INLINE:
        work(memory, sector)
    else:
        await asyncio.get_running_loop().run_in_executor(None, _in_turn, work, memory, sector)


def _in_turn(work: Callable[[bytearray, int], None], memory: bytearray, sector: int) -> None:
    with _turn:
        work(memory, sector)
