"""The commands that do one request and wait for it: read, write, readv, writev, discard, flush."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from blockio.cli.io.figures import MAX_LENGTH, dump, lengths, number, pattern_byte, report
from blockio.cli.io.getopt import GetOpt
from blockio.cli.io.language import ANY, Command, Words, register
from blockio.cli.io.session import CommandFailed, Session, Spoken, Usage, differs, fill
from blockio.types import Perm, RequestFlags

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = ["FILL_READ", "FILL_WRITE", "REPORT_HELP", "Switches", "parts_of"]

FILL_READ: Final = 0xAB
"""What a buffer holds before it is read into: a read that fills nothing shows."""
FILL_WRITE: Final = 0xCD
"""What is written where no pattern is given."""
_SECTOR: Final = 512

REPORT_HELP: Final = """\
 -C  print the statistics as one line for programs
 -q  print no statistics
"""


class Switches:
    """The options of one call, gathered as getopt yields them, and its operands."""

    __slots__ = ("given", "numbers", "operands", "pattern")

    def __init__(self, words: Words, letters: str, *, numbers: str = "", stop: str = "") -> None:
        """Read *words*. The arguments of the options in *numbers* are byte counts; *stop* is where reading ends.

        FigureError for a bad pattern or number, before what comes behind it is looked at.
        """
        self.given: dict[str, str] = {}
        self.numbers: dict[str, int] = {}
        self.pattern: int | None = None
        options = GetOpt(words, letters)
        for letter, argument in options:
            self.given[letter] = argument
            if letter == "P":
                self.pattern = pattern_byte(argument)
            elif letter in numbers:
                self.numbers[letter] = number(argument)
            elif letter == stop:
                break
        self.operands: Words = options.operands

    def __contains__(self, letter: str) -> bool:
        return letter in self.given

    def finish(self, session: Session, op: str, started: float, offset: int, nbytes: int) -> None:
        """Print what the request came to, as ``-C`` and ``-q`` want it."""
        if "q" not in self:
            seconds = time.perf_counter() - started
            session.out(report(op, seconds, offset, nbytes, nbytes, machine="C" in self))


def parts_of(buffer: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """*buffer* cut into consecutive parts."""
    parts = []
    at = 0
    for size in sizes:
        parts.append(buffer[at : at + size])
        at += size
    return parts


async def _attempt(what: str, request: Awaitable[object]) -> None:
    try:
        await request
    except OSError as error:
        raise Spoken(f"{what} failed: {os.strerror(error.errno or 5)}") from error


def _check_count(count: int, text: str, *, extra: str = "") -> None:
    if count > MAX_LENGTH:
        raise Spoken(f"length cannot exceed {MAX_LENGTH}{extra}, given {text}")


def _check_sectors(offset: int, count: int) -> None:
    for value, what in ((offset, "offset"), (count, "count")):
        if value % _SECTOR:
            raise Spoken(f"{value} is not a sector-aligned value for '{what}'")


async def _read(session: Session, words: Words) -> None:
    switches = Switches(words, "bCl:pP:qs:v", numbers="ls")
    if (switches.pattern is None and ("s" in switches or "l" in switches)) or len(switches.operands) != 2:
        raise Usage
    offset, count = (number(word) for word in switches.operands)
    _check_count(count, switches.operands[1])
    skip = switches.numbers.get("s", 0)
    verified = switches.numbers.get("l", count - skip)
    if verified < 0 or verified + skip > count:
        raise Spoken("pattern verification range exceeds end of read data")
    if "b" in switches:
        _check_sectors(offset, count)
    buffer = session.buffer(count, FILL_READ)
    started = time.perf_counter()
    await _attempt(
        "read",
        session.image.co_load_vmstate(buffer, offset) if "b" in switches else session.image.co_preadv(offset, buffer),
    )
    _show_read(session, switches, started, offset, buffer, skip, verified)


def _show_read(
    session: Session, switches: Switches, started: float, offset: int, buffer: memoryview, skip: int, verified: int
) -> None:
    wrong = switches.pattern is not None and differs(buffer[skip : skip + verified], switches.pattern)
    seconds = time.perf_counter() - started
    if wrong:
        session.out(f"Pattern verification failed at offset {offset + skip}, {verified} bytes\n")
    if "q" not in switches:
        if "v" in switches:
            session.out(dump(buffer, offset))
        nbytes = buffer.nbytes
        session.out(report("read", seconds, offset, nbytes, nbytes, machine="C" in switches))
    if wrong:
        raise CommandFailed


async def _readv(session: Session, words: Words) -> None:
    switches = Switches(words, "CP:qv")
    if len(switches.operands) < 2:
        raise Usage
    offset = number(switches.operands[0])
    sizes = lengths(switches.operands[1:])
    buffer = session.buffer(sum(sizes), FILL_READ)
    started = time.perf_counter()
    await _attempt("readv", session.image.co_preadv(offset, parts_of(buffer, sizes)))
    _show_read(session, switches, started, offset, buffer, 0, buffer.nbytes)


async def _write(session: Session, words: Words) -> None:
    switches = Switches(words, "bcCfnpP:qs:uz")
    if len(switches.operands) != 2:
        raise Usage
    zero, compressed, vmstate = ("z" in switches), ("c" in switches), ("b" in switches)
    if vmstate and zero:
        raise Spoken("-b and -z cannot be specified at the same time")
    if "f" in switches and (vmstate or compressed):
        raise Spoken("-f and -b or -c cannot be specified at the same time")
    for letter in "nu":
        if letter in switches and not zero:
            raise Spoken(f"-{letter} requires -z to be specified")
    if zero + ("P" in switches) + ("s" in switches) > 1:
        raise Spoken("Only one of -z, -P, and -s can be specified at the same time")
    offset, count = (number(word) for word in switches.operands)
    if "n" not in switches:
        _check_count(count, switches.operands[1], extra=" without -n")
    if vmstate or compressed:
        _check_sectors(offset, count)
    flags = RequestFlags.FUA if "f" in switches else RequestFlags.NONE
    blk = session.image
    if zero:
        flags |= RequestFlags.MAY_UNMAP if "u" in switches else 0
        flags |= RequestFlags.NO_FALLBACK if "n" in switches else 0
        started = time.perf_counter()
        await _attempt("write", blk.co_pwrite_zeroes(offset, count, flags))
    else:
        buffer = session.buffer(count, FILL_WRITE if switches.pattern is None else switches.pattern)
        if "s" in switches:
            fill(buffer, await _pattern_file(session, switches.given["s"], count))
        flags |= RequestFlags.WRITE_COMPRESSED if compressed else 0
        started = time.perf_counter()
        await _attempt(
            "write", blk.co_save_vmstate(buffer, offset) if vmstate else blk.co_pwritev(offset, buffer, flags)
        )
    switches.finish(session, "wrote", started, offset, count)


async def _pattern_file(session: Session, name: str, most: int) -> bytes:
    import aiofiles  # only -s needs it

    try:
        async with aiofiles.open(name, "rb") as file:
            pattern = await file.read(most)
    except OSError as error:
        session.output.report(f"{name}: {os.strerror(error.errno or 5)}\n")
        raise CommandFailed from error
    if not pattern:
        session.output.report(f"{name}: file is empty\n")
        raise CommandFailed
    return pattern


async def _writev(session: Session, words: Words) -> None:
    switches = Switches(words, "CfqP:")
    if len(switches.operands) < 2:
        raise Usage
    offset = number(switches.operands[0])
    sizes = lengths(switches.operands[1:])
    buffer = session.buffer(sum(sizes), FILL_WRITE if switches.pattern is None else switches.pattern)
    flags = RequestFlags.FUA if "f" in switches else RequestFlags.NONE
    started = time.perf_counter()
    await _attempt("writev", session.image.co_pwritev(offset, parts_of(buffer, sizes), flags))
    switches.finish(session, "wrote", started, offset, buffer.nbytes)


async def _discard(session: Session, words: Words) -> None:
    switches = Switches(words, "Cq")
    if len(switches.operands) != 2:
        raise Usage
    offset, count = (number(word) for word in switches.operands)
    _check_count(count, switches.operands[1])
    started = time.perf_counter()
    await _attempt("discard", session.image.co_pdiscard(offset, count))
    switches.finish(session, "discard", started, offset, count)


async def _flush(session: Session, words: Words) -> None:
    try:
        await session.image.co_flush()
    except OSError as error:
        raise CommandFailed from error  # the real tool says nothing either


register(
    Command(
        "read",
        _read,
        "reads a number of bytes at a specified offset",
        "[-abCqv] [-P pattern [-s off] [-l len]] off len",
        2,
        ANY,
        alias="r",
        details=f"""\
