"""``blockio bench`` as its users meet it: results, refusals, missing peers, interruption, and whose files it writes."""

from __future__ import annotations

import asyncio
import itertools
import re
import signal
from pathlib import Path

import msgspec
import pytest

from blockio.backend import BlockBackend
from blockio.bench import layers, measuring, peers
from blockio.bench.job import Job
from blockio.bench.load import Done, send
from blockio.bench.report import Report
from blockio.bench.workload import Contender
from blockio.cli.bench import main
from tests.support.full_disk import small_file_system
from tests.support.qemu import assert_clean, pattern, qemu_img

SIZE = 1 << 20
FEW = ["--count", "40", "--rounds", "2", "--no-warm-up", "--depth", "1,3"]


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the tool makes its own disks; they must be gone afterwards."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(pattern(SIZE))
    return path


def run(*words: str | Path) -> int:
    return main([str(word) for word in words], "bench")


def test_a_disk_of_its_own(capfd: pytest.CaptureFixture[str], scratch: Path) -> None:
    assert run("--size", "1M", "--workload", "random,zipf:0.9", "--read", "50", "--peers", "none", *FEW) == 0
    shown = capfd.readouterr().out
    for title in ("4 KiB random 50 % reads, QD 1", "4 KiB zipf(0.9) 50 % reads, QD 3"):
        assert f"qcow2: {title}: " in shown
    assert "p99.9" in shown
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        ["--overlays", "2"],
        ["--compressed"],
        ["--encrypted"],
        ["-f", "raw", "--lane", "slow", "--aio", "threads"],
        ["--lane", "fast", "--throttle", "iops-total=100000"],
        ["--time", "0.01", "--count", "1000000"],
        ["-t", "none", "--read", "0", "--flush-interval", "4"],
    ],
)
def test_kinds_of_disks_and_ways(words: list[str], capfd: pytest.CaptureFixture[str], scratch: Path) -> None:
    assert run("--size", "1M", "--peers", "none", *FEW, *words, "--json", "-") == 0
    report = msgspec.json.decode(capfd.readouterr().out, type=Report)
    assert [len(workload.rates[workload.ours]) for workload in report.workloads] == [2, 2]
    assert all(workload.latency is not None for workload in report.workloads)
    assert list(scratch.iterdir()) == []


