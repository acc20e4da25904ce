"""From options to opened nodes.

The order of QEMU's bdrv_open: the options are joined with the name; the protocol is found; where nobody says the
format it is guessed from the first bytes; the driver opens and asks its ``ChildOpener`` for children, which are
opened the same way with what they inherit. What an *image* names goes through the caller's ``OpenGate`` first.

Whatever fails or is cancelled on the way, everything opened so far is closed again. Errors carry the texts of the
QEMU tools without the tool's own beginning (``Could not open 'X': `` is the tool's to say).
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.base import DriverKind
from blockio.driver.gate import Allow, Deny, DenyAll, OpenGate, Reference, ReferenceKind, Replace
from blockio.driver.options import (
    convert_options,
    flatten,
    nest,
    parse_json_name,
    parse_spec,
    required_options,
    split_protocol,
)
from blockio.driver.probe import probe_format
from blockio.driver.registry import find_driver, find_protocol
from blockio.errors import BlockError, LimitExceeded, OpenDenied, OptionError
from blockio.graph.describe import filename_of, folder_of
from blockio.graph.flags import NodeOptions, inherit, may_probe, take_node_options
from blockio.graph.frozen import FrozenLinks
from blockio.graph.mutate import attach_child, child_perms
from blockio.graph.node import BlockNode, find_node
from blockio.graph.perms import Transaction, refresh
from blockio.types import Limits, OpenFlags, Role

if TYPE_CHECKING:
    from blockio.driver.base import BlockDriver
    from blockio.driver.child import Child
    from blockio.graph.edge import Edge
    from blockio.graph.path import PathFactory

__all__ = ["is_device", "open_node"]

_MISSING: Final = object()
_LOCAL: Final = ("file", "host_device")
"""The protocols whose names are paths."""


async def open_node(
    filename: str | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    flags: OpenFlags | None = None,
    gate: OpenGate | None = None,
    trust: Limits | None = None,
    path_factory: PathFactory,
    node_name: str | None = None,
) -> BlockNode:
    """Open what *filename* and *options* together describe; the node has one reference, the caller's.

    *filename* is a path, a prefixed name (``nbd:…``) or a ``json:`` name; *options* win over the latter. With a
    driver in the options the file is opened as that; else its format is guessed (``gate`` may forbid that). *flags*
    are what the options do not say. The default gate lets the image open nothing. Raises BlockError with the
    message of the QEMU tools.
    """
    given = parse_spec(options)
    if node_name is not None:
        given["node-name"] = node_name
    if filename is not None and filename.startswith("json:"):
        given = nest({**flatten(parse_json_name(filename)), **flatten(given)})
        filename = None
    where = _Where(gate or DenyAll(), trust or Limits(), path_factory)
    return await _open(where, given, filename, flags or OpenFlags(), protocol=False)


class _Where(msgspec.Struct, frozen=True):
    """What is passed down from the node that asks: the caller's wishes and the way that led here."""

    gate: OpenGate
    trust: Limits
    path_factory: PathFactory
    depth: int = 0
    """How many images led here by naming the next."""
    implicit: bool = False
    """The options at hand come from an image, not from the caller."""
    storage: frozenset[object] = frozenset()
    """What the images above stand on."""
    asked_by: str = ""
    """The file name of the image that names this one, empty for what the caller names."""


async def _open(
    where: _Where, options: dict[str, Any], filename: str | None, flags: OpenFlags, *, protocol: bool
) -> BlockNode:
    """Open one node. *protocol*: a name without a driver means plain storage, not an image to be probed."""
    own = take_node_options(options, flags)
    cls = None if own.driver is None else find_driver(own.driver)
    if cls is not None:
        protocol = cls.kind is DriverKind.PROTOCOL or bool(cls.protocols)
    if protocol:
        return await _open_protocol(where, own, cls, filename)
    return await _open_image(where, own, cls, filename)


# -- protocols


