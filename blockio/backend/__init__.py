"""BlockBackend: the reference document, one system a file. Import it from ``blockio``."""

from blockio.backend.aio import AioRequest
from blockio.backend.backend import BlockBackend
from blockio.backend.drain import drain_all, drained_all
from blockio.backend.names import all_backends, by_name, named_backends

__all__ = ["AioRequest", "BlockBackend", "all_backends", "by_name", "drain_all", "drained_all", "named_backends"]
