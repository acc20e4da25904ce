"""luks: a disk encrypted as LUKS version 1, as cryptsetup and QEMU have it.

The file holds header, key material and payload, or, with ``header``, only the payload. Each sector of 512 bytes is
encrypted with its number in the payload; requests are therefore whole sectors.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.buffers import IoVector
from blockio.driver.base import (
    Allocation,
    Capabilities,
    ChildOpener,
    CreateTarget,
    DriverHost,
    FormatDriver,
    Measurement,
    MeasureSource,
)
from blockio.driver.options import Size
from blockio.errors import BlockError, OptionError, UnsupportedFeature
from blockio.types import (
    BlockLimits,
    BlockStatus,
    Capability,
    Extent,
    PreallocMode,
    RequestFlags,
    Role,
    StatusFlags,
)
from blockio_drivers.crypto.transfer import read_decrypted, write_encrypted

if TYPE_CHECKING:
    from blockio.aio.context import AioContext
    from blockio.driver.child import Child
    from blockio.driver.inspection import HeaderReport, InspectSource
    from blockio.types import Limits
    from blockio_drivers.crypto.header import CipherSpec, LuksHeader
    from blockio_drivers.crypto.volume import LuksVolume

__all__ = ["LuksAmendOptions", "LuksCreateOptions", "LuksDriver", "LuksOptions"]

_SECTOR: Final = 512
_MAGIC: Final = b"LUKS\xba\xbe\x00\x01"


class LuksOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """``key-secret``: the id of the secret that holds the passphrase. The child ``header`` may hold the header."""

    key_secret: str | None = None


class LuksCreateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What a new image shall be; ``size`` in bytes, ``iter_time`` in milliseconds."""

    size: Size | None = None
    key_secret: str | None = None
    cipher_alg: str = "aes-256"
    cipher_mode: str = "xts"
    ivgen_alg: str | None = None
    ivgen_hash_alg: str | None = None
    hash_alg: str = "sha256"
    iter_time: int = 2000
    preallocation: PreallocMode = PreallocMode.OFF

    def spec(self) -> CipherSpec:
        """Cipher and hashes, with QEMU's defaults."""
        # only what makes or opens an encrypted image needs the ciphers' house
        from blockio_drivers.crypto.header import CipherSpec

        return CipherSpec.chosen(self.cipher_alg, self.cipher_mode, self.ivgen_alg, self.ivgen_hash_alg, self.hash_alg)


class LuksAmendOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """How key slots shall change, by QEMU's names; ``iter_time`` in milliseconds."""

    state: str | None = None
    keyslot: int | None = None
    old_secret: str | None = None
    new_secret: str | None = None
    iter_time: int | None = None


