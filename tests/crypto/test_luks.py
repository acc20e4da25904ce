"""The luks driver beside qemu-img, qemu-io and cryptsetup, in both directions."""

from __future__ import annotations

import asyncio
import itertools
import random
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import blockio
from blockio import img
from blockio.cli.img import main as img_main
from blockio.errors import BlockError, OptionError
from blockio.testing.conformance import Traits, check_driver
from blockio_drivers.crypto import by_arrays, ciphers
from tests.crypto.rig import PASSPHRASE, secrets, unsplit_keys
from tests.support.qemu import pattern, qemu_img, qemu_img_json

OBJECT = f"secret,id=s,data={PASSPHRASE}"
MIB = 1 << 20


@pytest.fixture(autouse=True)
def secret() -> Iterator[None]:
    with secrets(s=PASSPHRASE, wrong="wrong"):
        yield


async def create(path: Path, size: int = MIB, **options: Any) -> None:
    await img.create(str(path), "luks", size=size, options={"key-secret": "s", "iter-time": 1, **options})


def opened(path: Path, secret: str | None = "s", **options: Any) -> Any:
    given = {"driver": "luks", "file": {"driver": "file", "filename": str(path)}, **options}
    return blockio.open(options=given if secret is None else {**given, "key-secret": secret})


def opts(path: Path) -> list[str]:
    return ["--object", OBJECT, "--image-opts", f"driver=luks,key-secret=s,file.filename={path}"]


def cryptsetup(*args: str, key: str = PASSPHRASE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["cryptsetup", *args], input=key, capture_output=True, text=True, check=False, timeout=60)


async def test_conformance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unsplit_keys(monkeypatch)
    numbers = itertools.count()
    fresh: dict[int, Path] = {}  # a volume of each length is made once: deriving keys takes long

    async def make(length: int) -> Mapping[str, Any]:
        if length not in fresh:
            path = tmp_path / f"{length}.luks"
            await create(path, length)
            async with opened(path) as blk:  # a new volume is noise, and the suite's disks begin as zeroes
                if length:
                    await blk.co_pwritev(0, bytes(length))
                    await blk.co_flush()
            fresh[length] = path
        path = tmp_path / f"disk{next(numbers)}.luks"
        await asyncio.to_thread(shutil.copyfile, fresh[length], path)
        return {"driver": "luks", "key-secret": "s", "file": {"driver": "file", "filename": str(path)}}

    report = await check_driver(make, Traits(grows_zero=False))
    assert report.ok, f"\n{report}"


@pytest.mark.peer("qemu-img")
@pytest.mark.peer("cryptsetup")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cipher-alg": "aes-128", "ivgen-alg": "plain", "hash-alg": "sha512"},
        {"cipher-alg": "aes-256", "cipher-mode": "cbc", "ivgen-alg": "essiv", "hash-alg": "sha1"},
    ],
)
async def test_written_here_read_by_qemu_and_cryptsetup_and_back(
    tmp_path: Path, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ciphers, "_arithmetic", lambda _nbytes, _worth: by_arrays)  # the other tests count
    path = tmp_path / "ours.luks"
    await create(path, MIB, **options)
    data = pattern(300_000)
    async with opened(path) as blk:
        await blk.co_pwritev(12_345, data)
        await blk.co_flush()
    assert cryptsetup("open", "--type", "luks", "--test-passphrase", str(path), "-").returncode == 0
    assert cryptsetup("open", "--type", "luks", "--test-passphrase", str(path), "-", key="no").returncode != 0
    plain = tmp_path / "plain.raw"
    qemu_img("convert", *opts(path), "-O", "raw", str(plain))
    assert plain.read_bytes()[12_345 : 12_345 + len(data)] == data
    theirs = tmp_path / "theirs.luks"
    given = ",".join(f"{name}={value}" for name, value in options.items())
    more = f",{given}" if given else ""
    qemu_img("create", "-f", "luks", "--object", OBJECT, "-o", f"key-secret=s,iter-time=10{more}", str(theirs), "1M")
    script = ["write -P 171 1000 70000", "write -P 7 900k 1k"]
    await asyncio.to_thread(
        subprocess.run,
        ["qemu-io", *opts(theirs), *(word for line in script for word in ("-c", line))],
        check=True,
        capture_output=True,
    )
    async with opened(theirs) as blk:
        memory = bytearray(70_000)
        await blk.co_preadv(1000, memory)
        assert memory == bytes([171]) * 70_000
        last = bytearray(1024)
        await blk.co_preadv(900 << 10, last)
        assert last == bytes([7]) * 1024
    # The two write the same header but for what is random or measured.
    ours_info, theirs_info = (
        qemu_img_json("info", "--output=json", path),
        qemu_img_json("info", "--output=json", theirs),
    )
    for info in (ours_info, theirs_info):
        del info["filename"], info["actual-size"]
        data_of = info["format-specific"]["data"]
        del data_of["uuid"], data_of["master-key-iters"], data_of["slots"][0]["iters"]
    assert ours_info == theirs_info


@pytest.mark.peer("cryptsetup")
@pytest.mark.parametrize("detached", [False, True])
async def test_what_cryptsetup_formats_is_opened(tmp_path: Path, detached: bool) -> None:
    path, header = tmp_path / "c.luks", tmp_path / "c.header"
    path.write_bytes(bytes(8 * MIB))
    header.write_bytes(bytes(4 * MIB))
    extra = ["--header", str(header)] if detached else []
    made = cryptsetup(
        *("luksFormat", "--type", "luks1", "-q", "--pbkdf-force-iterations", "1000", *extra, str(path), "-")
    )
    assert made.returncode == 0, made.stderr
    children = {"header": {"driver": "file", "filename": str(header)}} if detached else {}
    async with opened(path, "s", **children) as blk:
        assert blk.getlength() == 8 * MIB - (0 if detached else 2 * MIB) or detached
        await blk.co_pwritev(0, b"A" * 512)
        memory = bytearray(512)
        await blk.co_preadv(0, memory)
        assert memory == b"A" * 512


