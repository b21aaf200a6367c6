"""Fixtures for every test, the package's doctests included."""

import random

import numpy as np
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _single_thread():
    """Small torch operations are slower with threads; tests run in processes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_directory(tmp_path, monkeypatch):
    """Run in a directory of its own: sbi's trainers write `sbi-logs/` to the cwd."""
    monkeypatch.chdir(tmp_path)