class LuksDriver(FormatDriver):
    """Invariant: ``_volume`` is None only on a node without I/O (``info``), which cannot be read or written."""

    name = "luks"
    Options = LuksOptions
    strong_options = frozenset(("key-secret",))
    CreateOptions = LuksCreateOptions
    AmendOptions = LuksAmendOptions
    capabilities = Capabilities(resize=Capability.NATIVE)

    _header: LuksHeader
    _spec: CipherSpec

    def __init__(self, host: DriverHost) -> None:
        super().__init__(host)
        self._volume: LuksVolume | None = None
        self._payload = 0

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """Magic and version 1."""
        return 100 if head[:8] == _MAGIC else 0

    @classmethod
    async def co_create(cls, target: CreateTarget, options: LuksCreateOptions) -> None:
        from blockio_drivers.crypto.volume import format_volume, passphrase_of, payload_offset_for

        if options.size is None:
            raise OptionError("Image creation needs a size parameter")
        spec = options.spec()
        passphrase_of(options.key_secret)
        spec.validate()
        assert options.key_secret is not None  # ``passphrase_of`` looked
        start = payload_offset_for(spec)
        if options.size > 2**63 - 1 - start:
            raise BlockError("The requested file size is too large", errno.EFBIG)
        # There is no metadata that grows with the disk.
        metadata = options.preallocation is PreallocMode.METADATA
        prealloc = PreallocMode.OFF if metadata else options.preallocation
        try:
            await target.file.co_truncate(start + options.size, exact=False, prealloc=prealloc)
        except BlockError as error:
            if error.errno == errno.EFBIG:
                raise BlockError("The requested file size is too large", errno.EFBIG) from error
            raise
        await format_volume(_InFile(target.file), spec, options.key_secret, options.iter_time)

    @classmethod
    async def co_inspect(cls, source: InspectSource, trust: Limits) -> HeaderReport:
        """The header; nothing is unlocked, so no key is derived."""
        from blockio_drivers.crypto.inspect import inspect_volume  # most processes inspect nothing

        return await inspect_volume(source, trust)

    @classmethod
    async def co_measure(cls, options: LuksCreateOptions, source: MeasureSource | None) -> Measurement:
        """Header and payload: all of it is data. Raises what creating such an image would before it writes."""
        from blockio_drivers.crypto.volume import passphrase_of, payload_offset_for

        spec = options.spec()
        passphrase_of(options.key_secret)
        spec.validate()
        size = payload_offset_for(spec) + (source.length if source is not None else options.size or 0)
        return Measurement(size, size, None)

    # -- life

    async def open(self, options: LuksOptions, opener: ChildOpener) -> None:
        """Read the header and unlock it; raises what ``LuksVolume.open`` raises."""
        from blockio_drivers.crypto.volume import LuksVolume, passphrase_of, read_header

        self.file = await opener.required("file", Role.IMAGE)
        detached = await opener.child("header", Role.METADATA, optional=True)
        place = _InFile(detached or self.file)
        if self.host.flags.no_io:
            self._header, self._spec = await read_header(place, detached=detached is not None)
        else:
            passphrase_of(options.key_secret)
            assert options.key_secret is not None  # ``passphrase_of`` looked
            volume = await LuksVolume.open(place, options.key_secret, self.host.trust, detached=detached is not None)
            self._volume, self._header, self._spec = volume, volume.header, volume.spec
        # With a detached header the payload has the file for itself, unless the header says where it begins.
        self._payload = self._header.payload_offset
        self.length = self._length_in(await self.file.co_getlength())

    def _length_in(self, containing: int) -> int:
        return max(0, containing - self._payload)

    async def close(self) -> None:
        """Forget the key."""
        self._volume = None

    def attach_context(self, context: AioContext) -> None:
        """A lock for the new loop."""
        if self._volume is not None:
            self._volume.change_loop()

    @property
    def volume(self) -> LuksVolume:
        """The unlocked volume: its passphrases are changed with ``amend``. UnsupportedFeature on a node without I/O."""
        if self._volume is None:
            raise UnsupportedFeature("The image was opened without its key")
        return self._volume

    async def co_amend(
        self,
        options: LuksAmendOptions,
        *,
        force: bool,
        resize: Callable[[int], Awaitable[None]],
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Add a passphrase or erase some; see ``LuksVolume.amend``."""
        from blockio_drivers.crypto.volume import KeySlotChange

        if options.state is None:
            raise OptionError("Parameter 'state' is missing")
        change = KeySlotChange(
            options.state, options.new_secret, options.old_secret, options.keyslot, options.iter_time
        )
        await self.volume.amend(change, self.host.trust, force=force)

    # -- facts

    def limits(self) -> BlockLimits:
        """Whole sectors."""
        return BlockLimits(request_alignment=_SECTOR)

    async def co_getlength(self) -> int:
        self.length = self._length_in(await self.file.co_getlength())
        return self.length

    def specific_info(self) -> dict[str, Any]:
        from blockio_drivers.crypto.volume import slots_info

        header = self._header if self._volume is None else self._volume.header
        return {"type": "luks", "data": slots_info(header, self._spec)}

    async def co_map(self, offset: int, nbytes: int) -> Extent:
        raise AssertionError("luks moves its bytes itself")

    async def co_allocate(self, offset: int, nbytes: int) -> Allocation:
        raise AssertionError("luks writes in place")

    async def co_block_status(self, offset: int, nbytes: int, *, want_zero: bool) -> BlockStatus:
        """All is data; where it lies is of no use to anybody without the key."""
        return BlockStatus(StatusFlags.DATA | StatusFlags.ALLOCATED, nbytes)

    # -- requests

    async def co_preadv(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await read_decrypted(self.volume.cipher, self.file, self._payload + offset, iov, offset // _SECTOR)

    async def co_pwritev(self, offset: int, iov: IoVector, flags: RequestFlags | int) -> None:
        await write_encrypted(self.volume.cipher, self.file, self._payload + offset, iov, offset // _SECTOR)
        if offset + iov.nbytes > self.length:
            self.length = offset + iov.nbytes
            self.host.length_changed()

    async def co_truncate(self, length: int, *, exact: bool, prealloc: PreallocMode, flags: RequestFlags | int) -> None:
        if length > 2**63 - 1 - self._payload:
            raise BlockError("The requested file size is too large", errno.EFBIG)
        # What is new reads as noise, as with QEMU: zeroes would have to be written encrypted.
        if flags & RequestFlags.ZERO_WRITE:
            raise UnsupportedFeature("Block driver does not support requested flags")
        await self.file.co_truncate(length + self._payload, exact=exact, prealloc=prealloc)
        self.length = self._length_in(self.file.length)


class _InFile:
    """The ``Place`` of a header that stands at its file's start."""

    def __init__(self, file: Child) -> None:
        self._file = file

    async def read(self, offset: int, nbytes: int) -> bytes:
        """See ``Place``."""
        data = bytearray(nbytes)
        await self._file.co_preadv(offset, IoVector.of(data))
        return bytes(data)

    async def write(self, offset: int, data: bytes) -> None:
        """See ``Place``."""
        await self._file.co_pwritev(offset, IoVector.of(data))

    async def flush(self) -> None:
        """See ``Place``."""
        await self._file.co_flush()
