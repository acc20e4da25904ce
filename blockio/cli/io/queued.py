"""The commands that start a request and go on: aio_read, aio_write, aio_flush.

Such a command has succeeded when the request is on its way; what becomes of it is printed when it ends.
"""

from __future__ import annotations

import os
import time
from typing import Final

from blockio.cli.io.figures import dump, lengths, number, report
from blockio.cli.io.language import ANY, Command, Words, register
from blockio.cli.io.requests import FILL_READ, FILL_WRITE, REPORT_HELP, Switches, parts_of
from blockio.cli.io.session import Session, Spoken, Usage, differs
from blockio.types import Perm, RequestFlags

__all__: list[str] = []

_QUEUED_HELP: Final = """\
The command succeeds when the request is on its way, whatever becomes of it; aio_flush waits for all of them.
"""


class _Queued:
    """One request under way: keeps its memory and says how it ended."""

    def __init__(self, session: Session, switches: Switches, op: str, failure: str, offset: int, nbytes: int) -> None:
        self._session = session
        self._switches = switches
        self._op = op
        self._failure = failure
        self._offset = offset
        self._nbytes = nbytes
        self.buffer: memoryview | None = None
        self.checked: int | None = None
        self._started = time.perf_counter()
        session.queued += 1

    def __call__(self, ret: int) -> None:
        """The request's callback."""
        seconds = time.perf_counter() - self._started
        session, switches = self._session, self._switches
        session.queued -= 1
        if ret < 0:
            session.out(f"{self._failure} failed: {os.strerror(-ret)}\n")
        else:
            if self.buffer is not None and self.checked is not None and differs(self.buffer, self.checked):
                session.out(f"Pattern verification failed at offset {self._offset}, {self._nbytes} bytes\n")
            if "q" not in switches:
                if self.buffer is not None and "v" in switches:
                    session.out(dump(self.buffer, self._offset))
                session.out(
                    report(self._op, seconds, self._offset, self._nbytes, self._nbytes, machine="C" in switches)
                )
        session.output.flush()


def _injected(session: Session, switches: Switches, what: str) -> bool:
    """``-i`` ends the command where it stands: nothing behind it is looked at."""
    if "i" in switches:
        session.out(f"injecting invalid {what} request\n")
    return "i" in switches


async def _aio_read(session: Session, words: Words) -> None:
    switches = Switches(words, "CP:iqv", stop="i")
    if _injected(session, switches, "read"):
        return
    if len(switches.operands) < 2:
        raise Usage
    offset = number(switches.operands[0])
    sizes = lengths(switches.operands[1:])
    buffer = session.buffer(sum(sizes), FILL_READ)
    ended = _Queued(session, switches, "read", "readv", offset, buffer.nbytes)
    ended.buffer, ended.checked = buffer, switches.pattern
    session.image.aio_preadv(offset, parts_of(buffer, sizes), 0, ended)


async def _aio_write(session: Session, words: Words) -> None:
    switches = Switches(words, "CfiP:quz", stop="i")
    if _injected(session, switches, "write"):
        return
    operands = switches.operands
    if len(operands) < 2:
        raise Usage
    zero = "z" in switches
    if zero and len(operands) != 2:
        raise Spoken("-z supports only a single length parameter")
    if "u" in switches and not zero:
        raise Spoken("-u requires -z to be specified")
    offset = number(operands[0])
    flags = RequestFlags.FUA if "f" in switches else RequestFlags.NONE
    blk = session.image
    if zero:
        flags |= RequestFlags.MAY_UNMAP if "u" in switches else 0
        count = number(operands[1])
        blk.aio_pwrite_zeroes(offset, count, flags, _Queued(session, switches, "wrote", "aio_write", offset, count))
        return
    sizes = lengths(operands[1:])
    buffer = session.buffer(sum(sizes), FILL_WRITE if switches.pattern is None else switches.pattern)
    ended = _Queued(session, switches, "wrote", "aio_write", offset, buffer.nbytes)
    blk.aio_pwritev(offset, parts_of(buffer, sizes), flags, ended)


async def _aio_flush(session: Session, words: Words) -> None:
    await session.image.drain()


register(
    Command(
        "aio_read",
        _aio_read,
        "asynchronously reads a number of bytes",
        "[-Ciqv] [-P pattern] off len [len..]",
        2,
        ANY,
        details=f"""\
Start to read into several buffers, one for each len, and go on with the next command.
{_QUEUED_HELP}
Example:
  aio_read -P 0 0 64k 64k    are the first 128 KiB zero?

 -P  compare what was read with this byte
 -i  make no request, but count an invalid one
 -v  print the bytes
{REPORT_HELP}""",
    )
)
register(
    Command(
        "aio_write",
        _aio_write,
        "asynchronously writes a number of bytes",
        "[-Cfiquz] [-P pattern] off len [len..]",
        2,
        ANY,
        perm=Perm.WRITE,
        details=f"""\
Start to write from several buffers, one for each len, and go on with the next command.
{_QUEUED_HELP}
Example:
  aio_write 0 64k 64k    128 KiB to the beginning

 -P  write this byte instead of 0xcd
 -f  be done only when the data is on stable storage (FUA)
 -z  make the range zero (one len only)
 -u  with -z: the range may be given back to the file system
 -i  make no request, but count an invalid one
{REPORT_HELP}""",
    )
)
register(Command("aio_flush", _aio_flush, "completes all outstanding aio requests"))
