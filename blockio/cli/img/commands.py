"""Which commands there are and which options each takes: the one place for parsing, ``--help`` and the manual.

What QEMU's tool does not have is ``own``: called by that tool's name, we do not have it either.
"""

from __future__ import annotations

from typing import Final

import msgspec

from blockio.cli.definitions import Option

__all__ = ["COMMANDS", "MAIN_OPTIONS", "Command"]


class Command(msgspec.Struct, frozen=True):
    """One command: where it lives, what it takes, and its line in ``--help``."""

    module: str
    options: tuple[Option, ...]
    usage: str
    """As ``[-q] [-f fmt] {own}filename``; what is in front of the command's name is not repeated, and ``{own}`` stands
    for the options that the QEMU tool does not have."""
    summary: str = ""
    """What it does, in some words."""
    own: bool = False
    """As an option's: the whole command is ours."""

    def known(self, *, own: bool) -> tuple[Option, ...]:
        """The options, with or without our own."""
        return self.options if own else tuple(option for option in self.options if not option.own)

    def synopsis(self, *, own: bool) -> str:
        """``usage`` with or without our own options."""
        ours = [f"[{option.spelled('=')}] " for option in self.options if own and option.own]
        return self.usage.replace("{own}", "".join(ours))


_HELP: Final = Option("help", ("-h", "--help"), "", "show this help")
_OBJECT: Final = Option("object", ("--object",), "objectdef", "define an object, such as a secret")
_IMAGE_OPTS: Final = Option("image-opts", ("--image-opts",), "", "file names are options: driver=qcow2,file.filename=x")
_SHARE: Final = Option("force-share", ("-U", "--force-share"), "", "read even what another process is writing")
_QUIET: Final = Option("quiet", ("-q",), "", "say nothing but errors")
_FORMAT: Final = Option("format", ("-f",), "fmt", "the image's format; guessed by default")
_LONG_FORMAT: Final = Option("format", ("-f", "--format"), "fmt", "the image's format; guessed by default")
_OUTPUT: Final = Option("output", ("--output",), "ofmt", "human or json")
_CACHE: Final = Option("cache", ("-t",), "cache", "cache mode of the image that is written")
_SOURCE_CACHE: Final = Option("source-cache", ("-T",), "src_cache", "cache mode of the images that are read")
_PROGRESS: Final = Option("p", ("-p",), "", "print percentages")
_SHOW: Final = Option(
    "progress", ("--progress",), "how", "auto, bar, jsonl or none: show progress on standard error", own=True
)

MAIN_OPTIONS: Final = (
    _HELP,
    Option("version", ("-V", "--version"), "", "print the version"),
    Option("trace", ("-T", "--trace"), "pattern", "accepted for compatibility"),
)

