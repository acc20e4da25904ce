"""New images: make the file, let the format write its empty image onto it, clean up if that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from blockio.aio.context import finish
from blockio.driver.base import FormatDriver, NoOptions, ProtocolDriver
from blockio.driver.options import convert_options, flatten, nest, split_protocol
from blockio.driver.registry import find_driver, find_protocol
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.graph import perms
from blockio.graph.mutate import attach_child, detach_child
from blockio.graph.open import is_device, open_node
from blockio.graph.path import PassiveParent
from blockio.types import Limits, OpenFlags, Perm, Role

if TYPE_CHECKING:
    import msgspec

    from blockio.aio.context import AioContext
    from blockio.driver.base import BlockDriver
    from blockio.driver.child import Child
    from blockio.graph.edge import Edge
    from blockio.graph.node import BlockNode
    from blockio.graph.path import PathFactory

__all__ = ["create_image", "typed_create_options"]

_OWN = Perm.CONSISTENT_READ | Perm.WRITE | Perm.RESIZE


async def create_image(
    driver: str,
    filename: str,
    options: Mapping[str, Any] | None = None,
    *,
    path_factory: PathFactory,
    flags: OpenFlags | None = None,
    trust: Limits | None = None,
    file_options: Mapping[str, Any] | None = None,
) -> list[str]:
    """Make *filename* a new, empty image of format *driver* as *options* (``CreateOptions``) say.

    An existing file is overwritten, as ``qemu-img create`` does. *file_options* are the protocol's own create
    options; those that only it knows may stand in *options* too. *flags* say how the file is cached meanwhile. When it
    fails or is cancelled, a file that did not exist before is removed again. Errors carry QEMU's messages: ``Unknown
    file format 'x'``, ``Unknown protocol 'x'``, ``Invalid parameter 'x'``, ``Could not create 'X': …`` and what the
    format says.

    Returns the paths of other files that were made for it and were not there before: who has to do away with the image
    does so with them.
    """
    cls = _format(driver)
    protocol = _protocol(filename)
    if issubclass(cls, FormatDriver):
        options, file_options = _sorted(cls, protocol, nest(flatten(options or {})), file_options or {})
        typed = _convert(cls, options)
        if not _overrides(protocol, "co_create_file"):
            raise UnsupportedFeature(f"Protocol driver '{protocol.name}' does not support image creation")
    else:
        protocol, typed = cls, None
        file_options = {**(file_options or {}), **(options or {})}
    assert issubclass(protocol, ProtocolDriver)
    typed_file = _convert(protocol, file_options or {})
    others: list[str] = []
    async with _removed_on_failure(protocol, filename) as (name, _):
        await protocol.co_create_file(name, typed_file)
        if issubclass(cls, FormatDriver):
            node = await open_node(
                filename,
                options={"driver": protocol.name},
                flags=(flags or OpenFlags()).with_(read_only=False, unmap=True),
                trust=trust,
                path_factory=path_factory,
            )
            async with _Creator(cls, node, path_factory, trust) as target:
                await cls.co_create(target, typed)
            others = target.others
    return others


@asynccontextmanager
async def _removed_on_failure(protocol: type[ProtocolDriver], filename: str) -> AsyncIterator[tuple[str, bool]]:
    """*filename* without its prefix, and whether there is none: a file made inside then goes if that fails."""
    name = protocol.parse_filename(filename).get("filename", filename)
    fresh = not await protocol.co_file_exists(name)
    try:
        yield name, fresh
    except BaseException:
        if fresh:
            await finish(asyncio.ensure_future(_remove(protocol, name)))
        raise


def _format(driver: str) -> type[BlockDriver]:
    try:
        cls = find_driver(driver)
    except OptionError as error:
        raise OptionError(f"Unknown file format '{driver}'") from error
    if not _overrides(cls, "co_create_file" if issubclass(cls, ProtocolDriver) else "co_create"):
        raise UnsupportedFeature(f"Format driver '{driver}' does not support image creation")
    return cls


def _protocol(filename: str) -> type[BlockDriver]:
    try:
        prefixed = split_protocol(filename) is not None
        return find_protocol(filename, allow_prefix=prefixed, is_device=not prefixed and is_device(filename))
    except BlockError as error:
        raise OptionError(str(error)) from error


def _overrides(cls: type[BlockDriver], method: str) -> bool:
    """Whether *cls* or a base of its own has *method*, rather than the framework's, which only refuses."""
    owner = next((base for base in cls.__mro__ if method in base.__dict__), None)
    return owner is not None and owner not in (ProtocolDriver, FormatDriver)


