"""Figures of the expected information gain: over training, and over designs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from sbi_boed_plugin.objectives.eig import LOWER_BOUNDS, EIGEstimate
from sbi_boed_plugin.plotting._style import (
    BLUE,
    GREEN,
    GREY,
    VERMILLION,
    despine,
    figure_and_axes,
    legend_above,
)

__all__ = ["plot_eig_over_design", "plot_trace"]

_BOUND_NAMES = {
    **dict.fromkeys(LOWER_BOUNDS, "lower bound"),
    "snmc": "upper bound",
    "exact": "exact",
}


def plot_trace(
    history: dict[str, list[Any]],
    *,
    eig: EIGEstimate | None = None,
    cap: float | None = None,
    exact: float | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Plot the lower bound of the information gain over the steps of training.

    The bound of a step is the mean over the designs that the policy proposed then, so
    that it also grows because the policy narrows. The final estimate is that of the
    design that was found.

    Args:
        history: History of a `DesignResult`.
        eig: Final estimate, of the design that was found.
        cap: Largest value that the bound of a step can take, `log(L + 1)` with `L`
            the number of contrastive samples, in nats.
        exact: Exact information gain of the design that was found, in nats.
        ax: Axes to draw into; those of a new figure if `None`.

    Returns:
        The figure.

    Example:
        >>> history = {"eig": [0.1, 0.5], "eig_standard_error": [0.1, 0.1]}
        >>> plot_trace(history, cap=2.8).axes[0].get_ylabel()
        'expected information gain [nats]'
    """
    figure, ax = figure_and_axes(ax)
    bound = np.asarray(history["eig"])
    steps = np.arange(1, len(bound) + 1)
    window = max(1, len(bound) // 40)
    mean, error = _moving_average(
        bound, np.asarray(history["eig_standard_error"]), window
    )
    if window > 1:
        ax.plot(
            steps, bound, ".", color=GREY, markersize=2, alpha=0.5, label="one step"
        )
    label = f"mean of {window} steps" if window > 1 else "one step"
    ax.plot(steps, mean, color=BLUE, label=label)
    ax.fill_between(
        steps, mean - error, mean + error, color=BLUE, alpha=0.3, linewidth=0
    )
    last = steps[-1]
    if exact is not None:
        ax.axhline(exact, color=GREEN, linestyle="--", label="exact, design found")
    if cap is not None:
        ax.axhline(cap, color="black", linestyle=":", label="cap of one step")
    if eig is not None:
        ax.errorbar(
            last,
            eig.value,
            yerr=eig.standard_error,
            color=VERMILLION,
            marker="D",
            markersize=5,
            capsize=4,
            linestyle="none",
            zorder=3,
            label="design found",
        )
    ax.set_xlim(0, last * 1.03 + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("step")
    ax.set_ylabel("expected information gain [nats]")
    legend_above(ax)
    despine(ax)
    return figure


def plot_eig_over_design(
    designs: Tensor,
    estimates: Sequence[EIGEstimate],
    *,
    design: float | None = None,
    eig: EIGEstimate | None = None,
    reference: Sequence[tuple[float, float]] | None = None,
    name: str = "design",
    ax: Axes | None = None,
) -> Figure:
    """Plot the information gain over the range of a one-dimensional design.

    Args:
        designs: Designs of shape `(num_designs,)` or `(num_designs, 1)`, sorted.
        estimates: Estimate of each design.
        design: The design that was found.
        eig: Its estimate.
        reference: Value and standard error of each design from another source, such
            as the exact answer, in nats.
        name: Name of the design with its unit.
        ax: Axes to draw into; those of a new figure if `None`.

    Returns:
        The figure.

    Example:
        >>> import torch
        >>> estimates = [EIGEstimate(v, 0.1, "pce") for v in (0.2, 0.9, 0.3)]
        >>> figure = plot_eig_over_design(torch.tensor([0.0, 1.0, 2.0]), estimates)
        >>> figure.axes[0].get_xlabel()
        'design'
    """
    figure, ax = figure_and_axes(ax)
    positions = designs.reshape(-1).cpu().numpy()
    kind = _BOUND_NAMES.get(estimates[0].bound, "estimate")
    if reference is not None:
        values, errors = np.asarray(reference).T
        ax.plot(positions, values, color=GREEN, label="reference")
        ax.fill_between(
            positions, values - errors, values + errors, color=GREEN, alpha=0.3
        )
    ax.errorbar(
        positions,
        [estimate.value for estimate in estimates],
        yerr=[estimate.standard_error for estimate in estimates],
        color=BLUE,
        marker="o",
        markersize=4,
        capsize=2,
        linestyle="none",
        label=f"{kind} ± standard error",
    )
    if design is not None:
        ax.axvline(design, color=VERMILLION, linestyle="--", linewidth=1)
    if design is not None and eig is not None:
        ax.errorbar(
            design,
            eig.value,
            yerr=eig.standard_error,
            color=VERMILLION,
            marker="D",
            markersize=5,
            capsize=4,
            linestyle="none",
            zorder=3,
            label="design found",
        )
    ax.set_xlabel(name)
    ax.set_ylabel("expected information gain [nats]")
    legend_above(ax)
    despine(ax)
    return figure


def _moving_average(
    values: np.ndarray, errors: np.ndarray, window: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over `window` values around each, and its standard error."""
    kernel = np.ones(window)
    # At both ends there are fewer values to average.
    count = np.convolve(np.ones(len(values)), kernel, mode="same")
    mean = np.convolve(values, kernel, mode="same") / count
    variance = np.convolve(errors**2, kernel, mode="same") / count**2
    return mean, np.sqrt(variance)
