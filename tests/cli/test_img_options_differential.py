"""Every option of every command of ``blockio img`` beside the real qemu-img, where it works and where it fails.

``+`` stands in front of a script whose last line succeeds, ``-`` where it fails. What the options are is asked of the
tables that the command lines are parsed by, so an option added there needs its lines here. More of each command, and
of wrong sizes and contradictions, is in the files beside this one; see ``test_img_differential`` for what is compared.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from blockio.cli.img.commands import COMMANDS
from blockio.cli.img.getopt import CommandLine
from tests.support.imgcases import files_for, named, scripts
from tests.support.imgtool import Said, run_both
from tests.support.qemu import qemu_img

S = "--object secret,id=s,data=abc"

TABLE = f"""
+ amend {S} -f qcow2 -t none -p -o lazy_refcounts=on,compat=1.1 v2.qcow2
+ amend -q -p --force --image-opts -o compat=0.10 driver=qcow2,file.filename=a.qcow2
- amend {S} -f raw -t none -p -o size=1M d.raw
- amend -q -t foo --force -o compat=0.10 a.qcow2
- amend --image-opts -f qcow2 -o compat=0.10 driver=qcow2,file.filename=a.qcow2
- bench -c 0x -d 4 -f qcow2 -i threads -n -o 4k -q -s 4k -S 8k -t none -U a.qcow2
+ bench --image-opts -c 2 -d 1 -w --pattern=255 --flush-interval=1 --no-drain driver=qcow2,file.filename=a.qcow2
+ bench -c 2 -d 4 -f qcow2 -i threads -n -o 4k -q -s 4k -S 8k -t none -U a.qcow2
- bench --image-opts -c 2 -w --pattern=256 driver=qcow2,file.filename=a.qcow2
- bench --image-opts --no-drain -w --flush-interval=0x driver=qcow2,file.filename=a.qcow2
+ bitmap {S} -f qcow2 --add -g 64k --disable a.qcow2 b ; bitmap --enable --clear a.qcow2 b ; bitmap --add a.qcow2 c \
; bitmap --merge b a.qcow2 c ; bitmap --remove --image-opts driver=qcow2,file.filename=a.qcow2 c
+ bitmap --add kept.qcow2 b ; bitmap --add --merge b -b kept.qcow2 -F qcow2 a.qcow2 b
- bitmap {S} -f raw --add -g 64k d.raw b
- bitmap --add -g 3k a.qcow2 b
- bitmap --remove a.qcow2 b
- bitmap --clear --enable --disable --image-opts driver=qcow2,file.filename=a.qcow2 b
- bitmap --add --merge b -b d.raw -F qcow2 a.qcow2 b
+ check {S} -U -q -f qcow2 --output=json -T none a.qcow2
+ check -r leaks --image-opts driver=qcow2,file.filename=leak.qcow2
- check {S} -U -q -f qcow2 --output=json -T none corrupt.qcow2
- check -r all --image-opts driver=raw,file.filename=d.raw
- check -U -r all a.qcow2
+ commit {S} -f qcow2 -t none -b a.qcow2 -r 1G -d -p ov.qcow2
+ commit -q --image-opts driver=qcow2,file.filename=ov.qcow2
- commit {S} -f qcow2 -t none -b nope -r 1G -d -p ov.qcow2
- commit -q --image-opts driver=qcow2,file.filename=a.qcow2
- commit -t foo ov.qcow2
- commit -r 1x ov.qcow2
+ compare {S} -U -f qcow2 -F raw -T none -p -q a.qcow2 a.raw
+ compare --image-opts -s driver=raw,file.filename=a.raw driver=raw,file.filename=a.raw
- compare {S} -U -f qcow2 -F raw -T none -p -q a.qcow2 b.raw
- compare --image-opts -s driver=raw,file.filename=a.raw driver=raw,file.filename=long.raw
- compare {S} -T foo a.raw a.raw
+ convert {S} -U -p -q -f qcow2 -t none -T none -O qcow2 -m 4 -W -r 1G -S 8k --salvage \
-o cluster_size=4k a.qcow2 o.qcow2
+ convert --image-opts -n --target-image-opts --target-is-zero driver=raw,file.filename=a.raw \
driver=qcow2,file.filename=empty.qcow2
+ convert -C -B a.qcow2 -F qcow2 -O qcow2 ov.qcow2 o.qcow2
+ convert -c -l first -O qcow2 kept.qcow2 o.qcow2
+ bitmap --add a.qcow2 b ; convert --bitmaps --skip-broken-bitmaps -O qcow2 a.qcow2 o.qcow2
- convert {S} -U -p -q -f qcow2 -T none -O qcow2 -m 4 -W -r 1G -S 8k --salvage -o cluster_size=3k a.qcow2 o.qcow2
- convert --image-opts -n --target-image-opts --target-is-zero driver=raw,file.filename=a.raw driver=foo
- convert -C -B nope -F qcow2 -O qcow2 ov.qcow2 nodir/o.qcow2
- convert -c -l foo -O qcow2 kept.qcow2 o.qcow2
- convert --bitmaps --skip-broken-bitmaps -O qcow2 d.raw o.qcow2
- convert -n -t foo -O raw a.raw b.raw
+ create {S} -q -f qcow2 -b a.qcow2 -F qcow2 -o cluster_size=4k x.qcow2
+ create -u -f qcow2 -b nope -F raw x.qcow2 1M
- create {S} -q -f qcow2 -b nope -F qcow2 -o cluster_size=4k x.qcow2
- create -u -f qcow2 -b nope -F raw x.qcow2
+ dd {S} -U -f qcow2 -O qcow2 bs=64k skip=1 count=4 if=a.qcow2 of=o.qcow2
+ dd --image-opts if=driver=qcow2,file.filename=a.qcow2 of=o.raw
- dd {S} -U -f qcow2 -O foo bs=64k skip=1 count=4 if=a.qcow2 of=o.qcow2
- dd --image-opts if=driver=qcow2,file.filename=nope of=o.raw
+ info {S} -U -f qcow2 --output=json --backing-chain ov.qcow2
+ info --image-opts driver=qcow2,file.filename=a.qcow2
- info {S} -U -f qcow2 --output=json --backing-chain broken.qcow2
- info --image-opts driver=qcow2,file.filename=d.raw
+ map {S} -U -f qcow2 --output=json -s 64k -l 1M ov.qcow2
+ map --image-opts driver=qcow2,file.filename=a.qcow2
- map {S} -U -f qcow2 --output=json -s 64k -l 1x ov.qcow2
- map --image-opts driver=qcow2,file.filename=d.raw
+ measure {S} -U -f qcow2 --output=json -O qcow2 -o cluster_size=4k -l first kept.qcow2
+ measure --image-opts -O qcow2 driver=qcow2,file.filename=a.qcow2
+ measure --size 1G
- measure {S} -U -f qcow2 --output=json -O qcow2 -o cluster_size=4k -l foo kept.qcow2
- measure --image-opts --size 1G driver=qcow2,file.filename=a.qcow2
+ rebase {S} -U -f qcow2 -t none -T none -p -b sparse.raw -F raw ov.qcow2
+ rebase -q -u -b nope -F raw --image-opts driver=qcow2,file.filename=ov.qcow2
- rebase -u -b d.raw ov.qcow2
- rebase {S} -U -f qcow2 -t none -T none -p -b sparse.raw -F qcow2 ov.qcow2
- rebase -q -u -b nope -F foo --image-opts driver=qcow2,file.filename=ov.qcow2
- rebase -t foo -b a.qcow2 -F qcow2 ov.qcow2
- rebase -T foo -b a.qcow2 -F qcow2 ov.qcow2
+ resize {S} -q -f qcow2 --preallocation=metadata a.qcow2 +1M
+ resize --shrink --image-opts driver=qcow2,file.filename=a.qcow2 1M
- resize {S} -q -f qcow2 --preallocation=foo a.qcow2 +1M
- resize --shrink --image-opts driver=qcow2,file.filename=a.qcow2 1x
+ snapshot {S} -q -c x kept.qcow2
+ snapshot -a first kept.qcow2 ; snapshot -d first kept.qcow2
+ snapshot -U -l a.qcow2
+ snapshot --image-opts -c x driver=qcow2,file.filename=a.qcow2
- snapshot {S} -q -c x d.raw
- snapshot -a nope kept.qcow2
- snapshot -d nope kept.qcow2
- snapshot -U -l nope
- snapshot --image-opts -c x driver=raw,file.filename=d.raw
"""


class Case(NamedTuple):
    """A script, and whether its last line succeeds."""

    succeeds: bool
    script: list[str]


CASES = [Case(script[0].startswith("+"), [script[0][2:], *script[1:]]) for script in scripts(TABLE)]
assert len(CASES) == len(re.findall("^[+-] ", TABLE, re.MULTILINE))

_STEPS = re.compile(r"(?<=\r)(    \(\d+\.\d\d/100%\)\r)+(?=\n)")


def _comparable(said: Said) -> Said:
    """Without what differs from one run of the same tool to the next."""
    out = re.sub(r"completed in \d+\.\d{3} seconds", "completed in T seconds", said.out)
    # How many steps there are between nothing and all is a matter of how much is moved at a time.
    out = _STEPS.sub(r"\1", out)
    return said._replace(out=out, err=re.sub(r"#block\d+", "#block", said.err))


@pytest.mark.peer("qemu-img", "qemu-io")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{'+' if case.succeeds else '-'} {named(case.script)}"[:90])
def test_the_same_line_gives_the_same_outcome(case: Case, template: Path, tmp_path: Path) -> None:
    theirs, mine = run_both(case.script, files_for(case.script, template), template, tmp_path)
    assert [_comparable(said) for said in mine.said] == [_comparable(said) for said in theirs.said]
    assert mine.files == theirs.files
    assert (theirs.said[-1].status == 0) is case.succeeds


def _used(script: list[str]) -> Iterator[tuple[str, str]]:
    """The command and key of each option on the lines of *script*."""
    for line in script:
        name, *args = shlex.split(line)
        for key, _ in CommandLine(COMMANDS[name].known(own=False), name, args):
            yield name, key


@pytest.mark.parametrize("succeeds", [True, False])
def test_every_option_is_shown_where_it_works_and_where_it_fails(succeeds: bool) -> None:
    options = {
        (name, option.key)
        for name, command in COMMANDS.items()
        if not command.own
        for option in command.known(own=False)
        if option.key != "help"
    }
    # Of a script that fails it is the last line that does; of one that succeeds, all do.
    used = {
        pair
        for case in CASES
        if case.succeeds is succeeds
        for pair in _used(case.script if succeeds else case.script[-1:])
    }
    assert options - used == set()


@pytest.mark.peer("qemu-img")
def test_the_commands_and_their_options_are_those_of_the_real_help() -> None:
    """All of them are there; what is there beyond them is known only by blockio's own name."""
    usage = qemu_img("--help").stdout.partition("Command syntax:\n")[2].partition("\n\n")[0]
    theirs = {line.split()[0]: set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", line)) for line in usage.splitlines()}
    ours = {name: command for name, command in COMMANDS.items() if not command.own}
    assert ours.keys() == theirs.keys()
    for name, command in ours.items():
        assert theirs[name] <= {spelled for option in command.known(own=False) for spelled in option.names}, name
