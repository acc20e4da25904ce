"""``python -m blockio``: the ``blockio`` command."""

import sys

from blockio.cli.command import command

sys.argv[0] = "blockio"
command()
