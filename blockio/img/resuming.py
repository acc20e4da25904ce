"""``convert(resume=True)``: an interrupted conversion goes on where it stopped, also after a crash of the machine.

The new image is written as ``.NAME.XXXXXXXX.part`` beside its final name, which is the same name in every run, and
``.NAME.XXXXXXXX.journal`` says how far everything is on stable storage. The order is what makes that true:

* The first line is written when the new, empty image is stable under its name. It has the settings that decide what is
  written, and a stamp of each file that is read: the image of other files or settings is not gone on with.
* ``Checkpoints`` flush the image and only then write how far it had been written before the flush began. Copying goes
  on meanwhile.
* At the end the image is flushed, closed and synced, gets its name, the folder is synced, and the journal goes last.

What was written behind the last line is written again: the sources are the same, so it is the same.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec

from blockio.aio.threads import in_worker
from blockio.driver.base import CheckFix
from blockio.errors import BlockError, CorruptImage, ImageError, OptionError, UnsupportedFeature
from blockio.graph.bitmap_commands import block_dirty_bitmap_remove
from blockio.img.copying import Source
from blockio.img.journal import Journal
from blockio.img.opening import Image, Pipe, nodes_of
from blockio.img.placing import Place

if TYPE_CHECKING:
    from blockio.backend import BlockBackend
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode
    from blockio.img.creating import CreatePlan
    from blockio.img.opening import ImageLike
    from blockio.types import Limits

__all__ = ["Checkpoints", "ResumablePlace", "Rewriting", "mended", "refuse_unresumable", "remaining", "resumable_place"]

EVERY: Final = 64 << 20
"""Bytes that are written between two checkpoints, about: what an interruption costs at most, beside what is in
flight."""


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """By what a file is known to be the same, unchanged. Not by its device, whose number may change with a boot."""

    inode: int
    size: int
    mtime: int
    ctime: int


class Work(msgspec.Struct, frozen=True):
    """The first line of a journal: what is converted, and how; ``part`` are the inodes of the new image's files."""

    settings: dict[str, str]
    sources: tuple[tuple[Stamp, ...], ...]
    part: tuple[int, ...] = ()
    version: int = 1


class Done(msgspec.Struct, frozen=True):
    """A later line: all before the byte ``done`` of the disk is on stable storage."""

    done: int


# -- what can be resumed, and what it is


def refuse_unresumable(
    inputs: Sequence[ImageLike | Pipe], target: ImageLike | Pipe, *, create: bool, cache: str | None
) -> None:
    """OptionError, UnsupportedFeature for what cannot be gone on with later. *cache* is the target's, if it has one."""
    if isinstance(target, Pipe) or any(isinstance(image, Pipe) for image in inputs):
        raise UnsupportedFeature("What comes out of a pipe, or goes into one, cannot be resumed")
    if not create:
        raise OptionError("Only a new image can be resumed: what exists already might change in between")
    if cache == "unsafe":
        raise OptionError("What can be resumed must be stable: it goes with no cache mode 'unsafe'")


async def _work(inputs: Sequence[ImageLike | Pipe], disks: list[Source], settings: Mapping[str, object]) -> Work:
    texts = {name: _plain(str(value)) for name, value in settings.items() if value is not None}
    stamps: list[tuple[Stamp, ...]] = []
    for number, (image, disk) in enumerate(zip(inputs, disks, strict=True), 1):
        nodes = list(nodes_of(disk.node))
        shape = [node.driver_class.name for node in nodes]
        name, options = (image.filename, image.options) if isinstance(image, Image) else (str(image), None)
        # A name is how the file is found; options, which a json: name is as well, say how it is read.
        if name is not None and name.startswith("json:"):
            shape.append(name)
        if options:
            shape.append(str(options))
        texts[f"source {number}"] = _plain(" ".join(shape))
        stamps.append(await in_worker(_stamps, nodes))
    return Work(texts, tuple(stamps))


