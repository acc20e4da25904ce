"""The command line of ``blockio bench``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from blockio.driver.options import parse_size
from blockio.errors import OptionError

__all__ = ["LANES", "UsageError", "given_work", "parse", "parser"]

LANES: Final = ("auto", "fast", "started", "slow")

_HELP: Final = """\
Without IMAGE and without any option that describes a workload, the suites run: see --suite. With one of those options
but no IMAGE, a disk is made for the occasion, full of data, and thrown away again (see --size).
"""


_WORK: Final = (
    "format",
    "aio",
    "throttle",
    "size",
    "overlays",
    "compressed",
    "encrypted",
    "workload",
    "block_size",
    "read",
    "depth",
    "flush_interval",
    "step",
    "offset",
    "length",
    "count",
    "time",
    "seed",
    "peers",
    "fio",
)


class UsageError(Exception):
    """The command line is wrong; the text says what."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(words: Sequence[str], prog: str) -> argparse.Namespace:
    """*words* as values. UsageError; SystemExit after ``--help``."""
    try:
        return parser(prog).parse_args(list(words))
    except argparse.ArgumentError as error:
        raise UsageError(str(error)) from None


def parser(prog: str) -> argparse.ArgumentParser:
    """What reads the command line; ``--help`` and the manual tell what it knows."""
    parser = _Parser(
        prog=prog, usage="%(prog)s [OPTIONS] [IMAGE]", epilog=_HELP, allow_abbrev=False, exit_on_error=False
    )
    _disk(parser.add_argument_group("the disk"))
    _work(parser.add_argument_group("the work"))
    _measuring(parser.add_argument_group("measuring"))
    _output(parser.add_argument_group("results"))
    return parser


def given_work(given: argparse.Namespace) -> list[str]:
    """Those of the options that describe a disk or a job, as opposed to the suites with their own."""
    found = [f"--{name.replace('_', '-')}" for name in _WORK if getattr(given, name) not in (None, False, [])]
    found += ["IMAGE"] if given.image is not None else []
    found += ["--cache"] if given.cache != "writeback" else []
    return found + (["--lane"] if given.lane != "auto" else [])


def _disk(group: argparse._ArgumentGroup) -> None:
    group.add_argument("image", nargs="?", metavar="IMAGE", help="a disk image, a device, or with --image-opts a stack")
    group.add_argument("-f", "--format", help="the image's format; for a disk that is made: qcow2 (default), raw …")
    group.add_argument("--image-opts", action="store_true", help="IMAGE is a list of options: any stack of drivers")
    group.add_argument(
        "--object", action="append", default=[], help="a secret or a throttle group that IMAGE refers to"
    )
    group.add_argument("-t", "--cache", default="writeback", help="writeback, none (O_DIRECT), unsafe …")
    group.add_argument("-U", "--force-share", action="store_true", help="open it although others have it open")
    group.add_argument("--lane", choices=LANES, default="auto", help="the way that requests take through the layers")
    group.add_argument("--aio", help="the engine below: threads, native, io_uring")
    group.add_argument("--throttle", metavar="LIMITS", help="for example iops-total=1000,bps-read=10000000")
    group.add_argument("--size", type=_size, help="of a disk that is made (default 256M)")
    group.add_argument("--overlays", type=int, metavar="N", help="make N empty overlays above its data")
    group.add_argument("--compressed", action="store_true", help="make it compressed")
    group.add_argument("--encrypted", action="store_true", help="make it encrypted (LUKS)")
    group.add_argument("--overwrite", action="append", default=[], metavar="FILE", help="FILE may be written to")


def _work(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--workload", type=_words, help="sequential, strided, random, zipf[:THETA]; several: a,b,c")
    group.add_argument("--block-size", type=_list(_size), metavar="SIZES", help="bytes a request (default 4k)")
    group.add_argument("--read", type=_list(int), metavar="PERCENTS", help="share of reads (default 100)")
    group.add_argument("--depth", type=_list(int), metavar="DEPTHS", help="requests under way at once (default 1,32)")
    group.add_argument("--flush-interval", type=int, metavar="N", help="a flush after every N writes")
    group.add_argument("--step", type=_size, help="of strided requests (default 257 blocks)")
    group.add_argument("--offset", type=_size, help="where the part of the disk begins that is used")
    group.add_argument("--length", type=_size, help="how long that part is (default all)")
    group.add_argument("--count", type=int, help="requests in a run (default 100000)")
    group.add_argument("--time", type=float, metavar="SECONDS", help="or how long a run takes")
    group.add_argument("--seed", type=int, help="of random places (default 1)")
    group.add_argument("--fio", metavar="JOBFILE", help="the jobs of a job file of fio, in their common subset")
    group.add_argument("--suite", type=_words, metavar="NAMES", help="run these suites (see --list)")
    group.add_argument("--list", action="store_true", help="name the suites and the peers, and exit")
    group.add_argument("--quick", action="store_true", help="smaller disks, fewer requests and rounds: noisier answers")


def _measuring(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rounds", type=int, help="runs of everybody, in turn (default 5)")
    group.add_argument("--no-warm-up", action="store_true", help="count the first round")
    group.add_argument(
        "--layers", action="store_true", help="where a request's time goes, layer by layer, instead of rates"
    )
    group.add_argument("--no-latency", action="store_true", help="leave out the pass that takes each request's time")
    group.add_argument("--peers", type=_words, help="qemu-img, fio, aiofiles, preadv, or none (default all)")


def _output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", metavar="FILE", help="write the result there; - is standard output, instead of text")
    group.add_argument("--html", metavar="FILE", help="write a page with plots there")
    group.add_argument("--compare", metavar="FILE", help="an earlier --json result to compare this one with")
    group.add_argument("-q", "--quiet", action="store_true", help="do not say on a terminal what is going on")


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except OptionError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size") from None


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise argparse.ArgumentTypeError("the list is empty")
    return words


def _list(kind: Callable[[str], int]) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        try:
            return [kind(word) for word in _words(text)]
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is no list of numbers") from None

    return read
