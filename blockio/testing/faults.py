"""Faults: make the Nth operation below a driver fail, for every N.

A ``FaultPlan`` says which operation fails and how; ``FaultyChild`` puts it between a driver under test and its child,
``FaultFilter`` between two nodes of a graph. ``for_every_fault`` repeats a scenario, failing the first operation, then
the second … until one run meets no fault, so that every error path was taken once.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.base import Capabilities, FilterDriver
from blockio.errors import BlockError, OptionError
from blockio.types import Capability, RequestFlags

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from blockio.buffers import IoVector
    from blockio.driver.base import ChildOpener
    from blockio.driver.child import Child
    from blockio.types import BlockInfo, BlockLimits, BlockStatus, PreallocMode, Role

__all__ = ["ALL_OPERATIONS", "FaultFilter", "FaultPlan", "FaultyChild", "for_every_fault"]

ALL_OPERATIONS: Final = frozenset({"read", "write", "zero", "discard", "flush", "truncate", "status"})


class FaultPlan:
    """Fails operation number ``nth`` (from 1 on; 0: none) of those in ``operations`` with ``error``.

    ``seen`` counts the operations that could have failed, ``fired`` how often one did. ``sticky`` keeps failing from
    the Nth on, as a dead disk does.
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
            raise BlockError(errno=self.error)


class FaultyChild:
    """A ``Child`` that is another one, with faults. The fast lane always declines, so that everything is counted."""

    def __init__(self, child: Child, plan: FaultPlan) -> None:
        self.child = child
        self.plan = plan

    @property
    def name(self) -> str:
        """The child's."""
        return self.child.name

    @property
    def role(self) -> Role:
        """The child's."""
        return self.child.role

    @property
    def node_name(self) -> str:
        """The child's."""
        return self.child.node_name

    @property
    def filename(self) -> str:
        """The child's."""
        return self.child.filename

    @property
    def length(self) -> int:
        """The child's."""
        return self.child.length

    @property
    def limits(self) -> BlockLimits:
        """The child's."""
        return self.child.limits

    @property
    def read_only(self) -> bool:
        """The child's."""
        return self.child.read_only

    @property
    def driver_name(self) -> str:
        """The child's."""
        return self.child.driver_name

    @property
    def can_compress(self) -> bool:
        """The child's."""
        return self.child.can_compress

    def has_zero_init(self) -> bool:
        """The child's."""
        return self.child.has_zero_init()

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """May fail as ``read``."""
        self.plan.before("read")
        await self.child.co_preadv(offset, iov, flags)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int = 0) -> None:
        """May fail as ``write``."""
        self.plan.before("write")
        await self.child.co_pwritev(offset, iov, flags)

    async def co_pwrite_zeroes(self, offset: int, nbytes: int, flags: RequestFlags | int = 0) -> None:
        """May fail as ``zero``."""
        self.plan.before("zero")
        await self.child.co_pwrite_zeroes(offset, nbytes, flags)

    async def co_pdiscard(self, offset: int, nbytes: int) -> None:
        """May fail as ``discard``."""
        self.plan.before("discard")
        await self.child.co_pdiscard(offset, nbytes)

    async def co_flush(self) -> None:
        """May fail as ``flush``."""
        self.plan.before("flush")
        await self.child.co_flush()

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
        await self.child.co_truncate(length, exact=exact, prealloc=prealloc, flags=flags)

    async def co_getlength(self) -> int:
        """The child's."""
        return await self.child.co_getlength()

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool = True) -> BlockStatus:
        """May fail as ``status``."""
        self.plan.before("status")
        return await self.child.co_block_status(offset, nbytes, want_zero=want_zero)

    async def co_copy_range_to(self, offset: int, target: Child, target_offset: int, nbytes: int) -> None:
        """The child's."""
        await self.child.co_copy_range_to(offset, target, target_offset, nbytes)

    async def co_get_info(self) -> BlockInfo:
        """The child's."""
        return await self.child.co_get_info()

    def try_preadv(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Never."""
        return False

    def try_pwritev(self, offset: int, bufs: Sequence[Buffer], nbytes: int) -> bool:
        """Never."""
        return False


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