def test_results_as_json_as_a_page_and_compared(
    raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    speed = 1.0
    monkeypatch.setattr(Done, "rate", property(lambda done: 100.0 * speed))
    earlier, page = tmp_path / "earlier.json", tmp_path / "page.html"
    words: list[str | Path] = ["-f", "raw", raw, "--peers", "none", *FEW]
    assert run(*words, "--json", earlier) == 0
    speed = 2.0
    capfd.readouterr()
    assert run(*words, "--compare", earlier, "--html", page) == 0
    shown = capfd.readouterr().out
    for depth in (1, 3):
        assert re.search(rf"disk.raw: 4 KiB sequential reads, QD {depth} +blockio +100 +200 +2.00\n", shown)
    assert "Against the earlier result" in page.read_text()
    assert run("-f", "raw", raw, "--peers", "none", *FEW, "--block-size", "8k", "--compare", earlier) == 0
    assert "nothing was measured both times" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}", "'FILE' is no result of this harness: "),
        (b"\xff", "'FILE' is no result of this harness: "),
        (b'{"version": 9, "made": "", "machine": []}', "'FILE' has version 9, this harness reads 1"),
    ],
)
def test_what_is_no_earlier_result_is_refused_before_anything_runs(
    content: bytes, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "earlier.json"
    path.write_bytes(content)
    assert run("--compare", path) == 1
    assert capfd.readouterr().err.startswith("bench: " + message.replace("FILE", str(path)))


def test_layers(
    raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "REQUESTS", 20)
    few = ["--layers", "--rounds", "1", "--depth", "1"]
    page = tmp_path / "page.html"
    assert run("--size", "1M", "--lane", "slow", "--read", "100,0", "--html", page, *few) == 0
    shown = capfd.readouterr().out
    for words in ("qcow2: 4 KiB sequential reads, QD 1, slow lane", "4 KiB sequential writes", "  system call "):
        assert words in shown
    assert "Where a request's time goes" in page.read_text().replace("&#x27;", "'")
    assert list(scratch.iterdir()) == []
    before = raw.read_bytes()
    assert run("-f", "raw", raw, "--read", "0", "--overwrite", raw, *few) == 1
    assert capfd.readouterr().err == "bench: --layers writes into disks of its own only\n"
    assert raw.read_bytes() == before
    assert run("-f", "raw", raw, *few) == 0


def test_an_image_that_is_given_is_only_read(raw: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = raw.read_bytes()
    assert run("-f", "raw", raw, "--peers", "aiofiles,preadv", *FEW) == 0
    assert raw.read_bytes() == before
    shown = capfd.readouterr().out
    assert "bare preadv loop (the limit)" in shown
    assert "left out: preadv: a loop has one request at a time" in shown


@pytest.mark.parametrize("share", ["0", "50", "80"])
def test_nothing_is_written_that_was_not_given_away(
    share: str, raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = raw.read_bytes()
    other = tmp_path / "other"
    other.write_bytes(b"x")
    for given in ([], ["--overwrite", str(other)], ["--overwrite", str(tmp_path / "missing")]):
        assert run("-f", "raw", raw, "--read", share, *given, *FEW) == 1
        assert f"'{raw}' would be overwritten" in capfd.readouterr().err
    assert raw.read_bytes() == before
    assert run("-f", "raw", raw, "--read", share, "--overwrite", raw, "--peers", "none", *FEW) == 0
    assert raw.read_bytes() != before


@pytest.mark.peer("qemu-img")
def test_the_file_counts_not_its_name(raw: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Links and stacks: whatever leads to a file that was not given away."""
    link, disk = tmp_path / "link", tmp_path / "disk.qcow2"
    link.symlink_to(raw)
    qemu_img("convert", "-O", "qcow2", raw, disk)
    words = ["--read", "0", "--peers", "none", *FEW]
    stacks = {
        raw: f"driver=raw,file.driver=file,file.filename={link},file.aio=threads",
        disk: f"driver=raw,file.driver=qcow2,file.file.driver=file,file.file.filename={disk}",
    }
    for file, stack in stacks.items():
        before = file.read_bytes()
        assert run("--image-opts", stack, *words) == 1
        assert "would be overwritten" in capfd.readouterr().err
        assert file.read_bytes() == before
        assert run("--image-opts", stack, *words, "--overwrite", file) == 0
        assert file.read_bytes() != before
    assert run("--image-opts", "driver=null-co,size=1M", *words) == 0, "nothing is kept there"
    assert_clean(disk)


@pytest.mark.peer("qemu-img")
def test_a_backing_file_is_only_read_and_no_peer_writes_into_a_container(raw: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk.qcow2"
    qemu_img("create", "-f", "qcow2", "-b", raw, "-F", "raw", disk)
    before = raw.read_bytes()
    assert run("-f", "qcow2", disk, "--read", "0", "--overwrite", disk, "--peers", "aiofiles,preadv,fio", *FEW) == 0
    assert raw.read_bytes() == before
    assert_clean(disk)


def test_peers_that_are_not_installed_are_named(
    raw: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "have", lambda program: False)
    assert run("-f", "raw", raw, *FEW, "--depth", "1") == 0
    shown = capfd.readouterr().out
    assert "left out: qemu-img: not installed" in shown
    assert "left out: fio: not installed" in shown


@pytest.mark.peer("qemu-img")
@pytest.mark.peer("fio")
@pytest.mark.parametrize(
    ("words", "beside", "left_out"),
    [
        (["-f", "raw"], ["qemu-img bench", "fio", "aiofiles", "bare preadv loop (the limit)"], []),
        (["--read", "0", "--workload", "strided"], ["qemu-img bench", "fio", "aiofiles", "bare"], []),
        (["-t", "none"], ["qemu-img bench", "fio", "bare"], ["aiofiles: knows no O_DIRECT"]),
        (["--overlays", "1", "--workload", "zipf"], ["fio", "aiofiles"], ["qemu-img: its bench has no zipf requests"]),
        (["--encrypted"], ["fio", "aiofiles"], ["qemu-img: cannot be given this stack"]),
        (["--time", "0.05"], ["qemu-img bench", "fio", "aiofiles", "bare"], []),
        (["--throttle", "iops-total=100000"], [], []),
    ],
)
def test_peers_do_the_same(
    words: list[str], beside: list[str], left_out: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--size", "1M", *words, "--count", "20", "--rounds", "1", "--depth", "1", "--no-latency") == 0
    shown = capfd.readouterr().out
    for name in beside:
        assert re.search(rf"QD 1  {re.escape(name)}", shown), shown
    found = re.findall("left out: (.*)", shown)
    assert found == left_out


def test_a_peer_that_fails_is_left_out_with_what_it_said(
    raw: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> float:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(measuring, "peers", lambda *_: ([Contender("unlucky", fail)], []))
    assert run("-f", "raw", raw, *FEW, "--depth", "1") == 0
    assert "left out: unlucky: out of luck" in capfd.readouterr().out


def test_interrupted_the_partial_results_are_shown_and_marked(
    raw: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, scratch: Path
) -> None:
    runs = iter(range(100))

    def interrupt() -> float:
        if next(runs) == 1:
            raise KeyboardInterrupt
        return 5.0

    monkeypatch.setattr(measuring, "peers", lambda *_: ([Contender("slow", interrupt)], []))
    result = scratch.parent / "result.json"
    assert run("-f", "raw", raw, *FEW, "--json", result) == 130
    assert "INTERRUPTED: rounds are missing, the figures are partial" in capfd.readouterr().out
    report = msgspec.json.decode(result.read_bytes(), type=Report)
    assert report.interrupted
    assert [row.rounds for workload in report.workloads for row in workload.rows] == [1]
    assert list(scratch.iterdir()) == []


def test_a_real_interrupt_in_the_middle_of_a_run(
    raw: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second run of ours, which would take an hour."""
    runs = itertools.count(1)

    async def interrupted(blk: BlockBackend, job: Job) -> Done:
        if next(runs) == 1:
            return await send(blk, msgspec.structs.replace(job, seconds=None, count=100))
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        return await send(blk, job)

    monkeypatch.setattr(measuring, "send", interrupted)
    words: list[str | Path] = ["-f", "raw", raw, "--peers", "none", "--rounds", "2", "--no-warm-up"]
    assert run(*words, "--time", "3600", "--depth", "4") == 130
    shown = capfd.readouterr().out
    assert "disk.raw: 4 KiB sequential reads, QD 4: " in shown
    assert "rounds: 1\n" in shown
    assert "INTERRUPTED" in shown


def test_a_file_system_that_fills_up(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_file_system(tmp_path, 2 << 20) as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        assert run("--size", "8M", "--peers", "none", *FEW) == 1
        assert "No space left on device" in capfd.readouterr().err
        assert list(folder.iterdir()) == []


def test_what_fails_on_the_way_is_said_beside_what_was_measured(
    raw: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that vanishes between two workloads."""
    calls = itertools.count(1)

    def vanish(*_: object) -> tuple[list[Contender], list[str]]:
        if next(calls) == 2:
            raw.unlink()
        return [], []

    monkeypatch.setattr(measuring, "peers", vanish)
    assert run("-f", "raw", raw, *FEW) == 1
    captured = capfd.readouterr()
    assert f"Could not open '{raw}': Could not open '{raw}': No such file or directory" in captured.err
    assert "disk.raw: 4 KiB sequential reads, QD 1: " in captured.out
    assert f"FAILED: Could not open '{raw}'" in captured.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workload", "spiral"], "bench: Unknown workload 'spiral': there are sequential, strided, random, zipf\n"),
        (["--workload", "random:3"], "bench: Unknown workload 'random:3': only zipf takes a number\n"),
        (["--workload", "zipf:x"], "bench: Invalid zipf exponent 'x'\n"),
        (["--peers", "dd"], "bench: Unknown peer 'dd': there are qemu-img, fio, aiofiles, preadv\n"),
        (["--suite", "sweets"], "bench: Unknown suite 'sweets': there are reads, writes"),
        (["--suite", "reads", "--depth", "3"], "bench: --suite brings its own disks and jobs: --depth has no place"),
        (["--size", "2k"], "bench: The disk is too small: a job may use 2048 of its 2048 bytes"),
        (["--size", "much"], "bench: argument --size: 'much' is no size\n"),
        (["--depth", "deep"], "bench: argument --depth: 'deep' is no list of numbers\n"),
        (["--lane", "bus"], "bench: argument --lane: invalid choice: 'bus'"),
        (["--throttle", "iops-total=x"], "bench: Invalid limit 'iops-total=x'\n"),
        (["--encrypted", "--overlays", "1"], "bench: Overlays stand on disks that a file name opens"),
        (["--compressed", "-f", "raw"], "bench: Only qcow2 disks can be compressed here\n"),
        (["--bogus"], "bench: unrecognized arguments: --bogus\nTry 'bench --help'"),
        (
            ["/nowhere/disk"],
            "bench: Could not open '/nowhere/disk': Could not open '/nowhere/disk': No such",
        ),
        (["--compare", "/nowhere/result"], "bench: No such file or directory"),
    ],
)
def test_refusals(words: list[str], message: str, capfd: pytest.CaptureFixture[str], scratch: Path) -> None:
    assert run(*words) == 1
    assert capfd.readouterr().err.startswith(message)
    assert list(scratch.iterdir()) == []


def test_help_and_list(capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "--overwrite FILE" in capfd.readouterr().out
    assert run("--list") == 0
    assert "reads, writes, direct" in capfd.readouterr().out
