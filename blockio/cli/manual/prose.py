"""What the tables of options cannot say: how a command works, what it prints and returns, how to do it in a program.

Examples are commands as one types them, behind ``blockio``; a test runs those of each page one after the other.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from blockio.img.checksums import ALGORITHMS

__all__ = ["CACHE_MODES", "IO_ABOUT", "PROSE", "STATUS", "Prose"]


class Prose(NamedTuple):
    """About one command."""

    about: tuple[str, ...]
    examples: tuple[str, ...] = ()
    library: str = ""
    status: tuple[tuple[str, str], ...] = ()


STATUS: Final = (("0", "It is done."), ("1", "It is not, and standard error says why."))

CACHE_MODES: Final = (
    ("none", "past the host's page cache (O_DIRECT)"),
    ("writeback", "through the page cache; a flush makes it last"),
    ("writethrough", "as `writeback`, and each write lasts when it is done"),
    ("directsync", "as `none`, and each write lasts when it is done"),
    ("unsafe", "through the page cache, and flushes do nothing"),
)

IO_ABOUT: Final = (
    "Commands come from `-c`, one after the other, or, without any `-c`, from standard input behind a prompt; on a "
    "terminal with editing and history. Words are parted by blanks; sizes take the suffixes k, M, G, T, P and E.",
    "The exit status is 1 when the image could not be opened or any command failed, else 0.",
)

PROSE: Final[dict[str, Prose]] = {
    "amend": Prose(
        (
            "Of qcow2: the version, the width of refcounts, lazy refcounts, the size; of luks and encrypted qcow2: "
            "passphrases. `-o help` lists what a format can change.",
            "What the image cannot become is refused before anything is changed. An amendment that is interrupted "
            "leaves a sound image with the same disk, and can be repeated.",
        ),
        ("img amend -o compat=1.1,lazy_refcounts=on disk.qcow2", "img amend -f qcow2 -o help"),
        'await img.amend("disk.qcow2", {"compat": "1.1"})',
    ),
    "bench": Prose(
        (
            "Sends requests of one size, `-d` of them at a time, and prints how long all took. For more than that, "
            "with peers beside it and latencies, see `blockio bench`.",
        ),
        ("img bench -f qcow2 -c 1000 disk.qcow2",),
        'await img.bench("disk.qcow2", count=1000)',
    ),
    "bitmap": Prose(
        (
            "The actions are done in the order in which they are given. An image must not be in use meanwhile.",
            "A bitmap that is enabled records which parts of the disk are written to from then on; backup programs ask "
            "for it.",
        ),
        ("img bitmap --add -g 64k disk.qcow2 nightly", "img bitmap --remove disk.qcow2 nightly"),
        'await img.bitmap("disk.qcow2", "nightly", [img.BitmapAction(img.BitmapOperation.ADD)])',
    ),
    "check": Prose(
        (
            "Reads the metadata only, not the data. `-r leaks` gives back clusters that nothing refers to; `-r all` "
            "also mends what is wrong, which may cost data.",
        ),
        ("img check disk.qcow2", "img check --output=json disk.qcow2"),
        'report = await img.check("disk.qcow2")',
        (
            ("0", "The image is consistent, now."),
            ("1", "The check could not be done."),
            ("2", "There are corruptions."),
            ("3", "There are leaked clusters, and no corruptions."),
            ("63", "The format knows no check."),
        ),
    ),
    "commit": Prose(
        (
            "Without `-d` and `-b` the overlay is emptied afterwards: what it held is below it now.",
            "A commit that is interrupted can simply be repeated: the overlay is emptied only at the end.",
        ),
        (
            "img create -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2",
            "img commit overlay.qcow2",
        ),
        'await img.commit("overlay.qcow2")',
    ),
    "compare": Prose(
        (
            "Reads both disks as a guest would. Formats and sizes of the files do not matter; without `-s`, neither "
            "does a tail of zeroes.",
        ),
        ("img convert -O raw disk.qcow2 disk.raw", "img compare disk.qcow2 disk.raw"),
        'result = await img.compare("disk.qcow2", "disk.raw")',
        (
            ("0", "They are the same."),
            ("1", "They differ."),
            ("2", "One of them cannot be opened."),
            ("3", "What lies where cannot be found out."),
            ("4", "One of them cannot be read."),
        ),
    ),
    "convert": Prose(
        (
            "Several disks are put one after the other. Zeroes take no room in the new image, where it can leave them "
            "out.",
            "A target that did not exist is written beside its final name and gets the name when it is whole; when the "
            "command fails, or is ended by SIGINT or SIGTERM, nothing is left. SIGUSR1 prints a percentage.",
            "By blockio's own names, `-` is standard input or output. What comes from a pipe is kept in a file without "
            "a name, in TMPDIR or /var/tmp, until the end. Into a pipe go raw and qcow2 images, in one pass: `blockio "
            "img convert -O qcow2 disk.raw - | ssh host 'cat > disk.qcow2'`.",
            "`--digest` prints, as its last line, what `blockio img digest` says of the new image: a checksum of all "
            "that was read, made in the same pass, in the order of the disk whatever order the writes are in. It goes "
            "with neither `-B` nor `-C`, which leave data unread. An image on standard output has its digest on "
            "standard error.",
            "With `--resume` what is done stays when the command fails or is ended, by SIGKILL or a crash of the "
            "machine as well, and the same command goes on from there. It is in `.NAME.XXXXXXXX.part` beside the "
            "target, and `.NAME.XXXXXXXX.journal` says how far it is on stable storage; both are gone when the target "
            "has its name. Where the sources have changed meanwhile it warns and starts from nothing; with other "
            "options it refuses and names the files to remove. The target must be a new file, the sources regular "
            "files. With `--digest` what is there already is read once more.",
        ),
        (
            "img convert --digest -O raw disk.qcow2 disk.raw",
            "img convert -c -O qcow2 disk.raw small.qcow2",
            "img convert --resume -O qcow2 disk.raw copy.qcow2",
        ),
        'await img.convert("disk.qcow2", "disk.raw", "raw")',
    ),
    "create": Prose(
        (
            "The size may be left out where there is a backing file: it is that file's. `-o help` lists what a format "
            "takes.",
        ),
        ("img create -f qcow2 -o cluster_size=128k new.qcow2 20G", "img create -f qcow2 -o help"),
        'await img.create("new.qcow2", "qcow2", size=20 << 30, options={"cluster_size": 131072})',
    ),
    "dd": Prose(
        ("Operands are written as those of Unix's `dd`. The target is always made anew.",),
        ("img dd -f qcow2 -O raw bs=1M count=2 skip=1 if=disk.qcow2 of=part.raw",),
        'await img.dd("disk.qcow2", "part.raw", block_size=1 << 20, count=2, skip=1)',
    ),
    "digest": Prose(
        (
            "Hashes the disk, backing files included, not the file: the same content has the same digest in every "
            "format. Of a raw image it is what `sha256sum` says of the file (where that is no whole number of sectors "
            "of 512 bytes, of the file with zeroes up to the next, which is what a guest sees).",
            "Zeroes that are stored nowhere are not read, but have to be hashed. An algorithm with `-64k` in its name "
            "spares that, too: it hashes the digests of all blocks of 64 KiB (the last shorter if need be), and all "
            "blocks of zeroes have the same. An empty terabyte takes a second then, not a quarter of an hour.",
            "Algorithms: " + ", ".join(f"`{name}`" for name in ALGORITHMS) + ".",
        ),
        ("img digest disk.qcow2", "img digest --algorithm=sha256-64k --output=json disk.qcow2"),
        'found = await img.digest("disk.qcow2")\nprint(found.digest)',
    ),
    "info": Prose(
        (
            "Reads the header, not the disk. The format is guessed unless `-f` gives it, and a guess can be fooled: "
            "give it where the image is a stranger's, or use `--untrusted`, which is `blockio img inspect`.",
        ),
        ("img info disk.qcow2", "img info --output=json disk.qcow2", "img info --tree disk.qcow2"),
        'found = await img.info("disk.qcow2")',
    ),
    "inspect": Prose(
        (
            "Tells what the image really is, beside what `-f` or its name says; what opening it would open with it (a "
            "backing file, a data file, whatever a `json:` name holds); which limits it breaks; and all that its "
            "header has wrong.",
            "The file is opened as plain bytes and read only, nothing else is touched, not even looked up, and no more "
            "than 4 MiB are read, whatever the image is. The name is a path: a protocol in it counts for nothing. What "
            "only a walk through all tables shows is for `check` to find, afterwards.",
        ),
        ("img inspect disk.qcow2", "img inspect -f qcow2 --output=json disk.qcow2"),
        'found = await img.inspect("disk.qcow2")\nassert found.harmless, found.findings',
        (
            ("0", "It is harmless, as far as its header shows."),
            ("1", "The file could not be read."),
            (
                "2, 4, 8, or their sum",
                "2: it would open something else. 4: it breaks a limit, contradicts itself or needs "
                "what there is not. 8: it is not, or not only, what it is said to be.",
            ),
        ),
    ),
    "map": Prose(
        (
            "`human` shows only where data are, and in which file of the chain; `json` all of the disk; `--picture` "
            "draws it, into a file as SVG or, without a legend, as PNG, by the name's ending.",
        ),
        ("img map --output=json disk.qcow2", "img map --picture disk.qcow2", "img map --picture=disk.svg disk.qcow2"),
        'async for entry in img.map("disk.qcow2"):\n    print(entry)',
    ),
    "measure": Prose(
        ("Answers for the content of an image, or with `--size` for an empty disk. Nothing is written.",),
        ("img measure -O qcow2 disk.qcow2", "img measure -O qcow2 --size 10G"),
        'await img.measure("disk.qcow2", "qcow2")',
    ),
    "rebase": Prose(
        (
            "The disk stays what it is: where the old and the new backing file differ, the image gets the old content. "
            "With `-u` only the name changes, for a backing file that was moved. The name counts from the image's "
            "folder.",
            "A rebase that is interrupted leaves the old backing file's name, and the same disk; it can be repeated.",
        ),
        (
            "img create -f qcow2 -b disk.qcow2 -F qcow2 branch.qcow2",
            "img rebase -b '' branch.qcow2",
            "img rebase -u -b disk.qcow2 -F qcow2 branch.qcow2",
        ),
        'await img.rebase("branch.qcow2", None)',
    ),
    "resize": Prose(
        (
            "A sign in front of the size means more, or less, than now. What lies behind a smaller size is lost, which "
            "is why `--shrink` must be said.",
        ),
        ("img resize disk.qcow2 +1M",),
        'await img.resize("disk.qcow2", 5 << 20)',
    ),
    "snapshot": Prose(
        ("Snapshots inside an image keep the whole disk as it was. Without an action they are listed.",),
        ("img snapshot -c before disk.qcow2", "img snapshot -l disk.qcow2", "img snapshot -a before disk.qcow2"),
        'await img.snapshot_create("disk.qcow2", "before")',
    ),
}
