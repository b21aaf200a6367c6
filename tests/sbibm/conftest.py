"""A task for whoever needs any."""

import pytest

from sbi_boed_plugin.sbibm import get_task


@pytest.fixture(scope="session")
def two_moons():
    pytest.importorskip("sbibm")
    return get_task("two_moons")
