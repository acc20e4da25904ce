"""What every test stands on.

* ``@pytest.mark.peer("qemu-img")``: needs that program; skipped with a reason where it is missing, failed instead
  when ``BLOCKIO_REQUIRE_PEERS=1`` says that a missing peer is a fault (continuous integration).
* ``@pytest.mark.both_loops``: an async test that runs once on the stock loop and once on uvloop.
* Blocking calls made by blockio's own code in a running loop fail the test (blockbuster), see ``_BLOCKING_IS_FINE``.
* After every test nothing may be left over: no descriptor, no thread, no task. ``@pytest.mark.leaves_behind(reason)``
  is for the rare test whose subject is a leak.
* hypothesis repeats the same examples in every run, so a red run can be repeated; ``make explore`` looks further.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import linecache
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import hypothesis
import pytest
import uvloop
from blockbuster import BlockBuster, BlockBusterFunction

from tests.support.leaks import Census

_BLOCKING_IS_FINE: Final = (
    # Looking up a driver reads the entry points of what is installed, once for a process.
    ("blockio/driver/registry.py", {"_read_entry_points"}),
    ("importlib/metadata/__init__.py", {"entry_points", "read_text", "children", "search", "mtime", "lookup"}),
    ("blockio/driver/registry.py", {"_read_own_entry_points", "everything", "_load"}),
    # A module that another thread is loading at this moment is waited for, once in a process.
    ("<frozen importlib._bootstrap>", {"acquire"}),
    # Opening and stat-ing a file is done in place, as QEMU does it: descriptors come before any engine can serve them.
    ("blockio_drivers/file.py", {"open", "reopen_prepare", "co_create_file", "co_getlength", "check_perm", "set_perm"}),
    # A thread that has said that it ends is joined in place; locks of process-wide tables are never held long.
    ("blockio/aio/context.py", {"_end"}),
    ("blockio/aio/threads.py", {"close"}),
    ("blockio/graph/names.py", {"find_node", "all_nodes", "claim", "release"}),
    ("blockio/backend/names.py", {"enlist", "delist", "all_backends", "named_backends", "by_name", "monitor_add_blk"}),
    # Nor is the lock of a throttle group, whose members may live on several threads.
    (
        "blockio/throttle/groups.py",
        {"_cancelled", "_enter", "_join", "_leave", "_set_off", "_turn_came", "arrive", "members", "set_config"},
    ),
    ("blockio/throttle/groups.py", {"__init__", "delete", "find_group", "group_named"}),
    # For the same reason, which file a name leads to is looked up in place, once for each name that is opened.
    ("blockio/graph/open.py", {"_identify"}),
    # What the bare system call costs is measured by making it.
    ("benchmarks/backend.py", {"_bare"}),
    ("blockio/bench/layers.py", {"_bare", "_levels", "ask_kernel"}),
    # A tool prints in place: its loop serves nobody else, and what was said must not overtake what follows.
    ("cli/output.py", {"_write"}),
    # Where a new image goes is looked up before there is an engine for it; it gets its name, or is removed, at the end.
    ("blockio/img/creating.py", {"_is_device"}),
    ("blockio/img/placing.py", {"_choose_name", "_follow", "__aexit__", "_settle", "_rename"}),
    # A pipe takes what it has room for at this moment; the file that keeps what comes out of one is made in place.
    ("blockio/img/piping.py", {"_some", "spooled"}),
    # ``-s`` makes and unlinks one temporary file while it opens its image.
    ("cli/io/snapshot.py", {"open_on_snapshot"}),
    # Tests that look at what happened on disk may block: nobody else is in their loop.
    ("_pytest/tmpdir.py", {"mktemp", "getbasetemp"}),
    ("_pytest/capture.py", {"readouterr"}),
)
"""Pairs of a file's end and the functions in it under which blockio may block the loop, each with its reason."""

_FRAMES_KEPT: Final = 3  # asyncio's own, and the two nearest of whoever made the future
_RUNNER: Final = "_function_scoped_runner"  # pytest-asyncio's fixture that owns a test's loop

