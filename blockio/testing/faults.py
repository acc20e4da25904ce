"""Faults: make the Nth operation below a driver fail, for every N.

A ``FaultPlan`` says which operation fails and how; ``FaultyChild`` puts it between a driver under test and its child,
``FaultFilter`` between two nodes of a graph. ``for_every_fault`` repeats a scenario, failing the first operation, then
the second … until one run meets no fault, so that every error path was taken once. ``explore_faults`` does all of it
for a whole stack: while it opens, while a guest works on it, while it closes, with each kind of error.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.base import Capabilities, FilterDriver
from blockio.errors import BlockError, OptionError
from blockio.testing.guest import Allowed, Guest, GuestDisk, Promises, Workload
from blockio.testing.rig import Disks, Rig, sound, still_works
from blockio.testing.wrapping import PassingChild
from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from blockio.buffers import IoVector
    from blockio.driver.base import ChildOpener
    from blockio.driver.child import Child
    from blockio.types import BlockStatus, PreallocMode

__all__ = [
    "ALL_OPERATIONS",
    "FaultFilter",
    "FaultPlan",
    "FaultReport",
    "FaultyChild",
    "explore_faults",
    "for_every_fault",
]

ALL_OPERATIONS: Final = frozenset({"read", "write", "zero", "discard", "flush", "truncate", "status"})


class FaultPlan:
    """Fails operation number ``nth`` (from 1 on; 0: none) of those in ``operations`` with ``error``.

    ``seen`` counts the operations that could have failed, ``fired`` how often one did, ``last`` names the last of
    those. ``sticky`` keeps failing from the Nth on, as a dead disk does.
    """

    _plans: Final[dict[str, FaultPlan]] = {}
    _numbers = itertools.count(1)

    def __init__(
        self,
        nth: int = 0,
        *,
        error: int = errno.EIO,
        operations: frozenset[str] = ALL_OPERATIONS,
        sticky: bool = False,
    ) -> None:
        if not operations <= ALL_OPERATIONS:
            raise ValueError(f"no such operations: {', '.join(sorted(operations - ALL_OPERATIONS))}")
        self.nth = nth
        self.error = error
        self.operations = operations
        self.sticky = sticky
        self.last = ""
        self.seen = 0
        self.fired = 0
        self.name = f"plan{next(self._numbers)}"

    def __enter__(self) -> FaultPlan:
        """Within, a ``FaultFilter`` finds the plan by its name."""
        self._plans[self.name] = self
        return self

    def __exit__(self, *_exc: object) -> None:
        del self._plans[self.name]

    @classmethod
    def named(cls, name: str) -> FaultPlan:
        """The plan of that name that is in force. OptionError where there is none."""
        try:
            return cls._plans[name]
        except KeyError:
            raise OptionError(f"no fault plan '{name}' is in force") from None

    def arm(self, nth: int) -> None:
        """Start counting anew; the *nth* operation from now on fails."""
        self.nth = nth
        self.seen = 0
        self.fired = 0

    def before(self, operation: str) -> None:
        """One *operation* is about to happen: raise if it is the one."""
        if operation not in self.operations:
            return
        self.seen += 1
        if self.nth and (self.seen == self.nth or (self.sticky and self.seen > self.nth)):
            self.fired += 1
            self.last = operation
            raise BlockError(errno=self.error)


class FaultyChild(PassingChild):
    """A ``Child`` that is another one, with faults."""

    def __init__(self, child: Child, plan: FaultPlan) -> None:
        super().__init__(child)
        self.plan = plan

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """May fail as ``read``."""
        self.plan.before("read")
        await super().co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """May fail as ``write``."""
        self.plan.before("write")
        await super().co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """May fail as ``zero``."""
        self.plan.before("zero")
        await super().co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """May fail as ``discard``."""
        self.plan.before("discard")
        await super().co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """May fail as ``flush``."""
        self.plan.before("flush")
        await super().co_flush()

    async def co_truncate(
        self,
        length: int,
        *,
        exact: bool = False,
        prealloc: PreallocMode | str = "off",
        flags: RequestFlags | int = 0,
    ) -> None:
        """May fail as ``truncate``."""
        self.plan.before("truncate")
        await super().co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """May fail as ``status``."""
        self.plan.before("status")
        return await super().co_block_status(offset, nbytes, want_zero=want_zero)


class FaultOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``plan``: the name of a ``FaultPlan`` in force."""

    plan: str


class FaultFilter(FilterDriver):
    """A filter node in front of ``file`` that fails as its plan says. Register it with ``blockio.driver.registry``."""

    name = "blockio-faults"
    Options = FaultOptions
    capabilities = Capabilities(write_compressed=Capability.NATIVE)

    async def open(self, options: Any, opener: ChildOpener) -> None:
        self.plan = FaultPlan.named(options.plan)
        await super().open(options, opener)
        self.file = FaultyChild(self.file, self.plan)

    async def co_pwritev_compressed(self, offset: int, iov: IoVector) -> None:
        await self.file.co_pwritev(offset, iov, RequestFlags.WRITE_COMPRESSED)

    async def co_flush_to_disk(self) -> None:
        self.plan.before("flush")


