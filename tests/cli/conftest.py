"""The folder of images that the differential tests of ``blockio img`` share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imgcases import make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See ``make_template``; cases work on copies."""
    folder = tmp_path_factory.mktemp("template")
    make_template(folder)
    return folder
