"""Job files of fio: what they ask for, what is refused, and that fio itself reads them alike."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest

from blockio.bench.fiojob import FioJob, read_fio
from blockio.bench.job import Job
from blockio.bench.report import Report
from blockio.cli.bench import main
from blockio.errors import OptionError
from tests.support.qemu import pattern

COMMON = """\
; what many job files look like
[global]
ioengine=libaio   # a comment
direct=1
bs=4k
runtime=30
size=1g
group_reporting
filename=/dev/disk\\:0

[readers]
rw=randread
iodepth=32
time_based
random_distribution=zipf:0.9
randseed=7

[writers]
stonewall
rw = randrw
rwmixwrite=30
bs=64KiB
fdatasync=8
"""


def test_a_common_job_file() -> None:
    readers, writers = read_fio(COMMON, "x.fio")
    assert readers == FioJob(
        name="readers",
        job=Job(pattern="zipf", theta=0.9, depth=32, seconds=30.0, seed=7),
        filename="/dev/disk:0",
        size=1 << 30,
        direct=True,
        aio="native",
    )
    assert writers.name == "writers"
    assert writers.job == Job(
        pattern="random", read_percent=70, block_size=65536, count=1, seconds=30.0, flush_interval=8
    )
    assert writers.on(1 << 30).count == 1 << 14, "each block once, in so many seconds"
    assert readers.on(1 << 30).count is None


@pytest.mark.parametrize(
    ("lines", "fields"),
    [
        ("", {"pattern": "sequential", "read_percent": 100, "block_size": 4096, "count": 256}),
        ("rw=write", {"read_percent": 0}),
        ("rw=rw", {"read_percent": 50}),
        ("readwrite=randrw\nrwmixread=90", {"pattern": "random", "read_percent": 90}),
        ("rw=read:12k", {"pattern": "strided", "step": 16384}),
        ("blocksize=1M", {"block_size": 1 << 20, "count": 1}),
        ("size=50%", {"size": 1 << 19, "count": 128}),
        ("offset=512k", {"offset": 1 << 19, "count": 128}),
        ("io_size=8m", {"count": 2048}),
        ("io_size=1", {"count": 1}),
        ("runtime=500ms\ntime_based=1", {"seconds": 0.5, "count": None}),
        ("runtime=2m\ntime_based", {"seconds": 120.0, "count": None}),
        ("runtime=3\ntime_based=0", {"seconds": 3.0, "count": 256}),
        ("rw=randread\nrandom_distribution=zipf", {"pattern": "zipf", "theta": 1.1}),
        ("rw=randread\nrandom_distribution=random", {"pattern": "random"}),
        ("random_distribution=zipf:2", {"pattern": "sequential"}),
        ("rw=write\nfsync=4", {"flush_interval": 4}),
        ("fsync=4", {"flush_interval": 0}),
        ("ioengine=io_uring\niodepth=4", {"depth": 4}),
        ("iodepth=4", {"depth": 1}),
        ("bs=8k\nbs=4k", {"block_size": 4096}),
    ],
)
def test_settings(lines: str, fields: dict[str, object]) -> None:
    (found,) = read_fio(f"[job]\n{lines}\n", "x.fio")
    job = found.on(1 << 20)
    assert {name: getattr(job, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("lines", "aio", "direct", "notes"),
    [
        ("ioengine=io_uring", "io_uring", False, []),
        ("ioengine=libaio\ndirect=1", "native", True, []),
        ("ioengine=libaio", "io_uring", False, ["libaio without direct=1 would block: io_uring is used"]),
        ("ioengine=psync\nbuffered=0", "threads", True, []),
        ("ioengine=sync\niodepth=9", "threads", False, ["fio's sync has one request at a time: iodepth is 1"]),
        ("ramp_time=5", None, False, ["ramp_time has no meaning here: one round warms up instead"]),
    ],
)
def test_engines_and_what_has_no_meaning(lines: str, aio: str | None, direct: bool, notes: list[str]) -> None:
    (found,) = read_fio(f"[job]\n{lines}\n", "x.fio")
    assert (found.aio, found.direct, list(found.notes)) == (aio, direct, notes)


def test_a_section_may_have_another_name_and_global_is_for_those_behind_it() -> None:
    first, second = read_fio("[a]\nname=b\n[global]\nbs=8k\n[c]\n", "x.fio")
    assert (first.name, first.job.block_size) == ("b", 4096)
    assert (second.name, second.job.block_size) == ("c", 8192)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'x.fio' has no jobs"),
        ("[global]\nbs=4k\n", "'x.fio' has no jobs"),
        ("bs=4k\n[a]\n", "'x.fio', line 1: 'bs=4k' stands before the first [job]"),
        ("[a]\n\nbogus=1\n", "'x.fio', line 3: 'bogus' is not understood here"),
        ("[a]\n=1\n", "'x.fio', line 2: '' is not understood here"),
        ("[a\nrw=read\n", "'x.fio', line 1: '[a' is no name of a job"),
        ("[a]\ndirect\n", "'x.fio', line 2: 'direct' is no setting"),
        ("[a]\ninclude other.fio\n", "'x.fio', line 2: 'include other.fio' is no setting"),
        ("[a]\nrw=trim\n", "line 2: rw=trim: there are read, write, randread, randwrite, rw, readwrite, randrw"),
        ("[a]\nrw=randread:8k\n", "line 2: rw=randread:8k: only sequential requests skip"),
        ("[a]\nbs=4k,8k\n", "line 2: bs=4k,8k: no size"),
        ("[a]\nbs=0\n", "line 2: bs=0: no size"),
        ("[a]\nsize=101%\n", "line 2: size=101: more than 100"),
        ("[a]\niodepth=0\n", "line 2: iodepth=0: less than 1"),
        ("[a]\niodepth=\u0664\n", "no number"),
        ("[a]\nruntime=soon\n", "line 2: runtime=soon: no time"),
        ("[a]\nruntime=1.2.3\n", "line 2: runtime=1.2.3: no time"),
        ("[a]\ntime_based\n", "fio job 'a': time_based needs a runtime"),
        ("[a]\ndirect=yes\n", "line 2: direct=yes: no number"),
        ("[a]\nnumjobs=4\n", "line 2: numjobs=4: one process measures; use iodepth"),
        ("[a]\nioengine=rbd\n", "line 2: ioengine=rbd: there are io_uring, libaio"),
        ("[a]\nfilename=/a:/b\n", "line 2: filename=/a:/b: one file a job"),
        ("[a]\nrandom_distribution=pareto:0.2\n", "random_distribution=pareto:0.2: there are random and zipf"),
        ("[a]\nrandom_distribution=zipf:x\n", "random_distribution=zipf:x: no number"),
        ("[a]\nrw=randread\nrandom_distribution=zipf:0\n", "Invalid zipf exponent 0"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        read_fio(text, "x.fio")
    assert message in str(caught.value)


def test_a_disk_that_is_smaller_than_the_job() -> None:
    (found,) = read_fio("[a]\nsize=1m\noffset=4k\n", "x.fio")
    with pytest.raises(OptionError, match="fio job 'a' uses 1048576 bytes, the disk has 1044480"):
        found.on(1 << 20)


# -- beside fio itself


@pytest.mark.peer("fio")
def test_fio_does_as_many_requests(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(pattern(1 << 20))
    text = f"""\
