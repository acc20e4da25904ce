"""The arithmetic of leaky buckets, and limits that contradict each other, in QEMU's words."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from blockio.errors import OptionError
from blockio.throttle import Direction, Limit, ThrottleConfig, ThrottleState

READ, WRITE = Direction

CONTRADICTIONS = {
    "bps-total=1,bps-read=1": "bps/iops/max total values and read/write values cannot be used at the same time",
    "iops-total=1,iops-write=1": "bps/iops/max total values and read/write values cannot be used at the same time",
    "iops-total-max=4,iops-read-max=3": "bps/iops/max total values and read/write values cannot be used at the same "
    "time",
    "iops-size=4096": "iops size requires an iops value to be set",
    "iops-size=4096,bps-total=5": "iops size requires an iops value to be set",
    "bps-total-max=5": "bps_max/iops_max require corresponding bps/iops values",
    "iops-write-max=5": "bps_max/iops_max require corresponding bps/iops values",
    "bps-total=10,bps-total-max=5": "bps_max/iops_max cannot be lower than bps/iops",
    "bps-total=10,bps-total-max-length=2": "burst length set without burst rate",
    "bps-read-max-length=0": "the burst length cannot be 0",
    "iops-read=1000000000000001": "bps/iops/max values must be within [0, 1000000000000000]",
    "bps-total=-1": "bps/iops/max values must be within [0, 1000000000000000]",
    "bps-total=10,bps-total-max=1000000000000,bps-total-max-length=5000": "burst length too high for this burst rate",
    "bps-total-max-length=4294967296": "bps-total-max-length value must be in the range [0, 4294967295]",
}


def parsed(text: str) -> dict[str, int]:
    return {name: int(value) for name, value in (pair.split("=") for pair in text.split(","))}


@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_contradictions(text: str) -> None:
    with pytest.raises(OptionError, match=re.escape(CONTRADICTIONS[text])):
        ThrottleConfig.of(parsed(text))


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize("text", CONTRADICTIONS)
def test_contradictions_are_qemus(tmp_path: Path, text: str) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(4096))
    limits = ",".join(f"limits.{pair}" for pair in text.split(","))
    node = f"driver=throttle,throttle-group=g,file.driver=file,file.filename={image}"
    done = subprocess.run(
        ["qemu-io", "--object", f"throttle-group,id=g,{limits}", "-c", "quit", "--image-opts", node],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == f"qemu-io: {CONTRADICTIONS[text]}\n"


def test_names() -> None:
    config = ThrottleConfig.of(
        {"bps-total": 10, "bps-total-max": 20}, bps_total_max_length=3, iops_read=7, iops_size=512
    )
    assert config == ThrottleConfig(bps_total=Limit(10, 20, 3), iops_read=Limit(7), op_size=512)
    assert ThrottleConfig.of(config.as_dict()) == config
    with pytest.raises(TypeError, match="there is no throttle limit 'bps-everything'"):
        ThrottleConfig.of({"bps-everything": 1})
    with pytest.raises(TypeError, match=r"bps_total.avg must be an int, not 1.5"):
        ThrottleConfig(bps_total=Limit(1.5))  # type: ignore[arg-type]  # that is the mistake


def test_nothing_is_limited_by_default() -> None:
    state = ThrottleState(ThrottleConfig(), 0.0)
    assert not ThrottleConfig().enabled
    assert not state.limited
    state.account(WRITE, 1 << 40, 0.0)
    assert state.wait(WRITE, 0.0) == 0


def test_a_tenth_of_a_second_at_once() -> None:
    """A bucket that may not burst: 100 of 1000 a second go at once, the next waits for what is over."""
    state = ThrottleState(ThrottleConfig.of(bps_total=1000), 50.0)
    state.account(READ, 60, 50.0)
    assert state.wait(WRITE, 50.0) == 0
    state.account(WRITE, 40, 50.0)
    assert state.wait(READ, 50.0) == 0, "exactly full is not over"
    state.account(READ, 500, 50.0)
    assert state.wait(READ, 50.0) == pytest.approx(0.5)
    assert state.wait(READ, 50.2) == pytest.approx(0.3)
    assert state.wait(READ, 50.5) == pytest.approx(0)


def test_a_burst_of_one_second_goes_at_once() -> None:
    state = ThrottleState(ThrottleConfig.of(iops_write=10, iops_write_max=100), 0.0)
    for _ in range(101):
        assert state.wait(WRITE, 0.0) == 0
        state.account(WRITE, 1, 0.0)
    assert state.wait(WRITE, 0.0) == pytest.approx(0.1)
    assert state.wait(READ, 0.0) == 0


def test_a_long_burst_is_held_to_its_rate() -> None:
    """4 seconds of 100 a second: a tenth of a second's worth at once, then by the burst's rate, then by the average."""
    state = ThrottleState(ThrottleConfig.of(iops_total=10, iops_total_max=100, iops_total_max_length=4), 0.0)
    now, waits = 0.0, []
    for _ in range(500):
        wait = state.wait(READ, now)
        waits.append(round(wait, 6))
        now += wait
        state.account(READ, 1, now)
    assert waits[:11] == [0] * 11
    assert set(waits[11:430]) == {0.01}
    assert set(waits[460:]) == {0.1}


def test_operations_of_a_size() -> None:
    state = ThrottleState(ThrottleConfig.of(iops_total=100, iops_size=4096), 0.0)
    state.account(READ, 100, 0.0)
    assert state.wait(READ, 0.0) == 0
    state.account(READ, 4096 * 10 + 2048, 0.0)
    assert state.wait(READ, 0.0) == pytest.approx(0.015)


def test_idle_time_is_not_saved_up() -> None:
    state = ThrottleState(ThrottleConfig.of(bps_read=1000), 0.0)
    state.account(READ, 100, 10_000.0)
    state.account(READ, 1000, 10_000.0)
    assert state.wait(READ, 10_000.0) == pytest.approx(1.0)


def test_a_clock_seen_in_another_order_takes_nothing_back() -> None:
    state = ThrottleState(ThrottleConfig.of(bps_read=1000), 0.0)
    state.account(READ, 1100, 5.0)
    assert state.wait(READ, 4.0) == pytest.approx(1.0)
    assert state.wait(READ, 6.0) == pytest.approx(0.0)


def test_taking_back() -> None:
    state = ThrottleState(ThrottleConfig.of(bps_write=1000, iops_total=10), 0.0)
    state.account(WRITE, 500, 0.0)
    state.account(WRITE, 500, 0.0)
    assert state.wait(WRITE, 0.0) == pytest.approx(0.9)
    state.take_back(WRITE, 500, 0.0)
    assert state.wait(WRITE, 0.0) == pytest.approx(0.4)
    state.take_back(WRITE, 500, 0.0)
    assert state.wait(WRITE, 0.0) == 0
