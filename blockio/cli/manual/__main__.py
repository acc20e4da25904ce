"""Write the manual below the folder that is named."""

from __future__ import annotations

import sys
from pathlib import Path

from blockio.cli.manual import files

_KINDS = ("commands/*.md", "man/*.1")


def main(folder: Path) -> None:
    """Write every page that is not there as it should be, and remove those that should not be there."""
    wanted = files()
    for name, text in wanted.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for kind in _KINDS:
        for path in folder.glob(kind):
            if str(path.relative_to(folder)) not in wanted:
                path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