async def _open_protocol(
    where: _Where, own: NodeOptions, cls: type[BlockDriver] | None, filename: str | None
) -> BlockNode:
    rest = dict(own.rest)
    if filename is not None:
        if "filename" in rest:
            raise OptionError("Can't specify 'file' and 'filename' options at the same time")
        rest["filename"] = filename
    name = rest.get("filename")
    if not isinstance(name, str):
        name = None
    # A prefix counts only in a name; in ``file.filename=a:b`` the colon is the file's.
    prefixed = filename is not None and split_protocol(filename) is not None
    if cls is None:
        if name is None:
            raise OptionError("Must specify either driver or file")
        cls = find_protocol(name, allow_prefix=prefixed, is_device=not prefixed and _identify(name)[1])
    if filename is not None:
        del rest["filename"]
        rest = {**cls.parse_filename(filename), **rest}
    identity = _storage(cls, rest)
    if where.implicit and identity in where.storage:
        raise BlockError(f"Backing file '{name}' creates an infinite loop.", errno.ELOOP)
    node = _make_node(where, own, cls, name or "")
    node.identities = frozenset((identity,)) if identity is not None else frozenset()
    node.opened_as = filename if prefixed else None
    return await _open_driver(where, node, cls, own, rest)


def _storage(cls: type[BlockDriver], options: Mapping[str, Any]) -> object:
    """What *options* make *cls* stand on: equal for equal storage, None where that cannot be told."""
    name = options.get("filename")
    if not isinstance(name, str):
        return None
    return _identify(name)[0] if cls.name in _LOCAL else (cls.name, name)


def is_device(path: str) -> bool:
    """Whether *path* leads to a block or character device."""
    return _identify(path)[1]


def _identify(path: str) -> tuple[object, bool]:
    """What *path* leads to, the same for every way there, and whether it is a device."""
    try:
        # In place, as the drivers open files in place: there is no engine for names.
        info = os.stat(path)
    except (OSError, ValueError):
        return path, False  # opening it will say what is wrong
    return (info.st_dev, info.st_ino), stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode)


# -- formats and filters


async def _open_image(
    where: _Where, own: NodeOptions, cls: type[BlockDriver] | None, filename: str | None
) -> BlockNode:
    rest = dict(own.rest)
    below: BlockNode | None = None
    file = rest.get("file", _MISSING)
    if filename is not None and file is not _MISSING and not isinstance(file, Mapping):
        raise OptionError("Cannot reference an existing block device with additional options or a new filename")
    node: BlockNode | None = None
    try:
        if cls is None:
            if filename is None and (file is _MISSING or file is None):
                raise OptionError("Must specify either driver or file")
            below = await _open_file(where, file, filename, own.flags)
            rest.pop("file", None)
            cls = await _guess(where, below)
        node = _make_node(where, own, cls, filename or "", probed=own.driver is None)
        node = await _open_driver(
            where, node, cls, own, rest, filename=None if below else filename, below=below, file=file
        )
    finally:
        if below is not None:
            await _let_go(below)  # the edge holds it by now; where there is none, it closes here
    return node


async def _open_file(where: _Where, file: object, filename: str | None, flags: OpenFlags) -> BlockNode:
    """The storage of an image whose format is not known yet."""
    if isinstance(file, str):
        return _by_reference(where, file)
    options = dict(file) if isinstance(file, Mapping) else {}
    return await _open(where, options, filename, inherit(flags, Role.IMAGE, parent_is_format=True), protocol=True)


async def _guess(where: _Where, below: BlockNode) -> type[BlockDriver]:
    reference = Reference(ReferenceKind.PROBE, where.asked_by, below.filename)
    decision = await where.gate(reference)
    if isinstance(decision, Replace):
        driver = decision.options.get("driver")
        if not isinstance(driver, str):
            raise TypeError("a gate answers a format probe with the options {'driver': …}")
        return find_driver(driver)
    _let_through(decision, reference)
    return find_driver(await probe_format(_Reader(below), below.filename))