def _sorted(
    cls: type[BlockDriver], protocol: type[BlockDriver], options: Mapping[str, Any], file_options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options that only the protocol knows (``nocow``) are its; and a format gives its file the length it needs."""
    mine, below = _fields(cls), _fields(protocol)
    theirs = {name: value for name, value in options.items() if name in below - mine}
    default = {"size": 0} if "size" in below else {}
    return {name: value for name, value in options.items() if name not in theirs}, {**default, **theirs, **file_options}


def _fields(cls: type[BlockDriver]) -> frozenset[str]:
    return frozenset() if cls.CreateOptions is None else frozenset(cls.CreateOptions.__struct_encode_fields__)


def typed_create_options(cls: type[BlockDriver], options: Mapping[str, Any]) -> Any:
    """Those of *options* that are the driver's own, as its ``CreateOptions``. OptionError."""
    mine = _fields(cls)
    return _convert(cls, {name: value for name, value in nest(flatten(options)).items() if name in mine})


def _convert(cls: type[BlockDriver], options: Mapping[str, Any]) -> Any:
    wanted: type[msgspec.Struct] = cls.CreateOptions or NoOptions
    return convert_options(wanted, options, cls.name, creating=True)


async def _remove(protocol: type[ProtocolDriver], filename: str) -> None:
    with suppress(OSError):
        await protocol.co_delete_file(filename)


class _Creator(PassiveParent):
    """The ``CreateTarget``: holds the new file for the format, and opens the image for it."""

    def __init__(
        self, cls: type[FormatDriver], node: BlockNode, path_factory: PathFactory, trust: Limits | None
    ) -> None:
        self._cls = cls
        self._node = node
        self._path_factory = path_factory
        self._trust = trust
        self._edge: Edge | None = None
        self.others: list[str] = []
        """See ``create_image``."""

    async def __aenter__(self) -> _Creator:
        try:
            self._edge = attach_child(self, self._node, "file", Role.IMAGE, _OWN, Perm.ALL)
        finally:
            await self._node.unref()  # the edge has its own
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        edge, self._edge = self._edge, None
        assert edge is not None
        if kind is None:
            await detach_child(edge)
        else:
            with suppress(OSError):  # the error under way says more
                await detach_child(edge)

    @property
    def file(self) -> Child:
        """The new file."""
        assert self._edge is not None
        return self._edge

    @asynccontextmanager
    async def beside(self, filename: str) -> AsyncIterator[Child]:
        """See ``CreateTarget``."""
        protocol = _protocol(filename)
        if not issubclass(protocol, ProtocolDriver) or not _overrides(protocol, "co_create_file"):
            raise UnsupportedFeature(f"Protocol driver '{protocol.name}' does not support image creation")
        async with _removed_on_failure(protocol, filename) as (name, fresh):
            empty = {"size": 0} if "size" in _fields(protocol) else {}
            await protocol.co_create_file(name, _convert(protocol, empty))
            node = await open_node(
                filename,
                options={"driver": protocol.name},
                flags=self._node.flags,
                trust=self._trust,
                path_factory=self._path_factory,
            )
            try:
                edge = attach_child(self, node, "data-file", Role.DATA, _OWN, Perm.ALL)
            finally:
                await node.unref()
            try:
                yield edge
            finally:
                await detach_child(edge)
        if fresh and protocol.name == "file":
            self.others.append(name)

    @asynccontextmanager
    async def open_image(self) -> AsyncIterator[Child]:
        """The image just written. The file is its alone meanwhile."""
        assert self._edge is not None
        perms.set_edge_perm(self._edge, Perm.NONE, Perm.ALL)
        node = await open_node(
            options={"driver": self._cls.name, "file": self._node.node_name},
            # What is flushed is the file, at the end and once.
            flags=self._node.flags.with_(no_backing=True, cache_no_flush=True),
            trust=self._trust,
            path_factory=self._path_factory,
        )
        try:
            edge = attach_child(self, node, "image", Role.IMAGE, _OWN, Perm.ALL)
        finally:
            await node.unref()
        try:
            yield edge
        finally:
            await detach_child(edge)
        perms.set_edge_perm(self._edge, _OWN, Perm.ALL)

    # -- ChildParent

    def parent_desc(self) -> str:
        """For messages."""
        return "image creation"

    def can_set_context(self, edge: Edge, context: AioContext, seen: set[object]) -> None:
        """An image is made where it was begun."""
        raise BlockError(f"Cannot move a node to {context!r} while an image is made on it")
