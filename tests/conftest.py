"""Shared by the test modules; fixtures that doctests need too are one folder up."""

import os
from typing import Any

import pytest
import torch

# Where tests with the mark `gpu` run. "cpu" runs them where there is no GPU.
TEST_DEVICE = os.environ.get("SBI_BOED_PLUGIN_TEST_DEVICE", "cuda")


def pytest_runtest_setup(item):
    needs_gpu = item.get_closest_marker("gpu") and TEST_DEVICE.startswith("cuda")
    if needs_gpu and not torch.cuda.is_available():
        pytest.skip("torch.cuda.is_available() is False: there is no GPU.")


class NoOpTracker:
    """Satisfies `sbi.sbi_types.Tracker` and keeps nothing.

    Handed to a trainer, it prevents the `sbi-logs/` folder of the default tracker.
    """

    log_dir: str | None = None

    def log_metric(self, name: str, value: float, step: int | None = None) -> None: ...

    def log_metrics(
        self, metrics: dict[str, float], step: int | None = None
    ) -> None: ...

    def log_params(self, params: dict[str, Any]) -> None: ...

    def add_figure(self, name: str, figure: Any, step: int | None = None) -> None: ...

    def flush(self) -> None: ...


@pytest.fixture
def tracker() -> NoOpTracker:
    return NoOpTracker()


@pytest.fixture
def device() -> str:
    return TEST_DEVICE
