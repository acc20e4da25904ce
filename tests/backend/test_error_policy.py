"""What is done about a failed request: the policy, the I/O status, the event, the stop; in this order."""

from __future__ import annotations

import asyncio
import errno
import gc
import os

import pytest

from blockio.aio.context import AioContext
from blockio.backend import (
    BlockBackend,
    BlockIoError,
    ErrorAction,
    IoOperation,
    IoStatus,
    MachineState,
    OnError,
    RunState,
    default_run_state,
)

IGNORE, REPORT, STOP = ErrorAction
READ, WRITE = True, False

POLICIES = [
    (OnError.REPORT, errno.EIO, REPORT),
    (OnError.REPORT, errno.ENOSPC, REPORT),
    (OnError.IGNORE, errno.EIO, IGNORE),
    (OnError.IGNORE, errno.ENOSPC, IGNORE),
    (OnError.STOP, errno.EIO, STOP),
    (OnError.STOP, errno.ENOSPC, STOP),
    (OnError.ENOSPC, errno.EIO, REPORT),
    (OnError.ENOSPC, errno.ENOSPC, STOP),
]


@pytest.mark.parametrize(("policy", "error", "action"), POLICIES)
async def test_what_a_policy_says(policy: OnError, error: int, action: ErrorAction) -> None:
    async with BlockBackend() as blk:
        blk.set_on_error(policy, OnError.REPORT)
        assert blk.get_on_error(READ) is policy
        assert blk.get_error_action(READ, error) is action
        assert blk.get_error_action(WRITE, error) is REPORT
        blk.set_on_error("report", policy.value)
        assert blk.get_on_error(WRITE) is policy
        assert blk.get_error_action(WRITE, error) is action
        assert blk.get_error_action(READ, error) is REPORT


async def test_as_it_is_born() -> None:
    async with BlockBackend() as blk:
        assert (blk.get_on_error(READ), blk.get_on_error(WRITE)) == (OnError.REPORT, OnError.ENOSPC)
        assert blk.run_state is default_run_state()


async def test_the_order_of_a_stop(blk: BlockBackend) -> None:
    order: list[str] = []
    machine = RunState()
    machine.add_change_handler(lambda running, state: order.append(f"{state} {blk.iostatus()}"))
    blk.listen(lambda event: order.append(f"{type(event).__name__} {blk.iostatus()} {machine.state}"))
    blk.set_run_state(machine)
    blk.iostatus_enable()
    blk.error_action(blk.get_error_action(WRITE, errno.ENOSPC), WRITE, errno.ENOSPC)
    assert order == ["BlockIoError nospace running", "io-error nospace"]
    assert not machine.running


async def test_what_the_event_says(blk: BlockBackend) -> None:
    events: list[object] = []
    blk.listen(events.append)
    assert blk.bs is not None
    name = blk.bs.node_name
    blk.error_action(REPORT, READ, errno.EIO)
    blk.iostatus_enable()
    blk.monitor_add_blk("disk0")
    blk.error_action("ignore", WRITE, errno.ENOSPC)
    await blk.remove_bs()
    blk.error_action(REPORT, WRITE, errno.EIO)
    assert events == [
        BlockIoError("", name, IoOperation.READ, REPORT, None, os.strerror(errno.EIO)),
        BlockIoError("disk0", name, IoOperation.WRITE, IGNORE, True, os.strerror(errno.ENOSPC)),
        BlockIoError("disk0", None, IoOperation.WRITE, REPORT, False, os.strerror(errno.EIO)),
    ]
    assert blk.iostatus() is IoStatus.OK  # only a stop sets it
    assert default_run_state().running


async def test_the_first_error_sticks_until_it_is_reset() -> None:
    async with BlockBackend() as blk:
        blk.set_on_error("stop", "stop")
        blk.iostatus_enable()
        assert blk.iostatus_is_enabled()
        blk.iostatus_set_err(errno.ENOSPC)
        blk.iostatus_set_err(errno.EIO)
        assert blk.iostatus() is IoStatus.NOSPACE
        blk.iostatus_reset()
        blk.iostatus_set_err(errno.EIO)
        blk.iostatus_set_err(errno.ENOSPC)
        assert blk.iostatus() is IoStatus.FAILED
        blk.iostatus_disable()
        blk.iostatus_reset()
        assert blk.iostatus() is IoStatus.FAILED  # not tracked: neither set nor reset
        blk.iostatus_enable()
        assert blk.iostatus() is IoStatus.OK