async def for_every_fault(
    plan: FaultPlan, scenario: Callable[[], Awaitable[None]], *, at_most: int = 1000, first: int = 1
) -> int:
    """Run *scenario* with the first operation failing, then the second …; returns how many faults there were.

    *scenario* catches what it expects. It is done when a run met no fault; AssertionError if *at_most* did not do.
    """
    for nth in range(first, first + at_most):
        plan.arm(nth)
        await scenario()
        if not plan.fired:
            return nth - first
    raise AssertionError(f"a scenario of more than {at_most} operations")


@dataclass(frozen=True, slots=True)
class FaultReport:
    """``faults`` times the stack met a fault. Each failure says which one it was, and what was wrong afterwards."""

    faults: int
    failures: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Nothing failed."""
        return not self.failures

    def __str__(self) -> str:
        return "\n".join([f"{self.faults} faults: {len(self.failures)} badly met", *self.failures])


async def explore_faults(
    rig: Rig,
    disks: Mapping[str, bytes | bytearray],
    workload: Workload,
    *,
    errors: Sequence[int] = (errno.EIO, errno.ENOSPC),
    sticky: Sequence[bool] = (False, True),
    operations: frozenset[str] = ALL_OPERATIONS,
    leaks: bool = True,
    repairs: bool = False,
    discard_zeroes: bool = False,
    stop_after: int = 1,
    at_most: int = 1000,
) -> FaultReport:
    """Fail the first of the *operations* below the stack, the second …, once and (*sticky*) from then on.

    Each run has fresh copies of *disks*. A fault while the stack **opens** makes that fail or not; then it opens. While
    a guest does *workload*, requests may fail (OSError); when the trouble is over nothing is held, each sector has a
    content that it may have, and the same stack does the whole workload well. A fault while it **closes** may cost what
    was not flushed. In the end the disks are ``sound`` (which says what *leaks* and *repairs* mean). The search ends
    after *stop_after* failures; AssertionError if *at_most* operations of one phase did not do.
    """
    faults = 0
    failures: list[str] = []
    for phase, error, stays in itertools.product(_Trial.phases, errors, sticky):
        for nth in range(1, at_most + 1):
            plan = FaultPlan(error=error, operations=operations, sticky=stays)
            trial = _Trial(rig, disks, workload, plan, nth)
            try:
                allowed = await trial.run(phase, discard_zeroes=discard_zeroes)
                await sound(rig, trial.disks, allowed, leaks=leaks, repairs=repairs)
            except Exception as found:  # whatever goes wrong, also in the driver
                which = f"operation {nth}, a {plan.last}," if plan.fired else "no operation"
                how = f"{which} fails with {errno.errorcode[error]}{' from then on' if stays else ''}"
                failures.append(f"while {phase}, {how}: {type(found).__name__}: {found}")
                if len(failures) == stop_after:
                    return FaultReport(faults, tuple(failures))
            if not plan.fired:
                break
            faults += 1
        else:
            raise AssertionError(f"more than {at_most} operations while {phase}")
    return FaultReport(faults, tuple(failures))


class _Trial:
    """One run over fresh copies of the disks, with trouble in one of its phases."""

    phases: Final = ("opening", "working", "closing")

    def __init__(
        self, rig: Rig, disks: Mapping[str, bytes | bytearray], workload: Workload, plan: FaultPlan, nth: int
    ) -> None:
        self.rig = rig
        self.disks: Disks = {name: bytearray(data) for name, data in disks.items()}
        self.workload = workload
        self.plan = plan
        self.nth = nth

    def _opened(self) -> AbstractAsyncContextManager[GuestDisk]:
        return self.rig.open(self.disks, wrap=lambda _name, child: FaultyChild(child, self.plan))

    async def run(self, phase: str, *, discard_zeroes: bool) -> Allowed:
        """Meet the fault in *phase*; what the disks may hold afterwards."""
        async with self.rig.open(self.disks, read_only=True) as disk:
            promises = Promises(await disk.read(0, disk.length))
        async with AsyncExitStack() as stack:
            if phase == "opening":
                disk = await self._open_in_trouble(stack)
            else:
                disk = await stack.enter_async_context(self._opened())
            guest = Guest(disk, promises, forgiving=True, discard_zeroes=discard_zeroes)
            if phase == "working":
                self.plan.arm(self.nth)
                await self.workload(guest)
                self.plan.nth = 0
            await still_works(disk, guest, self.workload)
            await self.workload(guest)
            if phase == "closing" and not await self._close_in_trouble(stack):
                return promises.after_crash()
        return promises.now()

    async def _open_in_trouble(self, stack: AsyncExitStack) -> GuestDisk:
        self.plan.arm(self.nth)
        try:
            return await stack.enter_async_context(self._opened())
        except OSError:
            if not self.plan.fired:
                raise
        finally:
            self.plan.nth = 0
        return await stack.enter_async_context(self._opened())

    async def _close_in_trouble(self, stack: AsyncExitStack) -> bool:
        """Whether it closed well."""
        self.plan.arm(self.nth)
        try:
            await stack.aclose()
        except OSError:
            if not self.plan.fired:
                raise
            return False
        finally:
            self.plan.nth = 0
        return True
