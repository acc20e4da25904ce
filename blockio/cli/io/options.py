"""The options in front of the image: the one place for parsing, ``--help`` and the manual."""

from __future__ import annotations

from typing import Final

from blockio.cli.definitions import Option

__all__ = ["LETTERS", "NAMES", "OPTIONS", "usage"]

OPTIONS: Final = (
    Option("object", ("--object",), "OBJECTDEF", "an object beside the image, such as a throttle-group"),
    Option("image-opts", ("--image-opts",), "", "the file is given as options, name=value,..."),
    Option("c", ("-c", "--cmd"), "STRING", "run this command, and no prompt; may be repeated"),
    Option("f", ("-f", "--format"), "FMT", "the image's format, instead of a guess"),
    Option("r", ("-r", "--read-only"), "", "open the image read-only"),
    Option("s", ("-s", "--snapshot"), "", "write into a temporary overlay that is thrown away"),
    Option("n", ("-n", "--nocache"), "", "bypass the host's page cache, short for -t none"),
    Option("C", ("-C", "--copy-on-read"), "", "keep what is read from a backing file"),
    Option("m", ("-m", "--misalign"), "", "use memory that O_DIRECT would not take"),
    Option("k", ("-k", "--native-aio"), "", "short for -i native"),
    Option("i", ("-i", "--aio"), "MODE", "threads, native or io_uring"),
    Option("t", ("-t", "--cache"), "MODE", "none, writeback, unsafe, directsync or writethrough"),
    Option("d", ("-d", "--discard"), "MODE", "ignore (off) or unmap (on)"),
    Option("T", ("-T", "--trace"), "PATTERN", "accepted; there are no trace events"),
    Option("U", ("-U", "--force-share"), "", "do not mind others who use the image"),
    Option("h", ("-h", "--help"), "", "print this and exit"),
    Option("V", ("-V", "--version"), "", "print the version and exit"),
)

LETTERS: Final = "".join(
    f"{name[1]}:" if option.metavar else name[1] for option in OPTIONS for name in option.names if len(name) == 2
)
NAMES: Final = {
    f"{name[2:]}=" if option.metavar else name[2:]: option.key
    for option in OPTIONS
    for name in option.names
    if name.startswith("--")
}


def usage(prog: str) -> str:
    """What ``--help`` prints."""
    lines = "".join(f"  {option.synopsis():<22} {option.help}\n" for option in OPTIONS)
    return (
        f"Usage: {prog} [OPTIONS]... [-c STRING]... [file]\nReads, writes and maps a disk image by commands\n\n"
        f"{lines}\n'{prog} -c help' lists the commands.\n"
    )