@pytest.mark.parametrize(
    ("read", "write", "enabled"),
    [
        ("report", "report", False),
        ("report", "enospc", True),
        ("report", "stop", True),
        ("stop", "ignore", True),
        ("enospc", "report", False),
        ("ignore", "ignore", False),
    ],
)
async def test_when_the_status_counts(read: str, write: str, enabled: bool) -> None:
    async with BlockBackend() as blk:
        blk.set_on_error(read, write)
        assert not blk.iostatus_is_enabled()
        blk.iostatus_enable()
        assert blk.iostatus_is_enabled() is enabled


async def test_mistakes() -> None:
    async with BlockBackend() as blk:
        heard: list[object] = []
        blk.listen(heard.append)
        with pytest.raises(RuntimeError, match="iostatus_enable"):
            blk.iostatus_set_err(errno.EIO)
        with pytest.raises(RuntimeError, match="iostatus_enable"):
            blk.error_action(STOP, READ, errno.EIO)
        with pytest.raises(ValueError, match="positive"):
            blk.error_action(REPORT, READ, -errno.EIO)
        with pytest.raises(ValueError, match="positive"):
            blk.get_error_action(READ, -errno.EIO)
        with pytest.raises(ValueError, match="not a valid ErrorAction"):
            blk.error_action("explode", READ, errno.EIO)
        with pytest.raises(ValueError, match="not a valid OnError"):
            blk.set_on_error("stop", "sometimes")
        assert blk.get_on_error(READ) is OnError.REPORT
        blk.set_on_error("auto", "auto")
        with pytest.raises(RuntimeError, match="'auto'"):
            blk.get_error_action(READ, errno.EIO)
        assert heard == []
        assert default_run_state().running


# -- the machine


async def test_an_async_machine_is_stopped_in_its_own_loop_and_goes_on() -> None:
    steps: list[str] = []

    async def stop(state: MachineState) -> None:
        steps.append(f"pausing for {state} {AioContext.current().is_current}")
        await asyncio.sleep(0)
        steps.append("paused")

    machine = RunState(stop=stop)
    stopped = asyncio.Event()
    machine.add_change_handler(lambda running, state: None if running else stopped.set())
    async with BlockBackend() as blk:
        blk.set_run_state(machine)
        blk.set_on_error("stop", "stop")
        blk.iostatus_enable()
        blk.error_action(STOP, WRITE, errno.EIO)
        blk.error_action(STOP, WRITE, errno.EIO)  # another disk, or another request: one stop
        assert machine.running  # a request, not the deed
        await asyncio.wait_for(stopped.wait(), 5)
        assert steps == ["pausing for io-error True", "paused"]
        assert machine.check(MachineState.IO_ERROR)
        blk.iostatus_reset()
        machine.set(MachineState.RUNNING)
        assert machine.running


async def test_going_on_that_overtakes_the_stop_wins() -> None:
    machine = RunState()
    async with BlockBackend() as blk:
        blk.set_run_state(machine)
        blk.iostatus_enable()
        blk.listen(lambda event: machine.set(MachineState.RUNNING))  # the operator hears of it and says: go on
        blk.error_action(STOP, WRITE, errno.EIO)
        assert machine.running


async def test_a_machine_that_does_not_run_stays_as_it_is() -> None:
    for state in (MachineState.PAUSED, MachineState.INMIGRATE):
        machine = RunState(state)
        machine.request_stop(MachineState.IO_ERROR)
        assert machine.state is state


async def test_change_handlers() -> None:
    heard: list[str] = []
    machine = RunState(MachineState.PRELAUNCH)

    def broken(running: bool, state: MachineState) -> None:
        raise LookupError("a handler failed")

    stop = machine.add_change_handler(broken)
    machine.add_change_handler(lambda running, state: heard.append(f"{running} {state}"))
    with pytest.raises(LookupError):
        machine.set(MachineState.INMIGRATE)
    stop()
    stop()
    machine.set(MachineState.INMIGRATE)  # it is already
    machine.set(MachineState.RUNNING)
    with pytest.raises(RuntimeError, match="make a new RunState"):
        machine.set(MachineState.INMIGRATE)
    assert heard == ["False inmigrate", "True running"]


async def test_a_stop_that_fails_is_reported_and_counts() -> None:
    loop = asyncio.get_running_loop()
    reported: list[str] = []
    loop.set_exception_handler(lambda loop, context: reported.append(str(context["exception"])))

    async def stop(state: MachineState) -> None:
        raise LookupError("no such machine")

    machine = RunState(stop=stop)
    machine.request_stop(MachineState.IO_ERROR)
    for _ in range(5):
        await asyncio.sleep(0)
    assert machine.check(MachineState.IO_ERROR)
    gc.collect()
    await asyncio.sleep(0)
    assert reported == ["no such machine"]


def test_a_machine_needs_a_loop_to_be_stopped_in() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        RunState(stop=lambda state: None)
