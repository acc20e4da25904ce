"""Names and pictures of what is open: file names, ``json:`` names, trees.

QEMU's bdrv_refresh_filename: a node is called by a plain file name where opening that name again would give the same
nodes; else by a ``json:`` name that holds all that is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockio.driver.base import DriverKind
from blockio.driver.options import flatten, split_protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from blockio.graph.node import BlockNode

__all__ = ["exact_filename", "filename_of", "folder_of", "full_options", "json_name", "tree"]


def filename_of(node: BlockNode) -> str:
    """What to call *node*: its exact file name, or a ``json:`` name."""
    return exact_filename(node) or json_name(node)


def exact_filename(node: BlockNode) -> str | None:
    """The file name under which opening gives *node* again, or None where there is none."""
    cls = node.driver_class
    if cls.kind is DriverKind.FILTER:
        names = {edge.name: exact_filename(edge.node) for edge in node.children.values()}
        known = {name: filename for name, filename in names.items() if filename is not None}
        return cls.join_filename(node.options, known) if len(known) == len(names) else None
    if _strong_options(node):
        return None
    if cls.kind is DriverKind.PROTOCOL:
        if node.opened_as is not None and cls.name != "file":
            return node.opened_as
        name = node.options.get("filename")
        if cls.name not in ("file", "host_device") or not isinstance(name, str):
            return None
        # A plain path whose first part has a colon would be taken for a protocol.
        return f"file:{name}" if split_protocol(name) is not None else name
    if not all(edge.named_by_image for edge in _named_children(node)):
        return None
    primary = node.primary
    if primary is None or not _is_storage(primary.node) or _backing_is_cut(node):
        return None
    return exact_filename(primary.node)


def full_options(node: BlockNode) -> dict[str, Any]:
    """The options, nested, that open *node* again; children that the image names by itself are left out."""
    options: dict[str, Any] = {"driver": node.driver_class.name}
    if isinstance(node.options.get("filename"), str):
        options["filename"] = node.options["filename"]
    options.update(_strong_options(node))
    primary = node.primary
    for edge in node.children.values():
        if edge is primary or not edge.named_by_image:
            options[edge.name] = full_options(edge.node)
    if _backing_is_cut(node):
        options["backing"] = None
    return options


def json_name(node: BlockNode) -> str:
    """``json:{…}``: ``full_options`` as a file name."""
    from msgspec import json  # few nodes need such a name

    return "json:" + json.format(json.encode(full_options(node)), indent=0).decode()


def folder_of(node: BlockNode) -> str | None:
    """The folder of the file *node* lies in, with its slash or empty; None where it lies in no folder."""
    while (primary := node.primary) is not None:
        node = primary.node
    name = exact_filename(node)
    if name is None:
        return None
    protocol = split_protocol(name)
    slash = name.rfind("/") + 1
    # ``nbd:disk`` is in the folder ``nbd:``, so to say.
    return name[: max(slash, len(protocol) + 1 if protocol is not None else 0)]


def tree(node: BlockNode) -> str:
    """*node* and everything below it, a line each, for people."""
    return "\n".join(_tree_lines(node, "", ""))


def _tree_lines(node: BlockNode, first: str, rest: str) -> Iterator[str]:
    access = "ro" if node.flags.read_only else "rw"
    yield f"{first}{node.node_name} {node.driver_class.name} {access} {node.length} {node.filename}".rstrip()
    edges = list(node.children.values())
    for index, edge in enumerate(edges):
        last = index == len(edges) - 1
        yield from _tree_lines(
            edge.node, f"{rest}{'└─' if last else '├─'} {edge.name}: ", rest + ("   " if last else "│  ")
        )


def _strong_options(node: BlockNode) -> dict[str, Any]:
    strong = node.driver_class.strong_options
    given = node.options if strong is None else {**node.options, **flatten(node.options)}
    return {name: value for name, value in given.items() if name != "filename" and (strong is None or name in strong)}


def _is_storage(node: BlockNode) -> bool:
    """Whether *node* is what an image is kept in: a protocol, or a filter that is one to its users."""
    return node.driver_class.kind is DriverKind.PROTOCOL or bool(node.driver_class.protocols)


def _named_children(node: BlockNode) -> list[Any]:
    primary = node.primary
    return [edge for edge in node.children.values() if edge is not primary]


def _backing_is_cut(node: BlockNode) -> bool:
    """The image names a backing file but the caller said that there shall be none."""
    driver = node.driver
    # A node without I/O is only looked at: it has none, which says nothing.
    return (
        not node.flags.no_io and driver is not None and driver.backing_reference() is not None and node.backing is None
    )


def flat_options(node: BlockNode) -> dict[str, Any]:
    """``full_options`` with dotted keys."""
    return flatten(full_options(node))
