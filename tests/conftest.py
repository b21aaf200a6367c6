"""Shared by the test modules; fixtures that doctests need too are one folder up."""

from typing import Any

import pytest


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