def _plain(text: str) -> str:
    """*text*, in which a file name may be that is no UTF-8, as JSON can hold it."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


def _stamps(nodes: list[BlockNode]) -> tuple[Stamp, ...]:
    """Of the files that the last of the *nodes* stand on."""
    found = []
    for node in nodes:
        if node.children:
            continue
        status = os.stat(node.filename) if node.driver_class.name == "file" else None
        if status is None or not stat.S_ISREG(status.st_mode):
            raise UnsupportedFeature(
                f"A conversion of '{node.filename or node.driver_class.name}' cannot be resumed: "
                "only of a regular file it can be seen that it has not changed"
            )
        found.append(Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(found)


def remaining(disks: list[Source], since: int) -> list[Source]:
    """What of *disks* lies behind the byte *since* of the target; the last of them at least, be it empty."""
    left: list[Source] = []
    for disk in disks:
        end = disk.start + disk.size
        if end > since or disk is disks[-1]:
            start = max(disk.start, since)
            left.append(Source(disk.blk, start, skip=start - disk.origin, size=end - start))
    return left


# -- where it is written


async def resumable_place(
    inputs: Sequence[ImageLike | Pipe],
    disks: list[Source],
    output: Image,
    plan: CreatePlan,
    trust: Limits | None,
    on_warning: Callable[[str], object] | None,
    **settings: object,
) -> ResumablePlace:
    """Where *disks*, opened from *inputs*, become *output* by *plan* and *settings*, which decide what is written.

    UnsupportedFeature where the disks are not kept in regular files, whose changes can be seen.
    """
    given = {f"-o {name}": text for name, text in plan.texts.items() if name != "size"}
    return ResumablePlace(output, plan, trust, await _work(inputs, disks, given | settings), on_warning)


class ResumablePlace(Place):
    """A place whose half-written image stays, for another run to go on with.

    Entered: ``resumed`` says that an earlier run had begun, and ``done`` how many bytes of the disk are there for sure;
    ``finished``, that all of it is under its final name, and nothing is left to do. ``begin`` comes after the image was
    opened.
    """

    def __init__(
        self,
        output: Image,
        plan: CreatePlan,
        trust: Limits | None,
        work: Work,
        on_warning: Callable[[str], object] | None,
    ) -> None:
        super().__init__(output, plan, trust)
        self._work = work
        self._before: Work | None = None
        self._on_warning = on_warning
        self._journal: Journal | None = None
        self.resumed = False
        self._begun = False
        self.done = 0
        self.finished = False

    async def __aenter__(self) -> ResumablePlace:
        assert self._plan is not None
        part, final = self._choose_names(self._plan)
        try:
            warning = await in_worker(self._look, part, final)
            if warning and self._on_warning is not None:
                self._on_warning(f"{warning}: starting from nothing")
            if not self.resumed and not self.finished:
                await self._create(self._plan)
            self._give_secrets(self._plan)
        except BaseException:
            await self._leave()
            raise
        return self

    def _choose_names(self, plan: CreatePlan) -> tuple[str, str]:
        """The same in every run: where the image is now, and in the end."""
        final = self._follow(plan)
        if final is None:
            raise UnsupportedFeature(f"What can be resumed is a new file, which '{self._output.name}' is not")
        self._go_beside(final, f"{zlib.crc32(os.fsencode(os.path.basename(final))):08x}")
        assert self._beside is not None
        return self._beside, final

    def _look(self, part: str, final: str) -> str:
        """Take the journal and see what is there; the answer is why an earlier run is of no use, if it is not."""
        self._journal = journal = Journal.open(part.removesuffix("part") + "journal")
        fresh = journal.empty
        lines = journal.read()
        there = _inode(final)
        self._before = before = _decoded(lines[0]) if lines else None
        warning = ""
        if before is not None and before.settings != self._work.settings:
            names = {name for name, _ in before.settings.items() ^ self._work.settings.items()}
            raise OptionError(
                f"An interrupted conversion to '{self._path}' has other options ({', '.join(sorted(names))})",
                hint=f"Remove '{part}' and '{journal.path}' to give it up.",
            )
        if before is None:
            warning = "" if fresh else f"'{journal.path}' is damaged"
        elif before.sources != self._work.sources:
            warning = f"what '{self._path}' is made of has changed since the conversion was interrupted"
        elif there is not None and there == before.part[0]:
            # Interrupted between its new name and the end of its journal.
            self.finished = True
            self.image = msgspec.structs.replace(self._output, filename=final)
            return ""
        elif _inode(part) != before.part[0]:
            warning = f"'{part}' is not there any more"
        else:
            self.resumed = True
        if there is not None:
            raise OptionError(f"What can be resumed is a new file: '{self._path}' exists already", errno.EEXIST)
        if self.resumed:
            self.done = max((msgspec.json.decode(line, type=Done).done for line in lines[1:]), default=0)
            return ""
        self._before = None
        journal.restart()
        with suppress(FileNotFoundError):
            os.unlink(part)
        # Made here, so that nobody else's file or link is ever written to.
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        return warning

    async def begin(self, blk: BlockBackend) -> Checkpoints:
        """*blk* is the new image: from now on it is worth keeping. CorruptImage where an earlier run's is damaged."""
        node = blk.bs
        assert node is not None
        below = [] if node.backing is None else list(nodes_of(node.backing.node))
        files = [one.filename for one in nodes_of(node) if not one.children and one not in below]
        if self.resumed:
            await self._mend(node, files)
        else:
            await blk.co_flush()
            await in_worker(self._say, files)
        self._begun = True
        return Checkpoints(blk.co_flush, self._note, since=self.done)

    async def _mend(self, node: BlockNode, files: list[str]) -> None:
        assert self._before is not None
        if await in_worker(_inodes, files) != self._before.part or not await mended(node):
            raise CorruptImage(f"'{self._path}' as it was interrupted is damaged; the next run starts from nothing")
        for bitmap in node.dirty_bitmaps:  # they are copied last, all of them
            if bitmap.persistent and bitmap.name is not None:
                await block_dirty_bitmap_remove(node, bitmap.name)

    def _say(self, files: list[str]) -> None:
        assert self._journal is not None
        for folder in {os.path.dirname(name) for name in (*files, self._journal.path)}:
            _sync(folder or ".")
        self._journal.append(msgspec.structs.replace(self._work, part=_inodes(files)))

    async def _note(self, done: int) -> None:
        assert self._journal is not None
        await in_worker(self._journal.append, Done(done))

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object
    ) -> None:
        try:
            if kind is None:
                await in_worker(self._finish)
            elif self.resumed and not self._begun and isinstance(error, ImageError):
                await in_worker(self._give_up)
        finally:
            await self._leave()
        if isinstance(error, BlockError) and self._beside is not None and self._beside in error.message:
            raise self._by_final_name(error) from error

    def _finish(self) -> None:
        assert self._journal is not None
        assert self._beside is not None
        assert self._final is not None
        if not self.finished:
            _sync(self._beside)
            self._rename(self._beside, self._final)
        _sync(os.path.dirname(self._beside) or ".")
        self._journal.remove()

    def _give_up(self) -> None:
        assert self._journal is not None
        self._journal.restart()

    async def _leave(self) -> None:
        """Let go of the journal. Where it says nothing, nothing is left."""
        if self._journal is None:
            return
        try:
            if self._journal.empty:
                await in_worker(self._clean_up)
        finally:
            self._journal.close()
            self._journal = None

    def _clean_up(self) -> None:
        assert self._journal is not None
        assert self._beside is not None
        for name in (self._beside, *self._others):
            with suppress(OSError):
                os.unlink(name)
        self._journal.remove()


