"""The public names: ``__all__`` is what is exported, and importing costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import blockio
from blockio.cli.manual import files
from blockio.testing.driver import MemoryDisk


def test_all_is_what_is_exported() -> None:
    assert blockio.__all__ == sorted(blockio.__all__)
    assert {*blockio._MODULE_OF, "img", "open"} == set(blockio.__all__)
    for name in blockio.__all__:
        assert getattr(blockio, name) is not None
    assert set(blockio.__all__) <= set(dir(blockio))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = blockio.nothing


def test_importing_loads_nothing() -> None:
    code = (
        "import sys, blockio\n"
        "print([name for name in sys.modules if name.startswith('blockio.')], 'asyncio' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_the_library_behind_the_tools_needs_no_import_of_its_own() -> None:
    code = "import blockio; print(blockio.img.info.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "info"


async def test_open_is_awaitable_and_a_context_manager() -> None:
    with MemoryDisk(4096) as disk:
        async with blockio.open(options=disk.options()) as blk:
            await blk.co_pwritev(0, b"x")
        assert blk.closed
        blk = await blockio.open(options=disk.options(), read_only=True)
        assert not blk.is_writable()
        await blk.close()
        async with blockio.open(options=disk.options(), resize=True) as blk:
            await blk.co_truncate(8192)
            await blk.close()
        with pytest.raises(blockio.OptionError, match="Unknown driver 'nope'"):
            await blockio.open("x", format="nope")
        opening = blockio.open(options=disk.options())
        with pytest.raises(AttributeError, match=r"no 'co_preadv' before anything is open: await blockio\.open"):
            opening.co_preadv  # type: ignore[attr-defined]  # noqa: B018  # somebody forgot to wait
        async with opening:
            with pytest.raises(RuntimeError, match="opens once"):
                await opening.__aenter__()


def test_the_pages_of_the_tools_say_what_the_tools_take() -> None:
    docs = Path(__file__).parents[1] / "docs"
    there = {str(path.relative_to(docs)) for kind in ("commands/*.md", "man/*.1") for path in docs.glob(kind)}
    wanted = files()
    stale = [name for name, text in wanted.items() if name not in there or (docs / name).read_text() != text]
    assert not stale, f"run `make docs`: {stale}"
    assert there == set(wanted), "run `make docs`"