Read len bytes from the byte off on in one request.

Example:
  read -P 0x41 64k 4k    is there a page of 'A' at 64 KiB?

 -b  read from the virtual machine's saved state, not from the disk
 -P  compare what was read with this byte (decimal, 0x…, or octal with a leading 0)
 -s  begin to compare this many bytes behind off (needs -P)
 -l  compare this many bytes (needs -P)
 -v  print the bytes
 -p  has no effect; old scripts use it
{REPORT_HELP}""",
    )
)
register(
    Command(
        "readv",
        _readv,
        "reads a number of bytes at a specified offset",
        "[-Cqv] [-P pattern] off len [len..]",
        2,
        ANY,
        details=f"""\
Read one after the other into several buffers, one for each len, in one request.

Example:
  readv 0 512 4k 512    5 KiB from the beginning, into three buffers

 -P  compare what was read with this byte
 -v  print the bytes
{REPORT_HELP}""",
    )
)
register(
    Command(
        "write",
        _write,
        "writes a number of bytes at a specified offset",
        "[-bcCfnquz] [-P pattern | -s source_file] off len",
        2,
        ANY,
        alias="w",
        perm=Perm.WRITE,
        details=f"""\
Write len bytes from the byte off on in one request: bytes 0xcd, unless told otherwise.