[global]
filename={disk}
ioengine=psync
[all]
[half]
rw=randread
norandommap
size=50%
bs=8kb
[more]
rw=rw
bs=16Ki
io_size=3m
[from]
offset=256k
size=0x40000
[skips]
rw=read:4k
io_size=100k
"""
    script = tmp_path / "jobs.fio"
    script.write_text(text)
    done = subprocess.run(
        ["fio", "--output-format=json", script], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    reported: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    theirs = {each["jobname"]: each["read"]["total_ios"] + each["write"]["total_ios"] for each in reported}
    ours = {each.name: each.on(1 << 20).count for each in read_fio(text, "x.fio")}
    assert ours == theirs


# -- as the tool


def _bench(*words: str | Path) -> int:
    return main([str(word) for word in words], "bench")


def test_the_tool_runs_a_job_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch, disk, script = tmp_path / "scratch", tmp_path / "disk.raw", tmp_path / "jobs.fio"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    disk.write_bytes(pattern(1 << 20))
    script.write_text(
        f"[global]\nsize=256k\nloops=3\n[theirs]\nfilename={disk}\nrw=randread\n[own]\nrw=randwrite\noffset=64k\n"
    )
    few: list[str | Path] = ["--fio", script, "--rounds", "1", "--no-warm-up", "--peers", "none"]
    assert _bench(*few, "--json", "-") == 0
    report = msgspec.json.decode(capfd.readouterr().out, type=Report)
    assert [workload.title for workload in report.workloads] == [
        "theirs, disk.raw: 4 KiB random reads, QD 1",
        "own, raw: 4 KiB random writes, QD 1",
    ]
    assert report.workloads[0].notes == ["loops has no meaning here: rounds repeat a job, see --rounds"]
    assert list(scratch.iterdir()) == []

    script.write_text(script.read_text().replace("randread", "randwrite"))
    before = disk.read_bytes()
    assert _bench(*few) == 1
    assert f"'{disk}' would be overwritten" in capfd.readouterr().err
    assert disk.read_bytes() == before
    assert _bench(*few, "--overwrite", disk) == 0
    assert disk.read_bytes() != before


@pytest.mark.parametrize(
    ("text", "words", "message"),
    [
        ("[a]\n", [], "bench: fio job 'a' names no file; for a disk that is made it must say its size\n"),
        ("[a]\nsize=10%\n", [], "bench: fio job 'a' names no file; for a disk that is made it must say its size\n"),
        ("[a]\nsize=1m\n", ["--depth", "3"], "bench: --fio brings its own jobs: --depth has no place beside it\n"),
        ("[a]\nsize=1m\n", ["--suite", "reads"], "bench: --suite brings its own disks and jobs: --fio has no place"),
        ("[a]\nfilename=/nowhere\n", [], "bench: Could not open '/nowhere'"),
        ("[a]\nrw=write\nfilename=/nowhere\n", ["--layers"], "bench: --layers writes into disks of its own only\n"),
    ],
)
def test_refusals_of_the_tool(
    text: str, words: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "x.fio"
    script.write_text(text)
    assert _bench("--fio", script, *words) == 1
    assert capfd.readouterr().err.startswith(message)
    assert _bench("--fio", tmp_path / "missing.fio") == 1
    assert "No such file or directory" in capfd.readouterr().err
