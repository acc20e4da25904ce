"""``convert``: the content of disks as another image."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from blockio.cli.img.given import read
from blockio.cli.img.newimage import OptionList, print_option_help
from blockio.cli.img.tool import Failure, ImageChoice, fail, pipe_target, printed, read_size, reader_gone, source_cache
from blockio.cli.progress import Watcher, watcher
from blockio.driver.gate import AllowAll
from blockio.errors import BlockError, OptionError
from blockio.img.converting import MAX_SPARSE, MAX_WORKERS, convert
from blockio.img.limiting import RateLimit
from blockio.img.opening import SPOOL_LIMIT, Pipe, cache_flags
from blockio.img.snapshots import snapshot_choice
from blockio.types import OpenFlags

if TYPE_CHECKING:
    from blockio.cli.img.given import Given, Reader
    from blockio.cli.output import Output
    from blockio.img.opening import Image
    from blockio.img.results import ConvertResult

__all__ = ["execute", "prepare"]

_LEAST_STEP = 1.0
_MAX_LEVEL = 9


class _Plan(msgspec.Struct, frozen=True):
    sources: list[Image | Pipe]
    target: str
    format: str | None
    """The target's; None: its options say so."""
    given: Given
    pairs: list[tuple[str, str]]


def prepare(args: list[str], output: Output) -> _Plan | int | None:
    """Read the command line; None asks for help, a number is the exit status already."""
    options = OptionList(output)
    readers: dict[str, Reader] = {
        "options": options.add,
        "digest": partial(_algorithm, output),
        "snapshot": partial(_snapshot, output),
        "sparse": partial(_sparse, output),
        "coroutines": partial(_coroutines, output),
        "compression-level": partial(_compression_level, output),
        "spool-limit": partial(read_size, output, "spool limit"),
    }
    given = read("convert", args, output, readers)
    if given is None:
        return None
    _refuse_contradictions(given, bool(options), output)
    *sources, target = given.operands or [""]
    format: str | None = given.get("target-format", None if "target-image-opts" in given else "raw")
    if options.asks_for_help:
        if format is None:
            fail(output, "Option help requires a format be specified")
        return print_option_help(output, target if sources else None, format)
    if not sources:
        fail(output, "Must specify image file name")
    choice = given.choice(source_cache(output, given.get("source-cache", "writeback")))
    images = [_source(name, choice, given, output) for name in sources]
    if sum(isinstance(image, Pipe) for image in images) > 1:
        fail(output, "Standard input can be read only once")
    if target == "-" and output.own_name and "p" in given:
        fail(output, "Standard output is where the image goes; --progress shows progress on standard error")
    return _Plan(images, target, format, given, options.pairs())


def _source(name: str, choice: ImageChoice, given: Given, output: Output) -> Image | Pipe:
    if name != "-" or not output.own_name or choice.image_opts:
        return choice.image(name, given.get("format"))
    return Pipe(fd=0, format=given.get("format"), spool_limit=given.get("spool-limit", SPOOL_LIMIT), gate=AllowAll())


def _algorithm(output: Output, name: str) -> str:
    # few conversions make a digest
    from blockio.cli.img.digest import check_algorithm

    return check_algorithm(output, name)


def _sparse(output: Output, text: str) -> int:
    size = read_size(output, "buffer size for sparse output", text)
    if size % 512 or size > MAX_SPARSE:
        fail(
            output,
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to "
            f"{MAX_SPARSE}. Select 0 to disable sparse detection (fully allocates output).",
        )
    return size


def _snapshot(output: Output, text: str) -> str:
    if text.startswith("snapshot."):
        for part in text.replace(",,", "").split(","):
            if part and "=" not in part:
                output.warn(f"short-form boolean option '{part}' deprecated\nPlease use {part}=on instead")
        try:
            snapshot_choice(text)
        except OptionError as error:
            output.error(printed(error))
            fail(output, f"Failed in parsing snapshot param '{text}'")
    return text


def _coroutines(output: Output, text: str) -> int:
    try:
        number = int(text, 0)
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_WORKERS:
        fail(output, f"Invalid number of coroutines. Allowed number of coroutines is between 1 and {MAX_WORKERS}")
    return number


def _compression_level(output: Output, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _MAX_LEVEL:
        fail(output, f"Invalid compression level '{text}'. It must be between 1 and {_MAX_LEVEL}")
    return int(text)


def _refuse_contradictions(given: Given, has_options: bool, output: Output) -> None:
    """End the command where two options do not go together, in the order in which the QEMU tool notices."""
    if "skip-broken-bitmaps" in given and "bitmaps" not in given:
        fail(output, "Use of --skip-broken-bitmaps requires --bitmaps")
    if "offload" in given:
        if "compress" in given:
            fail(output, "Cannot enable copy offloading when -c is used")
        if "sparse" in given:
            fail(output, "Cannot enable copy offloading when -S is used")
        if "salvage" in given:
            fail(output, "Cannot use copy offloading in salvaging mode")
    if "no-create" not in given:
        if "target-image-opts" in given:
            fail(output, "--target-image-opts requires use of -n flag")
        if "target-is-zero" in given:
            fail(output, "--target-is-zero requires use of -n flag")
    elif has_options:
        fail(output, "-o has no effect when skipping image creation")


async def execute(plan: _Plan, output: Output) -> int:
    """Convert; nothing is said about a success but a digest, where one was asked for."""
    given = plan.given
    output.quiet = "quiet" in given
    with watcher(
        output,
        "convert",
        percent="p" in given and not output.quiet,
        style=given.get("progress"),
        least_step=_LEAST_STEP,
        begin=True,
    ) as watch:
        target: Image | Pipe | None = None
        try:
            target = _target(plan, output)
            result = await _convert(plan, target, output, watch)
        except OSError as error:
            reader_gone(error, target)
            output.error(printed(error))
            raise Failure from None
    if result.digest is not None:
        from blockio.cli.img.digest import digest_line  # few conversions make one

        # Where the image goes to standard output, nothing else may.
        (output.report if isinstance(target, Pipe) else output.out)(digest_line(result.digest))
    return 0


async def _convert(plan: _Plan, target: Image | Pipe, output: Output, watch: Watcher) -> ConvertResult:
    given = plan.given
    rate = given.get("rate", 0)
    return await convert(
        plan.sources,
        target,
        plan.format or "raw",
        options=plan.pairs,
        backing_file=given.get("backing"),
        backing_format=given.get("backing-format"),
        create="no-create" not in given,
        target_is_zero="target-is-zero" in given,
        sparse=given.get("sparse", 4096),
        workers=given.get("coroutines", 8),
        in_order="out-of-order" not in given,
        copy_offload="offload" in given,
        compress="compress" in given,
        compression_level=given.get("compression-level"),
        salvage="salvage" in given,
        bitmaps="bitmaps" in given,
        skip_broken_bitmaps="skip-broken-bitmaps" in given,
        snapshot=given.get("snapshot"),
        digest=given.get("digest"),
        resume="resume" in given,
        limit=RateLimit(rate) if rate else None,
        observer=watch.listener,
        on_warning=output.warn,
    )


def _target(plan: _Plan, output: Output) -> Image | Pipe:
    given = plan.given
    if "target-image-opts" not in given and (pipe := pipe_target(output, plan.target)) is not None:
        return pipe
    choice = ImageChoice(output)
    choice.image_opts = "target-image-opts" in given
    choice.cache = given.get("cache", "writeback" if "resume" in given else "unsafe")
    try:
        cache_flags(choice.cache, OpenFlags())
    except OptionError as error:
        raise BlockError(error.message) from error
    return choice.image(plan.target, plan.format)
