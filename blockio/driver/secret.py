"""Secrets: what is needed to open an image and is never seen (QEMU's ``secret`` object).

An image's options name a secret by its id, and only by that: what it holds is in no file name, ``repr``, message
or log. It comes from the definition itself (``data``), from a file, or from an environment variable (``env``, which
is blockio's own); it may be encrypted with another secret (``keyid``, AES-256-CBC).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from blockio.errors import OptionError
from blockio.objects import Schema, UserObject, create_object, find_object

__all__ = ["Secret", "find_secret"]

_FORMATS: Final = ("raw", "base64")
_MAX_FILE: Final = 1 << 20
_NO_BASE64: Final = re.compile(rb"[^A-Za-z0-9+/=\n]")
_KEY_BYTES: Final = 32
_IV_BYTES: Final = 16


class Secret(UserObject):
    """One secret. ``value`` is all that shows what it is; there is no other way to print or copy it."""

    kind = "secret"
    schema: ClassVar[Schema] = {
        "data": str,
        "file": str,
        "env": str,
        "format": str,
        "keyid": str,
        "iv": str,
        "loaded": bool,
    }
    __slots__ = ("_value", "id")

    def __init__(self, id: str, value: bytes) -> None:
        """Unregistered; ``define`` makes one that images can name."""
        self.id = id
        self._value = value

    @classmethod
    def define(cls, id: str, **properties: str) -> Secret:
        """A new secret of that id, from ``data=``, ``file=`` or ``env=``, with ``format=``, ``keyid=`` and ``iv=``.

        It is there until ``blockio.objects.delete_object``. OptionError for what cannot be, an id in use, a file that
        cannot be read. The file is read in place: it is small, and nothing can be opened before.
        """
        made = create_object({"qom-type": cls.kind, "id": id, **properties})
        assert isinstance(made, cls)
        return made

    @classmethod
    def create(cls, id: str, properties: Mapping[str, Any]) -> Secret:
        form = properties.get("format", "raw")
        if form not in _FORMATS:
            raise OptionError(f"Parameter 'format' does not accept value '{form}'")
        value = _load(properties)
        keyid = properties.get("keyid")
        if keyid is not None:
            value = _decrypt(value, keyid, properties.get("iv"), encoded=form == "base64")
        elif form == "base64":
            value = _decoded(value)
        return cls(id, value)

    def delete(self) -> None:
        """Forget it. Whoever opened an image with it has a key by now."""
        self._value = b""

    @property
    def value(self) -> bytes:
        """What the secret is."""
        return self._value

    def __repr__(self) -> str:
        return f"<Secret '{self.id}'>"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not copied or sent to another process")


def find_secret(id: str, *, text: bool = False) -> bytes:
    """What the secret of that id holds. With *text* it must be UTF-8, as a passphrase is.

    OptionError where no object has that id, or it is none of this kind.
    """
    found = find_object(id)
    if found is None:
        raise OptionError(f"No secret with id '{id}'")
    if not isinstance(found, Secret):
        raise OptionError(f"Object with id '{id}' is not a secret")
    if text:
        try:
            found.value.decode()
        except UnicodeDecodeError:
            # Without its cause, which holds the bytes.
            raise OptionError(f"Data from secret {id} is not valid UTF-8") from None
    return found.value


def _load(properties: Mapping[str, Any]) -> bytes:
    sources = [name for name in ("file", "data", "env") if name in properties]
    if not sources:
        raise OptionError("Either 'file' or 'data' must be provided")
    if len(sources) > 1:
        raise OptionError(f"'{sources[0]}' and '{sources[1]}' are mutually exclusive")
    text: str = properties[sources[0]]
    if sources[0] == "data":
        return os.fsencode(text)
    if sources[0] == "env":
        value = os.environb.get(os.fsencode(text))
        if value is None:
            raise OptionError(f"Environment variable '{text}' is not set")
        return value
    return _read(text)


def _read(path: str) -> bytes:
    try:
        # reason: a secret is read where it is defined, before anything is under way
        with open(path, "rb") as file:
            value = file.read(_MAX_FILE + 1)
    except (OSError, ValueError) as error:
        reason = os.strerror(getattr(error, "errno", 0) or 22)
        raise OptionError(f"Unable to read {path}: Failed to open file “{path}”: {reason}") from None
    if len(value) > _MAX_FILE:
        raise OptionError(f"Unable to read {path}: it is longer than {_MAX_FILE} bytes")
    return value


def _decoded(value: bytes) -> bytes:
    if _NO_BASE64.search(value):
        raise OptionError("Base64 data of the secret is not valid")
    whole = value.replace(b"\n", b"").rstrip(b"=")
    # As glib does: what is left of a last group of four is decoded as far as it goes.
    whole = whole[: len(whole) - (len(whole) % 4 == 1)]
    try:
        return base64.b64decode(whole + b"=" * (-len(whole) % 4))
    except binascii.Error:
        raise OptionError("Base64 data of the secret is not valid") from None


def _decrypt(value: bytes, keyid: str, iv_text: str | None, *, encoded: bool) -> bytes:
    key = find_secret(keyid)
    if len(key) != _KEY_BYTES:
        raise OptionError(f"Key should be {_KEY_BYTES} bytes in length")
    if iv_text is None:
        raise OptionError("IV is required to decrypt secret")
    iv = _decoded(iv_text.encode("utf-8", "surrogateescape"))
    if len(iv) != _IV_BYTES:
        raise OptionError(f"IV should be {_IV_BYTES} bytes in length not {len(iv)}")
    if encoded:
        value = _decoded(value)
    if len(value) % 16:
        raise OptionError(f"Length of the encrypted secret ({len(value)}) is not a multiple of 16")
    # few secrets are encrypted
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    decryptor = Cipher(algorithms.AES(key), modes.CBC(iv)).decryptor()
    plain = decryptor.update(value) + decryptor.finalize()
    padding = plain[-1] if plain else 0
    if not 0 < padding <= 16 or padding > len(plain):
        raise OptionError("Incorrect number of padding bytes found on decrypted data")
    return plain[:-padding]
