"""Secrets: QEMU's words for what is wrong, and nothing of what they hold anywhere else."""

from __future__ import annotations

import base64
import copy
import pickle
import subprocess
from pathlib import Path

import pytest

from blockio.cli.io import main as io_main
from blockio.driver.secret import Secret, find_secret
from blockio.errors import OptionError
from blockio.objects import create_object, delete_object, find_object
from tests.crypto.rig import PASSPHRASE, secrets


def test_a_secret_comes_from_data_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"from a file\n")
    monkeypatch.setenv("BLOCKIO_TEST_SECRET", "from outside")
    encoded = base64.b64encode(b"\xff\x00encoded").decode()
    for properties, value in (
        ({"data": "plain"}, b"plain"),
        ({"data": ""}, b""),
        ({"file": str(file)}, b"from a file\n"),
        ({"env": "BLOCKIO_TEST_SECRET"}, b"from outside"),
        ({"data": encoded, "format": "base64"}, b"\xff\x00encoded"),
    ):
        Secret.define("s", **properties)
        try:
            assert find_secret("s") == value
        finally:
            delete_object("s")
    assert find_object("s") is None


def test_a_secret_can_be_encrypted_with_another() -> None:
    key, iv = bytes(range(32)), bytes(range(16))
    encrypted = subprocess.run(
        ["openssl", "enc", "-aes-256-cbc", "-K", key.hex(), "-iv", iv.hex(), "-a", "-A"],
        input=PASSPHRASE.encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    Secret.define("master", data=base64.b64encode(key).decode(), format="base64")
    try:
        Secret.define("s", data=encrypted, format="base64", keyid="master", iv=base64.b64encode(iv).decode())
        assert find_secret("s", text=True) == PASSPHRASE.encode()
        delete_object("s")
        with pytest.raises(OptionError, match=r"Incorrect number of padding bytes|Length of the encrypted"):
            Secret.define("s", data=encrypted[:20], format="base64", keyid="master", iv=base64.b64encode(iv).decode())
    finally:
        delete_object("master")


def test_what_a_secret_holds_is_shown_nowhere() -> None:
    with secrets(s=PASSPHRASE):
        secret = find_object("s")
        assert isinstance(secret, Secret)
        for text in (repr(secret), str(secret), f"{secret}", repr(vars(type(secret)))):
            assert PASSPHRASE not in text
        for copying in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError):
                copying(secret)
    for properties in ({"data": PASSPHRASE + "!", "format": "base64"}, {"data": PASSPHRASE, "keyid": "none"}):
        with pytest.raises(OptionError) as caught:
            Secret.define("s", **properties)
        error: BaseException | None = caught.value
        while error is not None:
            assert PASSPHRASE not in repr(error)
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    create_object({"qom-type": "secret", "id": "s", "data": "w/8=", "format": "base64"})
    try:
        with pytest.raises(OptionError, match="Data from secret s is not valid UTF-8") as invalid:
            find_secret("s", text=True)
        assert invalid.value.__cause__ is None
    finally:
        delete_object("s")


@pytest.mark.peer("qemu-io")
@pytest.mark.parametrize(
    "definition",
    [
        "secret,id=s,data=x,format=x",
        "secret,id=s",
        "secret,id=s,data=a,file=b",
        "secret,data=a",
        "secret,id=s,file=/nope",
        "secret,id=s,data=x,foo=1",
        "secret,id=s,data=x,keyid=m",
        "secret,id=1s,data=x",
    ],
)
def test_wrong_definitions_in_the_words_of_qemu(definition: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["qemu-io", "--object", definition, "-c", "quit"]
    status = io_main(words[1:], words[0])
    said = capfd.readouterr()
    theirs = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (status, said.out, said.err) == (theirs.returncode, theirs.stdout, theirs.stderr)