hypothesis.settings.register_profile(
    "test", deadline=None, derandomize=True, max_examples=30, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.register_profile(
    "explore", deadline=None, max_examples=2000, suppress_health_check=list(hypothesis.HealthCheck), print_blob=True
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "test"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: an async test that runs on the stock loop and on uvloop")
    config.addinivalue_line("markers", "leaves_behind(reason): the test is about a leak; nothing is counted after it")


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("both_loops") is None:
        return {"asyncio": asyncio.new_event_loop}
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("peer"):
        missing = [name for name in marker.args if shutil.which(name) is None]
        if not missing:
            continue
        reason = f"{', '.join(missing)} not installed"
        if os.environ.get("BLOCKIO_REQUIRE_PEERS") == "1":
            pytest.fail(f"{reason}, and BLOCKIO_REQUIRE_PEERS=1", pytrace=False)
        pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _nothing_blocks_the_loop() -> Iterator[None]:
    """Blocking system calls from blockio's code, in a thread with a running loop, raise ``BlockingError``."""
    ours = ["blockio", "blockio_drivers"]
    buster = BlockBuster(ours)

    def cannot_wait(*args: Any, **kwargs: Any) -> bool:
        flags = args[3] if len(args) > 3 else kwargs.get("flags", 0)
        return bool(flags & os.RWF_NOWAIT)

    for name in ("preadv", "pwritev"):
        buster.functions[f"os.{name}"] = BlockBusterFunction(
            None, f"os.{name}", scanned_modules=ours, can_block_predicate=cannot_wait
        )
    for name in ("pread", "pwrite", "fsync", "fdatasync", "copy_file_range", "posix_fallocate"):
        buster.functions[f"os.{name}"] = BlockBusterFunction(None, f"os.{name}", scanned_modules=ours)
    for function in buster.functions.values():
        for filename, names in _BLOCKING_IS_FINE:
            function.can_block_in(filename, names)
    buster.activate()
    yield
    buster.deactivate()


@pytest.fixture(scope="session", autouse=True)
def _debug_mode_keeps_short_stacks() -> Iterator[None]:
    """asyncio's debug mode keeps with each future and callback the stack that made it: here, its nearest frames.

    All of it, down to pytest's own frames, and a look on disk whether each of their files has changed since, cost
    more than everything else that most tests do. What debug mode checks stays as it is.
    """
    walk = traceback.walk_stack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traceback, "walk_stack", lambda frame: itertools.islice(walk(frame), _FRAMES_KEPT))
        patch.setattr(linecache, "checkcache", lambda filename=None: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _interrupts_are_heard() -> Iterator[None]:
    """A shell starts ``make test &`` with SIGINT ignored, and every tool that a test starts would inherit that."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session", autouse=True)
def _what_the_process_keeps() -> None:
    """libuv opens its signal pipe with the first loop of a process and keeps it: have that before anybody counts."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def _nothing_left_open(request: pytest.FixtureRequest, _what_the_process_keeps: None) -> Iterator[None]:
    """The outermost fixture: when the test's loop is gone too, its descriptors and threads must be."""
    if request.node.get_closest_marker("leaves_behind"):
        yield
        return
    before = Census.take()
    yield
    left = Census.take() - before
    if left:
        gc.collect()  # what only a cycle holds is not lost
        left = Census.take() - before
    assert not left, f"left behind by the test: {left}"


@pytest.fixture(autouse=True)
def _no_task_left(request: pytest.FixtureRequest, _nothing_left_open: None) -> Iterator[None]:
    """Between the test's own fixtures and its loop: nothing may still be running in that loop."""
    if _RUNNER not in request.fixturenames or request.node.get_closest_marker("leaves_behind"):
        yield
        return
    runner: asyncio.Runner = request.getfixturevalue(_RUNNER)
    yield
    tasks = asyncio.all_tasks(runner.get_loop())
    assert not tasks, f"tasks left running by the test: {tasks}"
