"""What users may say when they open or create a qcow2 image, in QEMU's words."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from blockio.driver.options import Size
from blockio.errors import LimitExceeded, OptionError, OutOfRange
from blockio.types import MAX_LENGTH, PreallocMode

if TYPE_CHECKING:
    from blockio_drivers.crypto.header import CipherSpec

__all__ = ["LEVELS", "EncryptOptions", "OverlapChecks", "Qcow2CreateOptions", "Qcow2Options", "join_options"]

_MIN_CLUSTER_SIZE: Final = 512
_MAX_CLUSTER_SIZE: Final = 2 << 20
_MIN_EXTENDED_CLUSTER_SIZE: Final = 32 * 512
"""A subcluster is no smaller than a sector."""
_MAX_L1_BYTES: Final = 32 << 20
_MAX_BACKING_NAME: Final = 1023
_ENCRYPTIONS: Final = ("luks", "aes", "qcow")
"""The last is another name of ``aes``."""
_COMPAT: Final = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}

LEVELS: Final = range(1, 10)
"""How hard compression tries: from the fastest to the smallest result."""

TOO_LARGE: Final = "Could not resize image: Failed to grow the L1 table: File too large"


class OverlapChecks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Which metadata is protected from being overwritten: a ``template``, and what shall differ from it."""

    itself: str | None = msgspec.field(default=None, name="")
    """The template, where the option has a value and parts: ``overlap-check=all,overlap-check.main-header=off``."""
    template: str | None = None
    main_header: bool | None = None
    active_l1: bool | None = None
    active_l2: bool | None = None
    refcount_table: bool | None = None
    refcount_block: bool | None = None
    snapshot_table: bool | None = None
    inactive_l1: bool | None = None
    inactive_l2: bool | None = None
    bitmap_directory: bool | None = None

    def classes(self) -> frozenset[str]:
        """The names of the fields that are on. OptionError for two templates, or one that there is not."""
        if self.itself is not None and self.template is not None and self.itself != self.template:
            raise OptionError(
                f"Conflicting values for qcow2 options 'overlap-check' ('{self.itself}') and 'overlap-check.template' "
                f"('{self.template}')"
            )
        template = self.template if self.itself is None else self.itself
        if template is None:
            template = "cached"
        if template not in _TEMPLATES:
            raise OptionError(
                f"Unsupported value '{template}' for qcow2 option 'overlap-check'. Allowed are any of the "
                f"following: {', '.join(_TEMPLATES)}"
            )
        chosen = {name: getattr(self, name) for name in _TEMPLATES["all"]}
        default = _TEMPLATES[template]
        return frozenset(name for name, on in chosen.items() if (name in default if on is None else on))


_CONSTANT: Final = ("main_header", "active_l1", "refcount_table", "snapshot_table", "bitmap_directory")
_CACHED: Final = (*_CONSTANT, "active_l2", "refcount_block", "inactive_l1")
_TEMPLATES: Final = {"none": (), "constant": _CONSTANT, "cached": _CACHED, "all": (*_CACHED, "inactive_l2")}


class Qcow2Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """How an image is opened. Children (``file``, ``backing``) are the opener's business. Sizes in bytes."""

    encrypt: dict[str, Any] | None = None
    """``key-secret``, the id of the passphrase's secret, and ``format``; ignored where data is not encrypted."""
    lazy_refcounts: bool | None = None
    """Postpone refcount updates behind the dirty bit; by default what the image says."""
    pass_discard_request: bool | None = None
    """Pass the guest's discards to the file; by default when the node is opened with ``discard=unmap``."""
    pass_discard_snapshot: bool = True
    """Discard clusters in the file that lose their last reference when a snapshot is deleted or applied."""
    pass_discard_other: bool = False
    """Discard clusters in the file that held tables which others took the place of."""
    overlap_check: str | OverlapChecks = "cached"
    """Which metadata is protected from being overwritten: ``none``, ``constant``, ``cached``, ``all``, or by name."""
    cache_size: Size | None = None
    """Memory for L2 tables and refcount blocks together."""
    l2_cache_size: Size | None = None
    """Memory for L2 tables; by default as much as covers the disk, up to 32 MiB."""
    l2_cache_entry_size: Size | None = None
    """How much of an L2 table is read at once: a power of two from 512 to the cluster size."""
    refcount_cache_size: Size | None = None
    """Memory for refcount blocks."""
    cache_clean_interval: int = 600
    """After how many seconds without use L2 tables and refcount blocks leave memory; 0: never."""

    def protected(self) -> frozenset[str]:
        """The classes of metadata that are protected. OptionError for a template that there is not."""
        chosen = self.overlap_check
        return (OverlapChecks(itself=chosen) if isinstance(chosen, str) else chosen).classes()

    compression_level: int = 1
    """How hard compressed writes try, of ``LEVELS``. Not kept in the image."""


