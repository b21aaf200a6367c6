"""Figures of the expected information gain, over training and over the designs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from sbi_boed_plugin.objectives.eig import LOWER_BOUNDS, EIGEstimate
from sbi_boed_plugin.plotting._style import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
    despine,
    label_steps,
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
    figure, ax = _new_axes()
    values, errors = (np.asarray(history[n]) for n in ("eig", "eig_standard_error"))
    steps = np.arange(1, len(values) + 1)
    window = max(1, len(values) // 40)
    kernel = np.ones(window)
    # At both ends there are fewer values to average.
    count = np.convolve(np.ones(len(values)), kernel, mode="same")
    mean = np.convolve(values, kernel, mode="same") / count
    error = np.sqrt(np.convolve(errors**2, kernel, mode="same")) / count
    label = "one step"
    if window > 1:
        ax.plot(steps, values, ".", color=GREY, markersize=2, alpha=0.5, label=label)
        label = f"mean of {window} steps"
    if objective is not None:
        label = f"{objective}, {label}"
    ax.plot(steps, mean, color=BLUE, label=label)
    ax.fill_between(
        steps, mean - error, mean + error, color=BLUE, alpha=0.3, linewidth=0
    )
    others = []
    for value, color, line, label in (
        (exact, GREEN, "--", "exact, design found"),
        (cap, "black", ":", "cap of one step"),
    ):
        if value is not None:
            ax.axhline(value, color=color, linestyle=line, label=label)
            others.append(value)
    if eig is not None:
        _draw_estimates(ax, steps[-1:], [eig], VERMILLION, "D", "design found", size=5)
        others.append(eig.value)
    # Low values of the first steps must not squeeze the others.
    settled = values[len(values) // 10 :]
    lowest = min(0.0, float(np.quantile(settled, 0.01)), *others)
    highest = max(0.0, float(values.max()), *others)
    margin = 0.08 * (highest - lowest)
    if values.min() < lowest - margin:
        ax.set_ylim(lowest - margin, highest + margin)
    ax.set_xlim(0, len(values) * 1.03 + 0.5)
    label_steps(ax)
    legend_above(ax)
    return figure


def plot_eig_over_design(
    designs: Tensor,
    estimates: Sequence[EIGEstimate],
    *,
    design: float | None = None,
    eig: EIGEstimate | None = None,
    candidates: Sequence[tuple[Tensor, EIGEstimate]] = (),
    reference: Sequence[tuple[float, float]] | None = None,
    visited: Tensor | None = None,
    name: str = "design",
    log: bool = False,
) -> Figure:
    """Plot the information gain over the range of a one-dimensional design.

    The axis does not follow negative estimates far down, which a likelihood gives
    that was hardly trained at a design: triangles at the lower edge stand for them.

    `estimates` are those of sorted `designs`, of shape `(num_designs,)` or
    `(num_designs, 1)`, for instance the `candidates` of a search in rounds, whose
    networks disagree by the standard error; `design` is the one that was found, `eig`
    its estimate, and `candidates` are what a search compared, as in `DesignResult`.
    `reference` holds value and standard error of each design from another source, such
    as the exact answer, in nats. Designs not `visited`, as `visited_designs` says, are
    shaded: the networks were not trained there. `log` is for designs that span decades.
    """
    figure, ax = _new_axes()
    positions = designs.reshape(-1).cpu().numpy()
    if log:
        ax.set_xscale("log")
    if visited is not None:
        _shade(ax, positions, ~visited.cpu().numpy(), log)
    kind = _BOUND_NAMES.get(estimates[0].bound, "estimate")
    error = "standard error"
    if not estimates[0].num_simulations and estimates[0].bound != "exact":
        kind, error = "learned model", "disagreement"
    if reference is not None:
        values, errors = np.asarray(reference).T
        ax.plot(positions, values, color=GREEN, label="reference")
        ax.fill_between(
            positions, values - errors, values + errors, color=GREEN, alpha=0.3
        )
    # Below this an estimate tells nothing that is worth the space.
    values = [estimate.value for estimate in estimates]
    floor = -0.25 * max(0.1, *values, *(value for value, _ in reference or ()))
    far = np.array(values) < floor
    near = [e for e, is_far in zip(estimates, far, strict=True) if not is_far]
    _draw_estimates(ax, positions[~far], near, BLUE, "o", f"{kind} ± {error}")
    if len(candidates) > 1:
        others, scores = zip(*candidates, strict=True)
        places = np.array([other.item() for other in others])
        _draw_estimates(ax, places, scores, PURPLE, "s", "candidates compared")
    if design is not None:
        ax.axvline(design, color=VERMILLION, linestyle="--", linewidth=1)
        if eig is not None:
            place = np.array([design])
            _draw_estimates(ax, place, [eig], VERMILLION, "D", "design found", size=6)
    if far.any():
        ax.set_ylim(bottom=floor)
        edge, label = np.full(far.sum(), floor), f"{kind}, further below"
        ax.plot(positions[far], edge, "v", color=BLUE, clip_on=False, label=label)
    ax.set_xlabel(name)
    legend_above(ax)
    return figure


def _shade(ax: Axes, positions: np.ndarray, shaded: np.ndarray, log: bool) -> None:
    """Shade the axes around some positions, up to the middle between neighbours."""
    places = np.log(positions) if log else positions
    edges = np.concatenate([places[:1], 0.5 * (places[1:] + places[:-1]), places[-1:]])
    edges = np.exp(edges) if log else edges
    label = "never visited by the policy"
    for index in np.flatnonzero(shaded):
        ends = edges[index], edges[index + 1]
        ax.axvspan(*ends, color=GREY, alpha=0.25, linewidth=0, label=label)
        label = "_nolegend_"


def _new_axes() -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes for the information."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.subplots()
    ax.set_ylabel("expected information gain [nats]")
    despine(ax)
    return figure, ax


def _draw_estimates(
    ax: Axes,
    positions: np.ndarray,
    estimates: Sequence[EIGEstimate],
    color: str,
    marker: str,
    label: str,
    size: float = 4,
) -> None:
    """Draw values with their standard errors."""
    ax.errorbar(
        positions,
        [estimate.value for estimate in estimates],
        yerr=[estimate.standard_error for estimate in estimates],
        color=color,
        marker=marker,
        markersize=size,
        capsize=2,
        linestyle="none",
        label=label,
        zorder=2 if color == BLUE else 3,
    )
