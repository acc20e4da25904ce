"""The machine a backend's device belongs to: what it is doing, and a way to ask it to stop.

The reference document asks the emulator for its run state (``runstate_check``), for a call when it changes
(``qemu_add_vm_change_state_handler``) and to be stopped (``qemu_system_vmstop_request``). Here an object stands for it,
so that a process may run several machines: ``blk.set_run_state(machine)``. Backends nobody gave one share the
process's.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any, Final

from blockio.aio.context import AioContext
from blockio.backend.core import BackendCore
from blockio.types import Perm

__all__ = ["Machine", "MachineState", "RunState", "default_run_state"]


class MachineState(StrEnum):
    """The states of a machine that a block layer tells apart, by the names QMP gives them."""

    PRELAUNCH = "prelaunch"
    INMIGRATE = "inmigrate"
    """It is still running elsewhere; its disks are not its own yet."""
    RUNNING = "running"
    PAUSED = "paused"
    IO_ERROR = "io-error"
    """Stopped by an error policy."""
    FINISH_MIGRATE = "finish-migrate"
    POSTMIGRATE = "postmigrate"
    SHUTDOWN = "shutdown"


ChangeHandler = Callable[[bool, MachineState], object]
StopMachine = Callable[[MachineState], Coroutine[Any, Any, object] | None]


class RunState:
    """One machine's state. Every method may be called from any thread; none of them waits.

    *stop* is how the machine is stopped: called with the state it shall be in, as a plain function or a coroutine one,
    in the loop this object was made in. When it is done (or has failed, which the loop reports) the state follows.
    Without *stop* there is nothing to stop and the state follows at once.

    Invariants: ``_wanted`` is the state of the latest stop request nobody has begun to carry out. At most one stop is
    under way. ``_resumes`` counts how often the machine was set running: a request that is older than the latest
    resumption is void, so an operator's *go on* that overtakes it is not undone.
    """

    def __init__(self, state: MachineState = MachineState.RUNNING, *, stop: StopMachine | None = None) -> None:
        """A machine in *state*. RuntimeError for a *stop* without a running loop to call it in."""
        self._state = state
        self._stop = stop
        self._context = None if stop is None else AioContext.current()
        self._lock = threading.Lock()
        self._handlers: list[ChangeHandler] = []
        self._resumes = 0
        self._wanted: tuple[MachineState, int] | None = None
        self._stopping: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<RunState {self._state}>"

    @property
    def state(self) -> MachineState:
        """What the machine is doing now."""
        return self._state

    @property
    def running(self) -> bool:
        """Whether the guest is running (``runstate_is_running``)."""
        return self._state is MachineState.RUNNING

    def check(self, state: MachineState) -> bool:
        """Whether the machine is in *state* (``runstate_check``)."""
        return self._state is state

    def set(self, state: MachineState) -> None:
        """The machine is in *state* now; the change handlers are told, in the order they were added.

        RuntimeError for INMIGRATE from anything but PRELAUNCH: a machine whose disks are in use cannot begin to
        arrive. An error a handler raises is raised when all were told.
        """
        with self._lock:
            before = self._state
            if state is MachineState.RUNNING:
                self._resumes += 1
            if state is before:
                return
            if state is MachineState.INMIGRATE and before is not MachineState.PRELAUNCH:
                raise RuntimeError(f"a machine that is {before} cannot wait for its arrival; make a new RunState")
            self._state = state
            handlers = list(self._handlers)
        errors: list[Exception] = []
        for handler in handlers:
            try:
                handler(state is MachineState.RUNNING, state)
            except Exception as error:  # the others must know nevertheless; raised below
                errors.append(error)
        if errors:
            raise errors[0]

    def add_change_handler(self, handler: ChangeHandler) -> Callable[[], None]:
        """Call ``handler(running, state)`` after each change, in the thread that made it; returns what stops that."""
        with self._lock:
            self._handlers.append(handler)

        def remove() -> None:
            with self._lock:
                if handler in self._handlers:
                    self._handlers.remove(handler)

        return remove

    def prepare_stop(self) -> int:
        """A stop request is about to come: the ticket to give to ``request_stop``.

        Whoever tells the world why before it asks for the stop takes the ticket first; see ``request_stop``.
        """
        return self._resumes

    def request_stop(self, state: MachineState, ticket: int | None = None) -> None:
        """Ask the machine to stop and to be in *state* then. It does so soon; one that does not run stays as it is.

        Void where the machine was set running since *ticket* was taken. Requests that come while one is being
        carried out become one more, the latest.
        """
        with self._lock:
            self._wanted = (state, self._resumes if ticket is None else ticket)
        if self._context is None:
            self._settle()
        else:
            self._context.schedule_bh(self._begin)

    def _take(self) -> MachineState | None:
        with self._lock:
            wanted, self._wanted = self._wanted, None
            if wanted is None or wanted[1] != self._resumes or self._state is not MachineState.RUNNING:
                return None
            return wanted[0]

    def _settle(self) -> None:
        state = self._take()
        if state is not None:
            self.set(state)

    def _begin(self) -> None:
        if self._stopping is None and self._wanted is not None:
            self._stopping = asyncio.get_running_loop().create_task(self._carry_out())

    async def _carry_out(self) -> None:
        assert self._stop is not None
        try:
            while (state := self._take()) is not None:
                resumes = self._resumes
                try:
                    work = self._stop(state)
                    if work is not None:
                        await work
                finally:
                    if resumes == self._resumes:
                        self.set(state)
        finally:
            self._stopping = None
            if self._wanted is not None:  # asked for while this one failed
                asyncio.get_running_loop().call_soon(self._begin)


_default: Final = RunState()


def default_run_state() -> RunState:
    """The process's own machine, for programs that run one or none: RUNNING until somebody says otherwise."""
    return _default


class Machine(BackendCore):
    """Which machine a backend belongs to."""

    def __init__(self, perm: Perm, shared: Perm, context: AioContext | None = None) -> None:
        """The process's."""
        super().__init__(perm, shared, context)
        self._run_state = _default

    @property
    def run_state(self) -> RunState:
        """The machine that is asked and told."""
        return self._run_state

    def set_run_state(self, run_state: RunState) -> None:
        """Belong to *run_state* from now on: stop requests go there, and its arrival is waited for."""
        self._run_state = run_state