Example:
  write -P 65 64k 4k    a page of 'A' at 64 KiB

 -P  write this byte
 -s  write what this file holds, again and again where it is shorter
 -z  make the range zero without writing zeroes where the image can do that
 -u  with -z: the range may be given back to the file system
 -n  with -z: fail rather than write zeroes slowly
 -c  write compressed
 -b  write to the virtual machine's saved state, not to the disk
 -f  be done only when the data is on stable storage (FUA)
 -p  has no effect; old scripts use it
{REPORT_HELP}""",
    )
)
register(
    Command(
        "writev",
        _writev,
        "writes a number of bytes at a specified offset",
        "[-Cfq] [-P pattern] off len [len..]",
        2,
        ANY,
        perm=Perm.WRITE,
        details=f"""\
Write one after the other from several buffers, one for each len, in one request.

Example:
  writev 0 512 4k 512    5 KiB to the beginning, from three buffers

 -P  write this byte instead of 0xcd
 -f  be done only when the data is on stable storage (FUA)
{REPORT_HELP}""",
    )
)
register(
    Command(
        "discard",
        _discard,
        "discards a number of bytes at a specified offset",
        "[-Cq] off len",
        2,
        ANY,
        alias="d",
        perm=Perm.WRITE,
        details=f"""\
Say that len bytes from the byte off on are no longer needed. Does nothing to an image opened without -d unmap.

Example:
  discard 1M 64k    forget 64 KiB at 1 MiB

{REPORT_HELP}""",
    )
)
register(Command("flush", _flush, "flush all in-core file state to disk", alias="f"))