COMMANDS: Final[dict[str, Command]] = {
    "amend": Command(
        "amend",
        (
            _HELP,
            _FORMAT,
            Option("options", ("-o",), "options", "what shall be otherwise; -o help lists what can"),
            _CACHE,
            Option("force", ("--force",), "", "do what may lose data, such as to erase the last passphrase"),
            _PROGRESS,
            _SHOW,
            _QUIET,
            _OBJECT,
            _IMAGE_OPTS,
        ),
        "[--object objectdef] [--image-opts] [-p] [-q] [-f fmt] [-t cache] [--force] -o options {own}filename",
        "change options of an image",
    ),
    "bench": Command(
        "bench",
        (
            _HELP,
            Option("count", ("-c",), "count", "how many requests (75000)"),
            Option("depth", ("-d",), "depth", "how many at a time (64)"),
            _FORMAT,
            Option("flush-interval", ("--flush-interval",), "flush_interval", "flush after so many writes"),
            Option("aio", ("-i",), "aio", "threads, native or io_uring"),
            Option("native", ("-n",), "", "short for -i native"),
            Option("no-drain", ("--no-drain",), "", "flush beside the writes, not after them"),
            Option("offset", ("-o",), "offset", "where the first request begins"),
            Option("pattern", ("--pattern",), "pattern", "the byte that is written (0)"),
            _QUIET,
            Option("size", ("-s",), "buffer_size", "bytes of a request (4096)"),
            Option("step", ("-S",), "step_size", "how far requests lie apart; the size of one by default"),
            _CACHE,
            Option("write", ("-w",), "", "write, over what the image holds"),
            msgspec.structs.replace(_OBJECT, own=True),
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--image-opts] [-c count] [-d depth] [-f fmt] [--flush-interval=flush_interval] [-i aio] "
        "[-n] [--no-drain] [-o offset] "
        "[--pattern=pattern] [-q] [-s buffer_size] [-S step_size] [-t cache] [-w] [-U] {own}filename",
        "read or write an image many times and say how long that takes",
    ),
    "bitmap": Command(
        "bitmap",
        (
            _HELP,
            Option("merge", ("--merge",), "source", "add what is dirty in another bitmap"),
            Option("add", ("--add",), "", "make it"),
            Option("remove", ("--remove",), "", "remove it"),
            Option("clear", ("--clear",), "", "nothing is dirty any more"),
            Option("enable", ("--enable",), "", "record writes"),
            Option("disable", ("--disable",), "", "record none"),
            Option("source", ("-b", "--source-file"), "source_file", "the image that --merge takes from"),
            Option("source-format", ("-F", "--source-format"), "source_fmt", "its format"),
            Option("granularity", ("-g", "--granularity"), "granularity", "bytes that one bit of --add stands for"),
            _FORMAT,
            _OBJECT,
            _IMAGE_OPTS,
        ),
        "(--merge source | --add | --remove | --clear | --enable | --disable)... [-b source_file [-F source_fmt]] "
        "[-g granularity] [--object objectdef] [--image-opts | -f fmt] filename bitmap",
        "make, change and remove the dirty bitmaps that an image keeps",
    ),
    "check": Command(
        "check",
        (
            _HELP,
            _LONG_FORMAT,
            Option("repair", ("-r", "--repair"), "what", "leaks or all: mend it"),
            _OUTPUT,
            _SOURCE_CACHE,
            _SHOW,
            _QUIET,
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-q] [-f fmt] [--output=ofmt] [-r [leaks | all]] [-T src_cache] [-U] "
        "{own}filename",
        "look whether the metadata of an image are consistent, and mend them",
    ),
    "commit": Command(
        "commit",
        (
            _HELP,
            _FORMAT,
            _CACHE,
            Option("base", ("-b",), "base", "commit all layers above this image; none is emptied"),
            Option("drop", ("-d",), "", "do not empty the image afterwards"),
            Option("rate", ("-r",), "rate_limit", "bytes a second"),
            _PROGRESS,
            _SHOW,
            _QUIET,
            _OBJECT,
            _IMAGE_OPTS,
        ),
        "[--object objectdef] [--image-opts] [-q] [-f fmt] [-t cache] [-b base] [-r rate_limit] [-d] [-p] "
        "{own}filename",
        "write what an overlay holds into its backing file",
    ),
    "compare": Command(
        "compare",
        (
            _HELP,
            _FORMAT,
            Option("second-format", ("-F",), "fmt", "the second image's format"),
            _SOURCE_CACHE,
            _PROGRESS,
            _SHOW,
            _QUIET,
            Option("strict", ("-s",), "", "sizes and allocation must be the same too"),
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-f fmt] [-F fmt] [-T src_cache] [-p] [-q] [-s] [-U] "
        "{own}filename1 filename2",
        "look whether two disks read the same",
    ),
    "convert": Command(
        "convert",
        (
            _HELP,
            _FORMAT,
            Option("target-format", ("-O",), "output_fmt", "the format to make; raw by default"),
            Option("backing", ("-B",), "backing_file", "backing file of the new image"),
            Option("backing-format", ("-F",), "backing_fmt", "its format"),
            Option("offload", ("-C",), "", "let the storage copy"),
            Option("compress", ("-c",), "", "compress"),
            Option(
                "compression-level",
                ("--compression-level",),
                "level",
                "1 (fastest, the default) to 9 (smallest)",
                own=True,
            ),
            Option("options", ("-o",), "options", "options of the new image; -o help lists them"),
            Option("snapshot", ("-l",), "snapshot_param", "convert an internal snapshot"),
            Option("sparse", ("-S",), "sparse_size", "leave out runs of zeroes this long (4k); 0 writes everything"),
            _PROGRESS,
            _SHOW,
            Option("spool-limit", ("--spool-limit",), "size", "how much of standard input is kept (64G)", own=True),
            _CACHE,
            _SOURCE_CACHE,
            _QUIET,
            Option("no-create", ("-n",), "", "the target exists"),
            Option("coroutines", ("-m",), "num_coroutines", "how many requests at once, 1 to 16 (8)"),
            Option("out-of-order", ("-W",), "", "write in any order"),
            Option("rate", ("-r",), "rate_limit", "bytes a second"),
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
            Option("target-image-opts", ("--target-image-opts",), "", "the target's name is options"),
            Option("target-is-zero", ("--target-is-zero",), "", "the target reads as zeroes already"),
            Option("bitmaps", ("--bitmaps",), "", "copy persistent bitmaps"),
            Option("skip-broken-bitmaps", ("--skip-broken-bitmaps",), "", "leave out inconsistent bitmaps"),
            Option("salvage", ("--salvage",), "", "what cannot be read becomes zeroes"),
            Option(
                "digest",
                ("--digest",),
                "algorithm",
                "print a checksum of the new disk's content, as blockio img digest",
                own=True,
                optional=True,
            ),
            Option("resume", ("--resume",), "", "go on where the same command was interrupted", own=True),
        ),
        "[--object objectdef] [--image-opts] [--target-image-opts] [--target-is-zero] "
        "[--bitmaps [--skip-broken-bitmaps]] [-U] [-C] [-c] [-p] [-q] [-n] [-f fmt] [-t cache] [-T src_cache] "
        "[-O output_fmt] [-B backing_file [-F backing_fmt]] [-o options] [-l snapshot_param] [-S sparse_size] "
        "[-r rate_limit] [-m num_coroutines] [-W] [--salvage] {own}filename [filename2 [...]] output_filename",
        "copy disks into a new image, of another format if need be",
    ),
    "create": Command(
        "create",
        (
            _HELP,
            _QUIET,
            Option("format", ("-f",), "fmt", "the format to make; raw by default"),
            Option("backing", ("-b",), "backing_file", "backing file"),
            Option("backing-format", ("-F",), "backing_fmt", "its format"),
            Option("unsafe", ("-u",), "", "do not open the backing file"),
            Option("options", ("-o",), "options", "options of the format; -o help lists them"),
            _OBJECT,
        ),
        "[--object objectdef] [-q] [-f fmt] [-b backing_file [-F backing_fmt]] [-u] [-o options] filename [size]",
        "make a new image",
    ),
    "dd": Command(
        "dd",
        (
            _HELP,
            _FORMAT,
            Option("target-format", ("-O",), "output_fmt", "the format to make; raw by default"),
            _SHOW,
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-U] [-f fmt] [-O output_fmt] {own}[bs=block_size] [count=blocks] "
        "[skip=blocks] if=input of=output",
        "copy a part of a disk, by the operands of dd",
    ),
    "digest": Command(
        "digest",
        (
            _HELP,
            _LONG_FORMAT,
            Option("algorithm", ("--algorithm",), "name", "sha256, sha256-64k, blake2b, ...; sha256 by default"),
            _OUTPUT,
            _SOURCE_CACHE,
            Option("rate", ("-r",), "rate_limit", "bytes a second"),
            _PROGRESS,
            _SHOW,
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-f fmt] [--algorithm=name] [--output=ofmt] [-T src_cache] "
        "[-r rate_limit] [-p] [-U] {own}filename",
        "make a checksum of what a guest sees, the same in every format",
        own=True,
    ),
    "info": Command(
        "info",
        (
            _HELP,
            _LONG_FORMAT,
            _OUTPUT,
            Option("backing-chain", ("--backing-chain",), "", "all images of the chain"),
            Option("tree", ("--tree",), "", "the backing chain as a tree", own=True),
            Option("untrusted", ("--untrusted",), "", "the image is a stranger's: as inspect", own=True),
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-f fmt] [--output=ofmt] [--backing-chain] [-U] {own}filename",
        "tell what an image is",
    ),
    "inspect": Command(
        "inspect",
        (
            _HELP,
            Option("format", ("-f", "--format"), "fmt", "the format that it is said to have"),
            _OUTPUT,
            _SHARE,
        ),
        "[-f fmt] [--output=ofmt] [-U] filename",
        "judge an image from a stranger, opening nothing else",
        own=True,
    ),
    "map": Command(
        "map",
        (
            _HELP,
            _LONG_FORMAT,
            _OUTPUT,
            Option("start", ("-s", "--start-offset"), "offset", "where to begin"),
            Option("length", ("-l", "--max-length"), "len", "how far to go"),
            Option(
                "picture",
                ("--picture",),
                "file",
                "draw where the data lie, in the terminal or into file.svg or file.png",
                own=True,
                optional=True,
            ),
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-f fmt] [--start-offset=offset] [--max-length=len] [--output=ofmt] [-U] "
        "{own}filename",
        "list where the data of an image lie",
    ),
    "measure": Command(
        "measure",
        (
            _HELP,
            _FORMAT,
            Option("target-format", ("-O",), "output_fmt", "the format to make; raw by default"),
            Option("options", ("-o",), "options", "options of the new image"),
            Option("snapshot", ("-l",), "snapshot_param", "measure an internal snapshot"),
            Option("size", ("--size",), "N", "measure an empty disk of that size"),
            _OUTPUT,
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--output=ofmt] [-O output_fmt] [-o options] [--size N | [--object objectdef] [--image-opts] [-f fmt] [-U] "
        "[-l snapshot_param] filename]",
        "calculate how large an image would be",
    ),
    "rebase": Command(
        "rebase",
        (
            _HELP,
            _FORMAT,
            Option("backing-format", ("-F",), "backing_fmt", "format of the new backing file"),
            Option("backing", ("-b",), "backing_file", "the new backing file; an empty name for none"),
            Option("unsafe", ("-u",), "", "change the name only: both hold the same"),
            _PROGRESS,
            _SHOW,
            _CACHE,
            _SOURCE_CACHE,
            _QUIET,
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-U] [-q] [-f fmt] [-t cache] [-T src_cache] [-p] [-u] "
        "-b backing_file [-F backing_fmt] {own}filename",
        "put another backing file below an image",
    ),
    "resize": Command(
        "resize",
        (
            _HELP,
            _FORMAT,
            _QUIET,
            Option("preallocation", ("--preallocation",), "prealloc", "how new room is provided"),
            Option("shrink", ("--shrink",), "", "a smaller size is meant"),
            _OBJECT,
            _IMAGE_OPTS,
        ),
        "[--object objectdef] [--image-opts] [-f fmt] [--preallocation=prealloc] [-q] [--shrink] filename [+ | -]size",
        "make a disk longer or shorter",
    ),
    "snapshot": Command(
        "snapshot",
        (
            _HELP,
            Option("list", ("-l",), "", "list the snapshots"),
            Option("apply", ("-a",), "snapshot", "make the disk what the snapshot kept"),
            Option("create", ("-c",), "snapshot", "keep the disk as it is"),
            Option("delete", ("-d",), "snapshot", "delete the snapshot of that name"),
            _QUIET,
            _OBJECT,
            _IMAGE_OPTS,
            _SHARE,
        ),
        "[--object objectdef] [--image-opts] [-U] [-q] [-l | -a snapshot | -c snapshot | -d snapshot] filename",
        "list, take, apply and delete the snapshots inside an image",
    ),
}
