"""New images written from front to back, into a pipe.

First it is found out what lies where; from that the format lays the whole image out (``BlockDriver.stream``); then
everything is written in order, with several reads ahead of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

from blockio.driver.base import StreamRun
from blockio.errors import BlockError
from blockio.graph.create import typed_create_options
from blockio.img.copying import CHUNK, Copier, Kind, Piece, Source
from blockio.img.piping import outlet

if TYPE_CHECKING:
    from blockio.driver.base import ImageStream
    from blockio.img.copying import Target
    from blockio.img.opening import Pipe
    from blockio.img.progress import Meter

__all__ = ["stream_disks", "stream_empty"]


async def stream_empty(pipe: Pipe, driver: Any, values: Mapping[str, Any]) -> int:
    """Write a new, empty image into *pipe*; how many bytes it is."""
    image = _laid_out(driver, values, [])
    async with outlet(pipe) as target:
        await _begin(target, image)
        for offset, nbytes in image.data:
            await target.co_pwrite_zeroes(offset, nbytes)
        return target.done


async def stream_disks(
    sources: list[Source],
    pipe: Pipe,
    driver: Any,
    values: Mapping[str, Any],
    meter: Meter,
    **how: Any,
) -> Copier:
    """Write *sources* as one new image into *pipe*; *how* is for the ``Copier``, which is returned when all is done."""
    async with outlet(pipe) as target:
        copier = _Streamer(sources, target, meter, in_order=True, sparse=0, **how)
        image = _laid_out(driver, values, await copier.runs())
        end = sources[-1].start + sources[-1].size
        copier.todo = [(offset, min(nbytes, end - offset)) for offset, nbytes in image.data]
        meter.total = sum(nbytes for _, nbytes in copier.todo)
        await _begin(target, image)
        await copier.run()
        copier.zeroed = end - meter.total
        try:
            await target.co_pwrite_zeroes(end, image.nbytes - target.done)
        except BlockError as error:
            raise error.prefixed(f"error while writing at byte {end}: ") from error
        return copier


def _laid_out(driver: Any, values: Mapping[str, Any], runs: list[StreamRun]) -> ImageStream:
    image: ImageStream = driver.stream(typed_create_options(driver, values), values["size"], runs)
    return image


async def _begin(target: Target, image: ImageStream) -> None:
    try:
        for part in image.metadata:
            await target.co_pwritev(0, memoryview(part))
    except BlockError as error:
        raise error.prefixed("error while writing metadata: ") from error


class _Streamer(Copier):
    """Copies what is ``todo``, all of it as data; a checksum is told of the zeroes in between, too."""

    todo: list[tuple[int, int]]

    async def runs(self) -> list[StreamRun]:
        """What the new image will hold, in order."""
        found: list[StreamRun] = []
        for source in self._sources:
            at, end = source.start, source.start + source.size
            while at < end:
                kind, nbytes = await self._ask(source, at, end - at)
                if kind is not None:
                    found.append(StreamRun(at, nbytes, kind is Kind.ZERO))
                at += nbytes
        return found

    async def _pieces(self) -> AsyncIterator[Piece]:
        sources = iter(self._sources)
        source = next(sources)
        done = 0
        for offset, nbytes in self.todo:
            if self._checksum is not None and offset > done:
                yield Piece(Kind.NONE, source, done, offset - done)
            done = offset + nbytes
            for at in range(offset, done, CHUNK):
                while at >= source.start + source.size:
                    source = next(sources)
                # It may reach into the sources that follow.
                yield Piece(Kind.COPY, source, at, min(CHUNK, done - at))
        end = self._sources[-1].start + self._sources[-1].size
        if self._checksum is not None and end > done:
            yield Piece(Kind.NONE, source, done, end - done)
