"""Where a new image is written, and what becomes of it when that does not end well.

A target that is a new file is written under a name of its own beside the final one (``.NAME.XXXXXXXX.part``) and gets
its name when it is whole: who sees the name sees all of it. What is there already is written in place, as it may be a
device or have links to it; when that fails half-way, a regular file is removed, and so are the files made with it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from blockio.driver.registry import find_protocol
from blockio.errors import BlockError

if TYPE_CHECKING:
    from blockio.img.creating import CreatePlan
    from blockio.img.opening import Image
    from blockio.types import Limits

__all__ = ["Place", "name_beside"]


class Place:
    """Where the target is written, and what becomes of it.

    Entered: a new target has been created, under ``image``'s name. Left by an error: what was begun is removed.
    Left without one, after everything was closed: it gets its final name.
    """

    def __init__(
        self, output: Image, plan: CreatePlan | None, trust: Limits | None, failing: str = "error while converting {}"
    ) -> None:
        self.image = output
        self._failing = failing
        self._output = output
        self._plan = plan
        self._trust = trust
        self._path: str | None = None
        """The target as it is named, where it is a path."""
        self._final: str | None = None
        """Where a regular file is in the end; None for everything else."""
        self._beside: str | None = None
        """Where it is meanwhile, if elsewhere."""
        self._others: list[str] = []
        """Files that were made for it, and have their names already."""
        self._ours = False
        """The regular file there is what we have made of it."""

    async def __aenter__(self) -> Place:
        plan = self._plan
        if plan is None:
            return self
        self._choose_name(plan)
        await self._create(plan)
        self._give_secrets(plan)
        return self

    async def _create(self, plan: CreatePlan) -> None:
        try:
            self._others = await plan.write(trust=self._trust, onto=self._beside)
        except BlockError as error:
            what = f"{self._output.name}: {self._failing.format(plan.driver.name)}: "
            raise self._by_final_name(error).prefixed(what) from error
        self._ours = self._final is not None

    def _give_secrets(self, plan: CreatePlan) -> None:
        """What encrypts the new image opens it, too."""
        secrets = {name: value for name, value in plan.values.items() if name.endswith("key-secret")}
        if secrets:
            self.image = msgspec.structs.replace(self.image, options={**(self.image.options or {}), **secrets})

    def _choose_name(self, plan: CreatePlan) -> None:
        final = self._follow(plan)
        if final is None:
            return
        if not os.path.lexists(final):
            # Random, so that two conversions to one name do not meet.
            self._go_beside(final, os.urandom(4).hex())
        elif os.path.isfile(final):
            self._final = final

    def _follow(self, plan: CreatePlan) -> str | None:
        """The path of a target that is a file, or None."""
        self._path = path = _plain_path(plan)
        if path is None:
            return None
        # Only a link is followed: what the image refers to is found from its folder as it is named.
        return os.path.realpath(path) if os.path.islink(path) else path

    def _go_beside(self, final: str, tag: str) -> None:
        self._final, self._beside = final, name_beside(final, tag, "part")
        self.image = msgspec.structs.replace(self._output, filename=self._beside, label=self._output.name)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: object
    ) -> None:
        if kind is None:
            self._settle()
            return
        leftover = self._beside or self._final
        if leftover is not None and self._ours:
            for name in (leftover, *self._others):
                with suppress(OSError):
                    os.unlink(name)
        if self._beside is not None and isinstance(error, BlockError) and self._beside in error.message:
            raise self._by_final_name(error) from error

    def _settle(self) -> None:
        """The target is whole and closed: let it be seen under its name."""
        if self._beside is None or self._final is None:
            return
        try:
            self._rename(self._beside, self._final)
        except BlockError:
            with suppress(OSError):
                os.unlink(self._beside)
            raise

    def _rename(self, beside: str, final: str) -> None:
        try:
            os.rename(beside, final)
        except OSError as error:
            raise BlockError(f"Could not create '{self._path}': {error.strerror}", error.errno) from error

    def _by_final_name(self, error: BlockError) -> BlockError:
        """*error* as if the file had had its final name all the time."""
        if self._beside is None or self._path is None:
            return error
        message = error.message.replace(self._beside, self._path)
        return type(error)(message, error.errno, hint=error.hint.replace(self._beside, self._path))


def _plain_path(plan: CreatePlan) -> str | None:
    """The path of a target that is a plain file, or None."""
    if find_protocol(plan.filename).name != "file":
        return None
    path = plan.protocol.parse_filename(plan.filename).get("filename")
    return path if isinstance(path, str) else None


def name_beside(final: str, tag: str, end: str) -> str:
    """``.NAME.tag.end`` in *final*'s folder, short enough for every file system."""
    folder, name = os.path.split(final)
    if not folder and ":" in name:
        folder = "."  # what comes before the colon is no protocol's name
    return os.path.join(folder, f".{os.fsdecode(os.fsencode(name)[:200])}.{tag}.{end}")
