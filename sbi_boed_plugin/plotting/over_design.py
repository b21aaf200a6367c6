"""Figures of the expected information gain over the designs."""

from collections.abc import Sequence

import numpy as np
import torch
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
    draw_estimates,
    legend_above,
    new_axes,
    numbered_names,
)

__all__ = ["plot_eig_map", "plot_eig_over_design"]

_BOUND_NAMES = {
    **dict.fromkeys(LOWER_BOUNDS, "lower bound"),
    "snmc": "upper bound",
    "exact": "exact",
}
_NOT_VISITED = "never visited by the policy"

Candidates = Sequence[tuple[Tensor, EIGEstimate]]
Reference = Sequence[tuple[float, float]]


def plot_eig_over_design(
    designs: Tensor,
    estimates: Sequence[EIGEstimate],
    *,
    design: float | None = None,
    eig: EIGEstimate | None = None,
    candidates: Candidates = (),
    reference: Reference | None = None,
    visited: Tensor | None = None,
    name: str = "design",
    log: bool = False,
) -> Figure:
    """Plot the information gain over the range of a one-dimensional design.

    The axis does not follow negative estimates far down, which a likelihood gives
    that was hardly trained at a design: triangles at the lower edge stand for them.

    `estimates` are those of sorted `designs`, of shape `(num_designs,)` or
    `(num_designs, 1)`; `design` is the one that was found, `eig` its estimate, and
    `candidates` are what a search compared, as in `DesignResult`. `reference` holds
    value and standard error of each design from another source, such as the exact
    answer, in nats. Designs not `visited`, as `visited_designs` says, are shaded: the
    networks were not trained there. `log` is for designs that span decades.
    """
    figure, ax = new_axes()
    positions = designs.reshape(-1).cpu().numpy()
    if log:
        ax.set_xscale("log")
    if visited is not None:
        _shade(ax, positions, ~visited.cpu().numpy(), log)
    kind = _BOUND_NAMES.get(estimates[0].bound, "estimate")
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
    draw_estimates(ax, positions[~far], near, BLUE, "o", f"{kind} ± standard error")
    if len(candidates) > 1:
        others, scores = zip(*candidates, strict=True)
        places = np.array([other.item() for other in others])
        draw_estimates(ax, places, scores, PURPLE, "s", "candidates compared")
    if design is not None:
        ax.axvline(design, color=VERMILLION, linestyle="--", linewidth=1)
        if eig is not None:
            place = np.array([design])
            draw_estimates(ax, place, [eig], VERMILLION, "D", "design found", size=6)
    if far.any():
        ax.set_ylim(bottom=floor)
        style = {"color": BLUE, "clip_on": False, "label": f"{kind}, further below"}
        ax.plot(positions[far], np.full(far.sum(), floor), "v", **style)
    ax.set_xlabel(name)
    ax.set_ylabel("expected information gain [nats]")
    legend_above(ax)
    despine(ax)
    return figure


def _shade(ax: Axes, positions: np.ndarray, shaded: np.ndarray, log: bool) -> None:
    """Shade the axes around some positions, up to the middle between neighbours."""
    places = np.log(positions) if log else positions
    edges = np.concatenate([places[:1], 0.5 * (places[1:] + places[:-1]), places[-1:]])
    edges = np.exp(edges) if log else edges
    label = _NOT_VISITED
    for index in np.flatnonzero(shaded):
        ends = edges[index], edges[index + 1]
        ax.axvspan(*ends, color=GREY, alpha=0.25, linewidth=0, label=label)
        label = "_nolegend_"


def plot_eig_map(
    designs: Tensor,
    estimates: Sequence[EIGEstimate],
    *,
    design: Tensor | None = None,
    eig: EIGEstimate | None = None,
    candidates: Candidates = (),
    reference: Reference | None = None,
    visited: Tensor | None = None,
    names: Sequence[str] | None = None,
    log: bool = False,
) -> Figure:
    """Plot the information gain over a two-dimensional design as a heat map.

    `designs` are all pairs of two lists of values, in any order, of shape
    `(num_designs, 2)`; others raise a `ValueError`. Negative estimates have the colour
    of zero, a `reference` has a map of its own in the same colours, and designs that
    were not `visited` have crosses. Otherwise as for `plot_eig_over_design`.
    """
    first, second, cells = _grid_of(designs)
    names = numbered_names(names, "design", 2)
    kind = _BOUND_NAMES.get(estimates[0].bound, "estimate")
    maps = {f"{kind}, learned": [estimate.value for estimate in estimates]}
    if reference is not None:
        maps["reference"] = [value for value, _ in reference]
    values = np.array([*maps.values()])
    figure = Figure(figsize=(1.6 + 4.0 * len(maps), 4.6), layout="constrained")
    axes = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)[0]
    image = None
    for ax, (title, numbers) in zip(axes, maps.items(), strict=True):
        image = ax.pcolormesh(
            first,
            second,
            np.array(numbers)[cells].T,
            shading="nearest",
            cmap="viridis",
            vmin=max(0.0, values.min()),
            vmax=max(values.max(), 1e-9),
            rasterized=True,
        )
        _mark_designs(ax, design, eig, candidates)
        if log:
            ax.set_xscale("log")
            ax.set_yscale("log")
        ax.set_title(title, fontsize="medium")
        ax.set_xlabel(names[0])
    if visited is not None and not visited.all():
        crossed = designs[~visited].cpu().numpy().T
        style = {"color": "white", "markersize": 5, "label": _NOT_VISITED}
        axes[0].plot(*crossed, "x", zorder=1.5, **style)
    axes[0].set_ylabel(names[1])
    bar = figure.colorbar(
        image, ax=list(axes), extend="min" if values.min() < 0.0 else "neither"
    )
    bar.set_label("expected information gain [nats]")
    handles, labels = axes[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside upper left", ncols=2, facecolor="#BBBBBB"
        )
    return figure


def _mark_designs(
    ax: Axes, design: Tensor | None, eig: EIGEstimate | None, candidates: Candidates
) -> None:
    """Draw the design found and those that it was compared with."""
    if len(candidates) > 1:
        others = torch.stack([other for other, _ in candidates[1:]]).cpu().numpy()
        style = {"color": "white", "markeredgecolor": "black"}
        ax.plot(*others.T, "o", label="runners-up", **style)
    if design is not None:
        label = "design found"
        if eig is not None:
            label += f": {eig.value:.2f} ± {eig.standard_error:.2f} nats"
        ax.plot(
            *design.reshape(2, 1).cpu().numpy(),
            "D",
            markersize=9,
            color=VERMILLION,
            markeredgecolor="white",
            markeredgewidth=1.5,
            clip_on=False,
            label=label,
        )


def _grid_of(designs: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return both lists of values, and the row of each pair of them."""
    values = designs.cpu().numpy()
    first, column = np.unique(values[:, 0], return_inverse=True)
    second, row = np.unique(values[:, 1], return_inverse=True)
    cells = np.full((len(first), len(second)), -1)
    cells[column, row] = np.arange(len(values))
    if len(values) != cells.size or (cells < 0).any():
        raise ValueError(
            f"designs holds {len(values)} pairs of {len(first)} and {len(second)} "
            "values, but must hold each pair once, as torch.cartesian_prod makes them."
        )
    return first, second, cells