@pytest.mark.peer("qemu-img")
def test_info_is_what_qemu_says_without_the_key(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "i.luks")
    given = "key-secret=t,iter-time=1,cipher-mode=cbc,ivgen-alg=essiv"
    assert not img_main(["create", "-f", "luks", "--object", OBJECT.replace("id=s", "id=t"), "-o", given, path, "1M"])
    for words in (["info"], ["info", "--output=json"]):
        capfd.readouterr()
        assert img_main([*words, path]) == 0
        assert capfd.readouterr().out == qemu_img(*words, path).stdout


async def test_wrong_and_missing_secrets(tmp_path: Path) -> None:
    path = tmp_path / "w.luks"
    await create(path)
    for secret, message in (
        ("wrong", "Invalid password, cannot unlock any keyslot"),
        ("none", "No secret with id 'none'"),
        (None, "Parameter 'key-secret' is required for cipher"),
    ):
        with pytest.raises(OptionError, match=message) as caught:
            async with opened(path, secret):
                pass
        assert PASSPHRASE not in repr(caught.value)
    async with opened(path) as blk:
        node = blk.bs
        assert node is not None
        assert PASSPHRASE not in node.filename + repr(node) + repr(node.driver)


async def test_a_model_of_random_requests(tmp_path: Path) -> None:
    path = tmp_path / "m.luks"
    await create(path, 256 << 10)
    source = random.Random(4)
    model = bytearray(source.randbytes(256 << 10))
    async with opened(path) as blk:
        await blk.co_pwritev(0, bytes(model))
        for _ in range(60):
            offset = source.randrange(len(model))
            nbytes = source.randrange(1, min(60_000, len(model) - offset) + 1)
            if source.random() < 0.5:
                data = source.randbytes(nbytes)
                await blk.co_pwritev(offset, data)
                model[offset : offset + nbytes] = data
            else:
                memory = bytearray(nbytes)
                await blk.co_preadv(offset, memory)
                assert memory == model[offset : offset + nbytes]
    async with opened(path) as blk:
        memory = bytearray(len(model))
        await blk.co_preadv(0, memory)
        assert memory == model
    assert model[-512:] not in path.read_bytes()


@pytest.mark.peer("qemu-img")
@pytest.mark.parametrize(
    "option",
    ["cipher-alg=foo", "cipher-alg=3des", "cipher-mode=gcm", "hash-alg=foo", "ivgen-alg=x", "key-secret=none"],
)
async def test_creation_is_refused_in_the_words_of_qemu(tmp_path: Path, option: str) -> None:
    name, _, value = option.partition("=")
    path = tmp_path / "n.luks"
    with pytest.raises(BlockError) as caught:
        await create(path, MIB, **{name: value})
    result = qemu_img(
        *(
            "create",
            "-q",
            "-f",
            "luks",
            "--object",
            OBJECT,
            "-o",
            f"key-secret=s,iter-time=10,{option}",
            str(path),
            "1M",
        ),
        check=False,
    )
    assert result.stderr == f"qemu-img: {path}: {caught.value}\n"


async def test_growing_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "g.luks"
    await create(path, 64 << 10)
    async with opened(path) as blk:
        await blk.co_pwritev(0, b"x" * 65536)
    options = {"driver": "luks", "key-secret": "s", "file": {"driver": "file", "filename": str(path)}}
    await img.resize(img.Image(options=options), MIB)
    async with opened(path) as blk:
        assert blk.getlength() == MIB
        memory = bytearray(65536)
        await blk.co_preadv(0, memory)
        assert memory == b"x" * 65536


@pytest.mark.peer("qemu-img")
def test_conversion_into_an_encrypted_image_and_out_of_it(tmp_path: Path) -> None:
    plain, encrypted, back = tmp_path / "plain", tmp_path / "encrypted", tmp_path / "back"
    plain.write_bytes(pattern(3 * MIB))
    words = ["--object", OBJECT.replace("id=s", "id=t")]
    into = ["-f", "raw", "-O", "luks", "-o", "key-secret=t,iter-time=1", str(plain), str(encrypted)]
    assert img_main(["convert", *words, *into]) == 0
    qemu_img("convert", *opts(encrypted), "-O", "raw", str(back))
    assert back.read_bytes() == plain.read_bytes()
    back.unlink()
    out_of = ["--image-opts", f"driver=luks,key-secret=t,file.filename={encrypted}", "-O", "raw", str(back)]
    assert img_main(["convert", *words, *out_of]) == 0
    assert back.read_bytes() == plain.read_bytes()


async def test_what_a_volume_takes_is_known_before_it_is_made(tmp_path: Path) -> None:
    """The numbers are qemu-img's: both are the same, and nothing is rounded."""
    for size, options, wanted in (
        (MIB, {}, 3117056),
        (1000, {}, 2069480),
        (MIB, {"cipher-mode": "cbc"}, 2101248),
    ):
        measured = await img.measure(format="luks", size=size, options={"key-secret": "s", **options})
        assert (measured.required, measured.fully_allocated, measured.bitmaps) == (wanted, wanted, None)
        path = tmp_path / f"{wanted}.luks"
        await create(path, size, **options)
        assert path.stat().st_size == wanted
    with pytest.raises(OptionError, match="key-secret"):
        await img.measure(format="luks", size=MIB)
