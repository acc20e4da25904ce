"""``python -m blockio``: the ``blockio`` command."""

import sys

from blockio_command import command

sys.argv[0] = "blockio"
command()
