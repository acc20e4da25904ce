"""What nodes warn of while a tool opens and uses them, on its standard error."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockio.graph.events import NodeEvent, Warned, watchers

if TYPE_CHECKING:
    from blockio.cli.output import Output
    from blockio.graph.node import BlockNode

__all__ = ["show_warnings"]


def show_warnings(output: Output) -> None:
    """Print each from now on until the run ends, as the QEMU tools do: a hint ends without a line feed there."""

    def watch(_node: BlockNode, event: NodeEvent) -> None:
        if isinstance(event, Warned):
            output.report(f"{output.prog}: warning: {event.message}\n{event.hint}")

    watchers.append(watch)
    output.cleanups.append(lambda: watchers.remove(watch))
