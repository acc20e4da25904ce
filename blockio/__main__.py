"""``python -m blockio``: the ``blockio`` command."""

import sys

from blockio.cli.main import main

sys.argv[0] = "blockio"
sys.exit(main())