_CACHES: Final = ("l2-cache-size", "refcount-cache-size")


def join_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """What a reopen with *new* options makes of the *old* ones, as QEMU has it.

    A new template replaces all old choices, a new size of all caches those of each, and the other way round.
    """
    kept = dict(old)
    if "overlap-check" in new or "overlap-check.template" in new:
        kept = {name: value for name, value in kept.items() if name.partition(".")[0] != "overlap-check"}
    if "cache-size" in new:
        kept = {name: value for name, value in kept.items() if name not in _CACHES}
    elif any(name in new for name in _CACHES):
        kept.pop("cache-size", None)
    return {**kept, **new}


_AMEND_NAMES: Final = {
    "encrypt_state": "encrypt.state",
    "encrypt_keyslot": "encrypt.keyslot",
    "encrypt_old_secret": "encrypt.old-secret",
    "encrypt_new_secret": "encrypt.new-secret",
    "encrypt_iter_time": "encrypt.iter-time",
}


class Qcow2AmendOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename=_AMEND_NAMES):
    """What an image shall become; None: as it is. ``size`` in bytes, ``encrypt_iter_time`` in milliseconds."""

    encrypt_state: str | None = None
    encrypt_keyslot: int | None = None
    encrypt_old_secret: str | None = None
    encrypt_new_secret: str | None = None
    encrypt_iter_time: int | None = None
    size: Size | None = None
    compat: str | None = None
    backing_file: str | None = None
    backing_fmt: str | None = None
    data_file: str | None = None
    data_file_raw: bool | None = None
    lazy_refcounts: bool | None = None
    refcount_bits: int | None = None

    @property
    def touches_encryption(self) -> bool:
        """Whether anything of the key slots shall change."""
        return any(getattr(self, name) is not None for name in _AMEND_NAMES)


class EncryptOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """How a new image's data is encrypted; what is None is QEMU's default. All but the first two are for LUKS."""

    format: str | None = None
    """``luks`` or ``aes``."""
    key_secret: str | None = None
    """The id of the secret that holds the passphrase."""
    cipher_alg: str | None = None
    cipher_mode: str | None = None
    ivgen_alg: str | None = None
    ivgen_hash_alg: str | None = None
    hash_alg: str | None = None
    iter_time: int | None = None
    """Milliseconds that trying a passphrase shall take."""

    @property
    def luks(self) -> bool:
        """Whether there shall be a LUKS header."""
        return self.format == "luks"

    def spec(self) -> CipherSpec:
        """Cipher and hashes of the LUKS header."""
        # only what makes or opens an encrypted image needs the ciphers' house
        from blockio_drivers.crypto.header import CipherSpec

        return CipherSpec.chosen(self.cipher_alg, self.cipher_mode, self.ivgen_alg, self.ivgen_hash_alg, self.hash_alg)

    def header_bytes(self) -> int:
        """How much room the LUKS header takes, key slots included; what lies behind it is not its business."""
        # as in ``spec``
        from blockio_drivers.crypto.volume import payload_offset_for

        return payload_offset_for(self.spec())

    def validate(self) -> None:
        """Raise OptionError where there is no such encryption, or no such secret; UnsupportedFeature for a cipher."""
        if self.format is None:
            raise OptionError("Parameter 'encrypt.format' is missing")
        if self.format not in _ENCRYPTIONS:
            raise OptionError(f"Parameter 'format' does not accept value '{self.format}'")
        if self.luks:
            self.spec().validate()
        else:
            for field in msgspec.structs.fields(self)[2:]:
                if getattr(self, field.name) is not None:
                    raise OptionError(f"Parameter 'encrypt.{field.encode_name}' is unexpected")
        # as in ``spec``
        from blockio_drivers.crypto.volume import passphrase_of

        passphrase_of(self.key_secret, "encrypt.")


