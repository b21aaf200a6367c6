"""Figures of the expected information gain over training."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbi_boed_plugin.objectives.eig import EIGEstimate
from sbi_boed_plugin.plotting._style import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    despine,
    draw_estimates,
    label_steps,
    legend_above,
    new_axes,
)

__all__ = ["plot_trace"]

_OBJECTIVE_NAMES = {
    "barber_agakov": "Barber-Agakov bound",
    "gkl": "generalized-KL bound",
    "info_nce": "InfoNCE bound",
    "marginal": "marginal estimate (no bound)",
}


def plot_trace(
    history: dict[str, list[Any]],
    *,
    eig: EIGEstimate | None = None,
    objective: str | None = None,
    cap: float | None = None,
    exact: float | None = None,
) -> Figure:
    """Plot what drove the policy, in nats, over the steps of training.

    The value of a step is the mean over the designs that the policy proposed then, so
    that it also grows because the policy narrows. Values of the first tenth of the
    steps, when the networks know nothing yet, may lie below the figure.

    `history` is that of a `DesignResult`; `objective`, that of the search, names the
    curve. `eig` is the final estimate and `exact` the exact information of the design
    that was found. `cap` is the largest value of a step: `log(L + 1)` for `"info_nce"`
    with `L` contrastive samples; the other objectives have none.
    """
    figure, ax = new_axes()
    values = np.asarray(history["eig"])
    steps = np.arange(1, len(values) + 1)
    window = max(1, len(values) // 40)
    mean, error = _moving_average(
        values, np.asarray(history["eig_standard_error"]), window
    )
    label = "one step"
    if window > 1:
        style = {"color": GREY, "markersize": 2, "alpha": 0.5}
        ax.plot(steps, values, ".", label=label, **style)
        label = f"mean of {window} steps"
    if objective is not None:
        label = f"{_OBJECTIVE_NAMES.get(objective, objective)}, {label}"
    ax.plot(steps, mean, color=BLUE, label=label)
    ax.fill_between(
        steps, mean - error, mean + error, color=BLUE, alpha=0.3, linewidth=0
    )
    if exact is not None:
        ax.axhline(exact, color=GREEN, linestyle="--", label="exact, design found")
    if cap is not None:
        ax.axhline(cap, color="black", linestyle=":", label="cap of one step")
    if eig is not None:
        draw_estimates(ax, steps[-1:], [eig], VERMILLION, "D", "design found", size=5)
    others = [cap, exact, None if eig is None else eig.value]
    _hide_early_values(ax, values, [other for other in others if other is not None])
    ax.set_xlim(0, len(values) * 1.03 + 0.5)
    label_steps(ax)
    ax.set_ylabel("expected information gain [nats]")
    legend_above(ax)
    despine(ax)
    return figure


def _hide_early_values(ax: Axes, values: np.ndarray, others: list[float]) -> None:
    """Let low values of the first steps not squeeze the others."""
    settled = values[len(values) // 10 :]
    lowest = min(0.0, float(np.quantile(settled, 0.01)), *others)
    highest = max(0.0, float(values.max()), *others)
    margin = 0.08 * (highest - lowest)
    if values.min() < lowest - margin:
        ax.set_ylim(lowest - margin, highest + margin)


def _moving_average(
    values: np.ndarray, errors: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the values around each, and its standard error."""
    kernel = np.ones(window)
    # At both ends there are fewer values to average.
    count = np.convolve(np.ones(len(values)), kernel, mode="same")
    mean = np.convolve(values, kernel, mode="same") / count
    variance = np.convolve(errors**2, kernel, mode="same") / count**2
    return mean, np.sqrt(variance)
