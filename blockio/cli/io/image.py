"""The commands about the image as a whole, and the others: open, close, reopen, map, alloc, length, truncate, help …"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Mapping
from typing import Final

from blockio.backend import BlockBackend
from blockio.cli.io.figures import number, size_text, strtol
from blockio.cli.io.getopt import GetOpt
from blockio.cli.io.language import ANY, Command, Words, commands, find, register, usage
from blockio.cli.io.opening import Opening, open_image, set_aio, set_cache, set_discard
from blockio.cli.io.session import CommandFailed, Session, Spoken, Usage
from blockio.cli.output import Output
from blockio.cli.specific import specific_lines
from blockio.driver.options import flatten, nest, parse_image_opts
from blockio.errors import BlockError, OptionError
from blockio.graph.flags import take_node_options
from blockio.graph.reopen import changed_options, reopen
from blockio.types import Perm, PreallocMode, StatusFlags

__all__ = ["option_list"]

_SECTOR: Final = 512
_STEP: Final = 1 << 30
"""How much one status query asks about: answers are joined, so this bounds only a query's work."""


async def _length(session: Session, words: Words) -> None:
    try:
        size = await session.image.co_getlength()
    except BlockError as error:
        raise Spoken(f"getlength: {error}") from error
    session.out(f"{size_text(size)}\n")


async def _truncate(session: Session, words: Words) -> None:
    prealloc = PreallocMode.OFF
    options = GetOpt(words, "m:")
    for _, mode in options:
        if mode not in list(PreallocMode):
            raise OptionError(f"Invalid preallocation mode '{mode}'")
        prealloc = PreallocMode(mode)
    if not options.operands:
        raise Usage
    # Not exactly: a device is as long as it is, and need only be long enough.
    await session.image.co_truncate(number(options.operands[0]), exact=False, prealloc=prealloc)


async def _info(session: Session, words: Words) -> None:
    node = session.image.bs
    assert node is not None  # the session's image always has a root
    driver = node.driver
    if driver is None:
        raise BlockError(errno=errno.ENOMEDIUM)
    session.out(f"format name: {driver.name}\n")
    try:
        about = await node.path.co_get_info()
    except BlockError as error:
        raise CommandFailed from error  # the real tool says no more either
    session.out(f"cluster size: {size_text(about.cluster_size)}\n")
    session.out(f"vm state offset: {size_text(about.vm_state_offset)}\n")
    specific = driver.specific_info()
    if specific is not None:
        session.out("Format specific information:\n" + "".join(f"{line}\n" for line in specific_lines(specific)))


async def _areas(blk: BlockBackend, offset: int, end: int) -> AsyncIterator[tuple[bool, int, int]]:
    """Runs of ``(allocated in this layer, offset, length)``, neighbours of one kind joined."""
    start, known = offset, False
    while offset < end:
        status = await blk.co_block_status(offset, min(end - offset, _STEP), want_zero=False)
        if not status.length:
            break
        allocated = bool(status.flags & StatusFlags.ALLOCATED)
        if allocated != known and offset > start:
            yield known, start, offset - start
            start = offset
        known = allocated
        offset += status.length
    if offset > start:
        yield known, start, offset - start


async def _map(session: Session, words: Words) -> None:
    blk = session.image
    try:
        async for allocated, offset, length in _areas(blk, 0, await blk.co_getlength()):
            session.out(
                f"{size_text(length)} (0x{length:x}) bytes {'    allocated' if allocated else 'not allocated'}"
                f" at offset {size_text(offset)} (0x{offset:x})\n"
            )
    except BlockError as error:
        raise error.prefixed("Failed to get allocation status: ") from error


async def _alloc(session: Session, words: Words) -> None:
    offset = number(words[0])
    count = number(words[1]) if len(words) == 2 else _SECTOR
    blk = session.image
    length = await blk.co_getlength()
    asked = max(0, min(count, length - offset))
    total = 0
    try:
        async for allocated, _, run in _areas(blk, offset, offset + asked):
            total += run * allocated
    except BlockError as error:
        raise Spoken(f"is_allocated failed: {error}") from error
    session.out(f"{total}/{asked} bytes allocated at offset {size_text(offset)}\n")


def option_list(output: Output, text: str) -> dict[str, object]:
    """The options of ``-o``. A word without ``=`` means ``on``, with a warning, as the real tool has it."""
    for part in text.replace(",,", "").split(","):
        if part and "=" not in part:
            output.warn(f"short-form boolean option '{part}' deprecated\nPlease use {part}=on instead")
    if text and "=" not in text.partition(",")[0]:
        first, comma, rest = text.partition(",")
        text = f"{first}=on{comma}{rest}"
    return parse_image_opts(text)


async def _open(session: Session, words: Words) -> None:
    opening = Opening()
    read_only = force_share = False
    options = GetOpt(words, "snCro:ki:t:d:U")
    for letter, argument in options:
        match letter:
            case "s":
                opening.snapshot = True
            case "n":
                set_cache(opening, "none")
            case "C":
                opening.copy_on_read = True
            case "r":
                read_only = True
            case "k":
                set_aio(opening, "native")
            case "t":
                set_cache(opening, argument)
            case "d":
                set_discard(opening, argument)
            case "i":
                set_aio(opening, argument)
            case "o":
                opening.options.update(option_list(session.output, argument))
            case "U":
                force_share = True
    if len(options.operands) > 1:
        raise Usage
    opening.filename = options.operands[0] if options.operands else None
    opening.flags = opening.flags.with_(read_only=read_only, force_share=force_share)
    await open_image(session, opening)


