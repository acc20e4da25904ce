"""Suites: what blockio promises about speed beside QEMU's tools, with the targets that hold or are missed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from blockio.errors import OptionError

if TYPE_CHECKING:
    from blockio.bench.suites.scale import Scale
    from blockio.bench.workload import Workload

__all__ = ["SUITES", "Suite", "suites_of"]

Suite: TypeAlias = "Callable[[Path, Scale], Iterator[Workload]]"
"""Yields one workload after the other; each must have been run before the next is asked for. Its folder is its own."""

_HERE: Final = "blockio.bench.suites"
SUITES: Final = {
    "reads": f"{_HERE}.requests:reads",
    "writes": f"{_HERE}.requests:writes",
    "direct": f"{_HERE}.requests:direct",
    "large": f"{_HERE}.requests:large",
    "chain": f"{_HERE}.requests:chain",
    "convert": f"{_HERE}.images:convert",
    "compressed": f"{_HERE}.images:compressed",
    "compare": f"{_HERE}.images:compare",
    "metadata": f"{_HERE}.metadata:metadata",
}
"""Every suite that is shipped, and the function it is."""


def suites_of(names: Sequence[str], known: Mapping[str, str] = SUITES) -> dict[str, Suite]:
    """Those of the *known* suites that are called *names*; ``all``: all of them. OptionError for any other name."""
    found: dict[str, Suite] = {}
    for name in names:
        for single in known if name == "all" else (name,):
            where = known.get(single)
            if where is None:
                raise OptionError(f"Unknown suite '{single}': there are {', '.join([*known, 'all'])}")
            module, _, function = where.partition(":")
            found[single] = getattr(import_module(module), function)
    return found