class _Reader:
    """A node for the probe to read: before anybody has an edge to it."""

    def __init__(self, node: BlockNode) -> None:
        self.length = node.length
        self.co_preadv = node.path.co_preadv


def _by_reference(where: _Where, name: str) -> BlockNode:
    """The existing node called *name*, with a reference of its own."""
    if where.implicit:
        raise OpenDenied(f"An image may not use node '{name}' of this process")
    node = find_node(name)
    if node is None:
        raise OptionError(f"Cannot find device='{name}' nor node-name='{name}'", errno.ENODEV)
    return node.ref()


# -- any node


def _make_node(
    where: _Where, own: NodeOptions, cls: type[BlockDriver], filename: str, *, probed: bool = False
) -> BlockNode:
    return BlockNode(
        cls,
        path_factory=where.path_factory,
        name=own.node_name,
        filename=filename,
        flags=own.flags,
        explicit_flags=own.explicit,
        trust=where.trust,
        detect_zeroes=own.detect_zeroes,
        probed=probed,
    )


async def _open_driver(
    where: _Where,
    node: BlockNode,
    cls: type[BlockDriver],
    own: NodeOptions,
    rest: dict[str, Any],
    *,
    filename: str | None = None,
    below: BlockNode | None = None,
    file: object = None,
) -> BlockNode:
    """Open *node*'s driver; closes *node* where that fails."""
    try:
        mine = {name: rest.pop(name) for name in cls.Options.__struct_encode_fields__ if name in rest}
        if cls.kind is DriverKind.PROTOCOL:
            if _needs_filename(cls) and not (isinstance(mine.get("filename"), str) and mine["filename"]):
                raise OptionError(f"The '{cls.name}' block driver requires a file name")
            _refuse_unknown(cls, rest)
        node.options = mine
        typed = convert_options(cls.Options, mine, cls.name)
        opener = _Opener(where, node, cls, rest, filename=filename, below=below, file=file)
        await node.open_driver(typed, opener)
        _refuse_unknown(cls, opener.options)
        with Transaction() as tran:
            refresh(tran, [node])
        if cls.kind is not DriverKind.PROTOCOL:
            node.identities = opener.identities
        node.filename = filename_of(node)
    except BaseException:
        await _let_go(node)
        raise
    return node


def _needs_filename(cls: type[BlockDriver]) -> bool:
    """Whether *cls* has a ``filename`` option without a default: a null disk may have one and needs none."""
    return "filename" in required_options(cls.Options)


def _refuse_unknown(cls: type[BlockDriver], left: Mapping[str, Any]) -> None:
    if not left:
        return
    name = next(iter(flatten(left)))
    if cls.kind is DriverKind.PROTOCOL or cls.protocols:
        raise OptionError(f"Block protocol '{cls.name}' doesn't support the option '{name}'")
    raise OptionError(f"Block format '{cls.name}' does not support the option '{name}'")


async def _let_go(node: BlockNode) -> None:
    """Give a reference back where an error, if any, is already under way: closing's own is less interesting."""
    with suppress(OSError):
        await node.unref()


# -- children