async def _reopen(session: Session, words: Words) -> None:
    blk = session.image
    node = blk.bs
    assert node is not None
    opening = Opening(flags=node.flags.with_(cache_writeback=blk.enable_write_cache))
    read_only: bool | None = None
    cache = False
    given: dict[str, object] = {}
    options = GetOpt(words, "c:o:rw")
    for letter, argument in options:
        match letter:
            case "c":
                set_cache(opening, argument)
                cache = True
            case "o":
                given.update(flatten(option_list(session.output, argument)))
            case _:
                if read_only is not None:
                    raise OptionError("Only one -r/-w option may be given")
                read_only = letter == "r"
    if options.operands:
        raise Usage
    if "read-only" in given and read_only is not None:
        raise OptionError("Cannot set both -r/-w and 'read-only'")
    if cache and ("cache.direct" in given or "cache.no-flush" in given):
        raise OptionError("Cannot set both -c and the cache options")
    wanted = take_node_options(
        nest(given), opening.flags if read_only is None else opening.flags.with_(read_only=read_only)
    )
    known = node.driver_class.Options.__struct_encode_fields__
    rest = {name: value for name, value in wanted.rest.items() if name in known or not isinstance(value, Mapping)}
    for name in flatten({name: value for name, value in wanted.rest.items() if name not in rest}):
        raise OptionError(f"Cannot change the option '{name.rpartition('.')[2]}'")  # a child's
    if own_name := next((name for name in ("driver", "node-name") if name in given), None):
        raise OptionError(f"Cannot change the option '{own_name}'")
    changed_options(node, rest)
    if read_only:
        # The backend no longer writes, so that the node may stop to.
        await blk.drain()
        perm, shared = blk.get_perm()
        blk.set_perm(perm & ~(Perm.WRITE | Perm.WRITE_UNCHANGED | Perm.RESIZE), shared)
    await reopen(
        node,
        options=rest,
        **{name: getattr(wanted.flags, name) for name in ("read_only", "cache_direct", "cache_no_flush")},
    )
    blk.set_enable_write_cache(wanted.flags.cache_writeback)


async def _close(session: Session, words: Words) -> None:
    await session.close()


async def _sleep(session: Session, words: Words) -> None:
    milliseconds = strtol(words[0])
    if milliseconds is None or milliseconds < 0:
        raise Spoken(f"{words[0]} is not a valid number")
    await asyncio.sleep(milliseconds / 1000)


async def _quit(session: Session, words: Words) -> None:
    session.quitting = True


async def _help(session: Session, words: Words) -> None:
    if not words:
        for command in commands():
            session.out(usage(command))
        session.out("\nUse 'help commandname' for extended help.\n")
        return
    found = find(words[0])
    if found is None:
        raise Spoken(f"command {words[0]} not found")
    session.out(usage(found, words[0]))
    if found.details:
        session.out(f"\n{found.details}\n")


register(Command("info", _info, "prints information about the current file", alias="i"))
register(Command("length", _length, "gets the length of the current file", alias="l"))
register(
    Command(
        "truncate",
        _truncate,
        "truncates the current file at the given offset",
        "[-m prealloc_mode] off",
        1,
        3,
        alias="t",
        perm=Perm.WRITE | Perm.RESIZE,
    )
)
register(Command("map", _map, "prints the allocated areas of a file", ""))
register(Command("alloc", _alloc, "checks if offset is allocated in the file", "offset [count]", 1, 2, alias="a"))
register(
    Command(
        "open",
        _open,
        "open the file specified by path",
        "[-rsCnkU] [-t cache] [-d discard] [-o options] [path]",
        1,
        ANY,
        alias="o",
        needs_image=False,
        details="""\
Open an image for all other commands.

Example:
  open -n -o driver=raw /tmp/disk    a raw image, past the host's page cache

 -r  open it read-only
 -s  write into a temporary overlay that is thrown away in the end
 -C  keep in the image what is read from its backing file
 -n  bypass the host's page cache, as -t none
 -U  do not mind others who use the image
 -k  the kernel's native AIO, as -i native
 -i  how requests reach the kernel: threads, native or io_uring
 -t  cache mode: none, writeback, unsafe, directsync or writethrough
 -d  what a discard does: ignore (off) or unmap (on)
 -o  options of the block driver, name=value,…
""",
    )
)
register(Command("close", _close, "close the current open file", alias="c"))
register(
    Command(
        "reopen",
        _reopen,
        "reopens an image with new options",
        "[(-r|-w)] [-c cache] [-o options]",
        0,
        ANY,
        details="""\
Change how the open image is opened.

Example:
  reopen -r -c none    read-only from now on, past the host's page cache

 -r  read-only
 -w  to be read and written
 -c  cache mode: none, writeback, unsafe, directsync or writethrough
 -o  options of the block driver, name=value,…
""",
    )
)
register(Command("sleep", _sleep, "waits for the given value in milliseconds", None, 1, 1, needs_image=False))
register(Command("quit", _quit, "exit the program", None, 0, ANY, alias="q", needs_image=False))
register(Command("help", _help, "help for one or all commands", "[command]", 0, 1, alias="?", needs_image=False))