# -- on the way


async def mended(node: BlockNode) -> bool:
    """Give back what an interrupted run had allocated and not used; False where the image is damaged.

    Once before going on, so that it is used again; once at the end, for what a crash had lost behind the file's end
    counts as a leak only when the file has grown over it.
    """
    assert node.driver is not None
    with suppress(UnsupportedFeature):  # a format that cannot be damaged has no check
        found = await node.driver.co_check(CheckFix.NONE)
        if found.corruptions or found.check_errors:
            return False
        if found.leaks:
            await node.driver.co_check(CheckFix.LEAKS)
    return True


class Checkpoints:
    """Writes down, while an image is written, how far that is stable.

    *flush* makes stable what was written; then *note* is told how far everything had been written before. *since*: what
    an earlier run had done. Invariant: everything before ``_reached`` has been written; pieces that ended out of turn
    wait in ``_early``.
    """

    def __init__(
        self, flush: Callable[[], Awaitable[None]], note: Callable[[int], Awaitable[None]], *, since: int = 0
    ) -> None:
        self._flush = flush
        self._note = note
        self._reached = self._noted = since
        self._next = 0
        self._early: dict[int, int] = {}
        self._unstable = 0
        self._due = asyncio.Event()

    def landed(self, number: int, stop: int, nbytes: int) -> None:
        """Piece *number*, which ends at *stop*, is written; *nbytes* of it were data."""
        self._early[number] = stop
        while (reached := self._early.pop(self._next, None)) is not None:
            self._reached = reached
            self._next += 1
        self._unstable += nbytes
        if self._unstable >= EVERY:
            self._due.set()

    async def during(self, copying: Awaitable[None]) -> None:
        """Keep the journal until *copying* is over. What fails ends the other one, and is raised."""
        try:
            async with asyncio.TaskGroup() as group:
                keeper = group.create_task(self._keep())
                await copying
                keeper.cancel()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _keep(self) -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            self._unstable = 0
            reached = self._reached
            if reached == self._noted:
                continue
            try:
                await self._flush()
            except BlockError as error:
                raise error.prefixed("error while flushing the new image: ") from error
            await self._note(reached)
            self._noted = reached


class Rewriting:
    """A target for compressed data some of which may be there already: a cluster is compressed only once."""

    def __init__(self, blk: BlockBackend) -> None:
        self._blk = blk
        self.co_pwritev = blk.co_pwritev
        self.co_pwrite_zeroes = blk.co_pwrite_zeroes

    @property
    def root(self) -> Edge | None:
        """The backend's."""
        return self._blk.root

    async def co_pwrite_compressed(self, offset: int, iov: memoryview, /) -> None:
        """Compressed, unless a cluster is taken: then as it is."""
        try:
            await self._blk.co_pwrite_compressed(offset, iov)
        except BlockError as error:
            if error.errno != errno.EIO:
                raise
            await self._blk.co_pwritev(offset, iov)


def _decoded(line: bytes) -> Work | None:
    try:
        work = msgspec.json.decode(line, type=Work)
    except msgspec.DecodeError:
        return None
    return work if work.version == Work.__struct_defaults__[-1] and work.part else None


def _inode(path: str) -> int | None:
    try:
        return os.lstat(path).st_ino
    except FileNotFoundError:
        return None


def _inodes(files: list[str]) -> tuple[int, ...]:
    return tuple(os.stat(name).st_ino for name in files)


def _sync(path: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise BlockError(f"Could not sync '{path}': {error.strerror}", error.errno) from error
