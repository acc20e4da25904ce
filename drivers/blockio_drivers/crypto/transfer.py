"""Reading and writing what is encrypted sector by sector: the way from a request's memory to the file and back.

Data is encrypted into memory of our own: the caller's is not changed, and the file never sees plain text. A request
goes in pieces, so that what it costs in memory is bounded. Small ones are encrypted in place, because handing them
to a thread costs more; larger ones in worker threads, so that the loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

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


async def read_decrypted(cipher: SectorCipher, child: Child, offset: int, iov: IoVector, sector: int) -> None:
    """Fill *iov*, whole sectors, with what lies at *offset* of *child*; the first one's number is *sector*."""
    for at in range(0, iov.nbytes, _PIECE):
        part = iov.slice(at, min(_PIECE, iov.nbytes - at))
        memory = bytearray(part.nbytes)
        await child.co_preadv(offset + at, IoVector.of(memory))
        part.copy_from(await _transformed(cipher.decrypt, memory, sector + at // _SECTOR))


async def write_encrypted(cipher: SectorCipher, child: Child, offset: int, iov: IoVector, sector: int) -> None:
    """Write *iov*, whole sectors of which the first has the number *sector*, to *offset* of *child*."""
    for at in range(0, iov.nbytes, _PIECE):
        part = iov.slice(at, min(_PIECE, iov.nbytes - at))
        memory = await _transformed(cipher.encrypt, part.tobytes(), sector + at // _SECTOR)
        await child.co_pwritev(offset + at, IoVector.of(memory))


async def _transformed(work: Callable[[Any, int], bytearray], data: bytes | bytearray, sector: int) -> bytearray:
    if len(data) <= _INLINE:
        return work(data, sector)
    return await asyncio.get_running_loop().run_in_executor(None, work, data, sector)