class Qcow2CreateOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a new image shall be. Sizes in bytes; ``validate`` says whether it can be."""

    size: Size | None = None
    backing_file: str | None = None
    backing_fmt: str | None = None
    cluster_size: Size = 65536
    compat: str = "1.1"
    compression_type: str = "zlib"
    lazy_refcounts: bool = False
    preallocation: str = "off"
    refcount_bits: int = 16
    extended_l2: bool = False
    data_file: str | None = None
    data_file_raw: bool = False
    encryption: bool = False
    """The old name of ``encrypt.format=aes``."""
    encrypt: EncryptOptions | None = None

    @property
    def wanted_encryption(self) -> EncryptOptions | None:
        """How data shall be encrypted, whatever it was called."""
        if not self.encryption:
            return self.encrypt
        return msgspec.structs.replace(self.encrypt or EncryptOptions(), format="aes")

    @property
    def luks(self) -> EncryptOptions | None:
        """The same where there shall be a LUKS header."""
        wanted = self.wanted_encryption
        return wanted if wanted is not None and wanted.luks else None

    @property
    def version(self) -> int:
        """The header version that ``compat`` means."""
        return _COMPAT[self.compat]

    @property
    def disk_size(self) -> int:
        """``size`` in whole sectors of 512 bytes, rounded up."""
        return -(-(self.size or 0) // 512) * 512

    def validate(self) -> None:
        """Raise what QEMU says where the options cannot be met or contradict each other.

        OptionError (EINVAL), OutOfRange (EIO) for a size no disk has, LimitExceeded (EFBIG) for one no image of that
        cluster size has, UnsupportedFeature for what this driver does not do.
        """
        if self.size is None:
            raise OptionError("Image creation needs a size parameter")
        if not 0 <= self.size < 1 << 63:
            raise OptionError("Invalid image size specified. Must be between 0 and 9223372036854775807.")
        if self.compat not in _COMPAT:
            raise OptionError(f"Parameter 'version' does not accept value '{self.compat}'")
        if self.compression_type not in {"zlib", "zstd"}:
            raise OptionError(f"Parameter 'compression-type' does not accept value '{self.compression_type}'")
        if self.preallocation not in set(PreallocMode):
            raise OptionError(f"Parameter 'preallocation' does not accept value '{self.preallocation}'")
        self._validate_encryption()
        size = self.cluster_size
        if not _MIN_CLUSTER_SIZE <= size <= _MAX_CLUSTER_SIZE or size & (size - 1):
            raise OptionError("Cluster size must be a power of two between 512 and 2048k")
        if self.extended_l2:
            self._validate_extended_l2()
        if self.preallocation != PreallocMode.OFF and self.backing_file and not self.extended_l2:
            raise OptionError("Backing file and preallocation can only be used at the same time if extended_l2 is on")
        if self.version < 3 and self.lazy_refcounts:
            raise OptionError(
                "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or greater)"
            )
        bits = self.refcount_bits
        if not 1 <= bits <= 64 or bits & (bits - 1):
            raise OptionError("Refcount width must be a power of two and may not exceed 64 bits")
        if self.version < 3 and bits != 16:
            raise OptionError(
                "Different refcount widths than 16 bits require compatibility level 1.1 or above "
                "(use version=v3 or greater)"
            )
        self._validate_data_file()
        if self.version < 3 and self.compression_type != "zlib":
            raise OptionError(
                "Non-zlib compression type is only supported with compatibility level 1.1 and above "
                "(use version=v3 or greater)"
            )
        self._validate_backing()
        if self.disk_size >= 1 << 63:
            raise OptionError("Could not resize image: Image size cannot be negative")
        if self.disk_size > MAX_LENGTH:
            raise OutOfRange(f"Could not resize image: offset({self.disk_size}) exceeds maximum({MAX_LENGTH})")
        reach = size * (size // (16 if self.extended_l2 else 8))
        if -(-self.disk_size // reach) * 8 > _MAX_L1_BYTES:
            raise LimitExceeded(TOO_LARGE)

    def _validate_encryption(self) -> None:
        if self.encryption and self.encrypt is not None and self.encrypt.format is not None:
            raise OptionError("'encrypt.format' and its alias 'encryption' can't be used at the same time")
        if (wanted := self.wanted_encryption) is not None:
            wanted.validate()

    def _validate_extended_l2(self) -> None:
        if self.version < 3:
            raise OptionError(
                "Extended L2 entries are only supported with compatibility level 1.1 and above "
                "(use version=v3 or greater)"
            )
        if self.cluster_size < _MIN_EXTENDED_CLUSTER_SIZE:
            raise OptionError(
                "Extended L2 entries are only supported with cluster sizes of at least "
                f"{_MIN_EXTENDED_CLUSTER_SIZE} bytes"
            )

    def _validate_backing(self) -> None:
        if self.backing_fmt is not None and not self.backing_file:
            raise OptionError("Backing format cannot be used without backing file")
        if self.backing_file and self.backing_fmt is None:
            raise OptionError("Backing file specified without backing format")
        if self.backing_file and len(self.backing_file.encode("utf-8", "surrogateescape")) > _MAX_BACKING_NAME:
            raise OptionError(
                f"Could not assign backing file '{self.backing_file}' with format '{self.backing_fmt}': "
                "Invalid argument",
                errno.EINVAL,
            )

    def _validate_data_file(self) -> None:
        if self.data_file_raw and self.data_file is None:
            raise OptionError("data-file-raw requires data-file")
        if self.data_file_raw and self.backing_file:
            raise OptionError("Backing file and data-file-raw cannot be used at the same time")
        if self.version < 3 and self.data_file is not None:
            raise OptionError(
                "External data files are only supported with compatibility level 1.1 and above "
                "(use version=v3 or greater)"
            )
