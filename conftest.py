"""Fixtures for every test, the package's doctests included.

`TEST_SEED=1 make test` draws other random numbers: it is added to all seeds of tests.
"""

import os
import random
import sys

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _single_thread():
    """Small torch operations are slower with threads; tests run in processes."""
    torch.set_num_threads(1)


def shifted(set_seed, shift):
    """Add to the seeds of tests and tutorials; workers share those of the package."""

    def set_shifted(seed):
        caller = sys._getframe(1).f_globals["__name__"]
        return set_seed(seed if caller.startswith("sbi_boed_plugin") else seed + shift)

    return set_shifted


def pytest_configure():
    if shift := int(os.environ.get("TEST_SEED", "0")):
        torch.manual_seed = shifted(torch.manual_seed, shift)
        np.random.seed = shifted(np.random.seed, shift)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """Run in a directory of its own: sbi's trainers write `sbi-logs/` to the cwd."""
    monkeypatch.chdir(tmp_path)