class _Opener:
    """The ``ChildOpener`` of one node: finds children in the node's options, or in the image through the gate.

    ``options`` are those no child has been made of yet; what is left after the driver has opened nobody knows.
    """

    def __init__(
        self,
        where: _Where,
        node: BlockNode,
        cls: type[BlockDriver],
        options: dict[str, Any],
        *,
        filename: str | None,
        below: BlockNode | None,
        file: object = None,
    ) -> None:
        self._where = where
        self._node = node
        self._is_format = cls.kind is DriverKind.FORMAT
        self._has_protocol = bool(cls.protocols)
        self.options = options
        self._filename = filename
        self._below = below
        self._file = file
        self.identities: frozenset[object] = frozenset()

    async def child(
        self, name: str, role: Role, *, optional: bool = False, filename: str | None = None
    ) -> Child | None:
        """See ``ChildOpener``."""
        if name == "file" and self._below is not None:
            return self._attach(self._below, name, role, inherits=not isinstance(self._file, str))
        if name == "file" and filename is None:
            filename = self._filename
        given = self._take(name)
        if given is _MISSING or given is None or given == "":
            if filename is None:
                if optional:
                    return None
                raise OptionError(f'A block device must be specified for "{name}"')
            given = {}
        if not isinstance(given, (str, Mapping)):
            raise OptionError(f'A block device must be specified for "{name}"')
        where = msgspec.structs.replace(self._where, storage=self._where.storage | self.identities)
        try:
            if isinstance(given, str):
                return await self._use(_by_reference(where, given), name, role, inherits=False)
            options = dict(given)
            if filename is not None and filename.startswith("json:"):
                options = nest({**flatten(parse_json_name(filename)), **flatten(options)})
                filename = None
            opening = _open(where, options, filename, self._flags(role), protocol=self._is_storage(name, role))
            return await self._use(await _open_in_task(opening), name, role)
        except BlockError as error:
            raise self._worded(error, role) from error

    async def required(self, name: str, role: Role) -> Child:
        """See ``ChildOpener``."""
        found = await self.child(name, role)
        assert found is not None
        return found

    async def implicit(self, name: str, role: Role, *, target: str, format: str | None, kind: str) -> Child | None:
        """See ``ChildOpener``."""
        why = ReferenceKind(kind)
        if why is ReferenceKind.BACKING and self._node.flags.no_backing:
            self._take(name)
            return None
        given = self.options.get(name, _MISSING)
        if given is None or given == "":
            self._take(name)
            return None
        # What is said of a data file is all that counts; a backing file's options may leave the name to the image.
        whole = why is not ReferenceKind.BACKING or not isinstance(given, Mapping) or _names_storage(given)
        if given is not _MISSING and whole:
            return await self.child(name, role)
        try:
            # Where a data file is is said as on a command line, not as seen from the image.
            resolved = self._resolve(target) if why is ReferenceKind.BACKING else target
            reference = Reference(why, self._node_filename(), resolved, format)
            decision = await self._where.gate(reference)
            extra = self._take(name)
            options = dict(extra) if isinstance(extra, Mapping) else {}
            where = self._deeper(reference)
            filename: str | None = resolved
            if isinstance(decision, Replace):
                options = nest({**flatten(decision.options), **flatten(options)})
                where, filename = msgspec.structs.replace(where, implicit=False), None
            else:
                _let_through(decision, reference)
                if resolved.startswith("json:"):
                    options = nest({**flatten(parse_json_name(resolved)), **flatten(options)})
                    filename = None
                if format is not None:
                    options.setdefault("driver", format)
            opening = _open(where, options, filename, self._flags(role), protocol=self._is_storage(name, role))
            child = await self._use(await _open_in_task(opening), name, role)
            child.named_by_image = not options.keys() - {"driver"} and not isinstance(decision, Replace)
            return child
        except BlockError as error:
            raise self._worded(error, role) from error

    def ignore(self, name: str) -> None:
        """See ``ChildOpener``."""
        self._take(name)

    def frozen_chain(self, bottom: str) -> FrozenLinks:
        """See ``ChildOpener``."""
        node = None if self._where.implicit else find_node(bottom)  # an image names no node of this process
        if node is None:
            raise OptionError(f"Bottom node '{bottom}' not found")
        if node.driver is None:
            raise OptionError(f"Bottom node '{bottom}' not opened")
        if node.driver_class.kind is DriverKind.FILTER:
            raise OptionError(f"Bottom node '{bottom}' is a filter")
        return FrozenLinks(self._node, node)

    # -- how

    def _take(self, name: str) -> Any:
        """The options for child *name*, which are its own from now on. ``children.0`` is a list's first."""
        first, _, index = name.partition(".")
        given = self.options.get(first, _MISSING)
        if not index:
            self.options.pop(first, None)
            return given
        if not isinstance(given, list) or int(index) >= len(given):
            return _MISSING
        found, given[int(index)] = given[int(index)], None
        if all(item is None for item in given):
            del self.options[first]
        return found

    def _flags(self, role: Role) -> OpenFlags:
        return inherit(self._node.flags, role, parent_is_format=self._is_format)

    def _is_storage(self, name: str, role: Role) -> bool:
        # A filter that is a protocol to its users stands on what such users stand on.
        filters_storage = self._has_protocol and bool(role & Role.FILTERED)
        return name == "file" or filters_storage or not may_probe(role, parent_is_format=self._is_format)

    async def _use(self, node: BlockNode, name: str, role: Role, *, inherits: bool = True) -> Edge:
        """Make *node* a child; the reference that came with it is given back, the edge has one of its own."""
        try:
            return self._attach(node, name, role, inherits=inherits)
        finally:
            await _let_go(node)

    def _attach(self, node: BlockNode, name: str, role: Role, *, inherits: bool) -> Edge:
        perm, shared = child_perms(self._node, name, role)
        edge = attach_child(self._node, node, name, role, perm, shared)
        edge.inherits = inherits
        if not role & Role.COW:
            self.identities |= node.identities
        return edge

    def _deeper(self, reference: Reference) -> _Where:
        where = self._where
        if where.depth >= where.trust.max_chain_depth:
            raise LimitExceeded(
                f"{reference.kind.value} '{reference.target}' is more than {where.trust.max_chain_depth} images away "
                "from the one that was opened"
            )
        return msgspec.structs.replace(
            where,
            depth=where.depth + 1,
            implicit=True,
            storage=where.storage | self.identities,
            asked_by=self._node_filename(),
        )

    def _node_filename(self) -> str:
        primary = self._node.primary
        return primary.filename if primary is not None else self._node.filename

    def _resolve(self, target: str) -> str:
        """*target* seen from the image's folder; prefixed and ``json:`` names stay as they are written."""
        if split_protocol(target) is not None or target.startswith("/"):
            return target
        folder = folder_of(self._node)
        if folder is None:
            raise OptionError(f"Cannot generate a base directory for '{self._node_filename()}' to find '{target}' in")
        return folder + target

    def _worded(self, error: BlockError, role: Role) -> BlockError:
        if isinstance(error, LimitExceeded):
            return error  # it says where by itself; a prefix for each of 200 layers would bury it
        return error.prefixed("Could not open backing file: ") if role & Role.COW else error


def _names_storage(options: Mapping[str, Any]) -> bool:
    """Whether *options* say themselves what to open, rather than how to open what the image names."""
    file = options.get("file")
    if "filename" in options and "driver" in options:
        return True
    return isinstance(file, str) or (isinstance(file, Mapping) and ("filename" in file or "driver" in file))


def _let_through(decision: object, reference: Reference) -> None:
    if isinstance(decision, Allow):
        return
    if isinstance(decision, Deny):
        what = f"{reference.kind.value} '{reference.target}' of '{reference.image}'"
        raise OpenDenied(decision.reason or f"The open gate does not allow {what}")
    raise TypeError(f"an open gate answers Allow, Deny or Replace, not {decision!r}")


async def _open_in_task(opening: Coroutine[Any, Any, BlockNode]) -> BlockNode:
    """Await *opening* in a task of its own: a chain is opened from the top, and a call stack has an end.

    A cancellation of the caller reaches the task, which is waited for.
    """
    task = asyncio.ensure_future(opening)
    try:
        return await task
    except asyncio.CancelledError:
        if task.done() and not task.cancelled() and task.exception() is None:
            await _let_go(task.result())  # it was opened, but the cancellation came before we took it
        raise
