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
    figure_and_axes,
    legend_above,
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


def plot_eig_over_design(
    designs: Tensor,
    estimates: Sequence[EIGEstimate],
    *,
    design: float | None = None,
    eig: EIGEstimate | None = None,
    candidates: Candidates = (),
    reference: Sequence[tuple[float, float]] | None = None,
    visited: Tensor | None = None,
    name: str = "design",
    log: bool = False,
    ax: Axes | None = None,
) -> Figure:
    """Plot the information gain over the range of a one-dimensional design.

    The axis does not follow negative estimates far down, which a likelihood gives
    that was hardly trained at a design: triangles at the lower edge stand for them.

    Args:
        designs: Designs of shape `(num_designs,)` or `(num_designs, 1)`, sorted.
        estimates: Estimate of each design.
        design: The design that was found.
        eig: Its estimate.
        candidates: Designs that a search compared with simulations, with their
            estimates, as in `DesignResult.candidates`; the first is `design`.
        reference: Value and standard error of each design from another source, such
            as the exact answer, in nats.
        visited: Whether the policy has been near each design, as
            :func:`visited_designs` returns it. The others are shaded: the networks were
            not trained there.
        name: Name of the design with its unit.
        log: Whether the design is on a logarithmic scale.
        ax: Axes to draw into; those of a new figure if `None`.

    Returns:
        The figure.

    Example:
        >>> estimates = [EIGEstimate(v, 0.1, "pce") for v in (0.2, 0.9, 0.3)]
        >>> figure = plot_eig_over_design(torch.tensor([0.0, 1.0, 2.0]), estimates)
        >>> figure.axes[0].get_xlabel()
        'design'
    """
    figure, ax = figure_and_axes(ax)
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
    floor = _floor(estimates, reference)
    far = np.array([estimate.value < floor for estimate in estimates])
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
        ax.plot(
            positions[far],
            np.full(far.sum(), floor),
            color=BLUE,
            marker="v",
            linestyle="none",
            clip_on=False,
            label=f"{kind}, further below",
        )
    ax.set_xlabel(name)
    ax.set_ylabel("expected information gain [nats]")
    legend_above(ax)
    despine(ax)
    return figure


def plot_eig_map(
    designs: Tensor,
    estimates: Sequence[EIGEstimate],
    *,
    design: Tensor | None = None,
    eig: EIGEstimate | None = None,
    candidates: Candidates = (),
    reference: Sequence[tuple[float, float]] | None = None,
    visited: Tensor | None = None,
    names: Sequence[str] | None = None,
    same_units: bool = False,
    log: bool = False,
) -> Figure:
    """Plot the information gain over a two-dimensional design as a heat map.

    Args:
        designs: All pairs of two lists of values, in any order, of shape
            `(num_designs, 2)`.
        estimates: Estimate of each design. Negative ones have the colour of zero.
        design: The design that was found, of shape `(2,)`.
        eig: Its estimate, for the legend.
        candidates: As for :func:`plot_eig_over_design`, like `visited`.
        reference: Value and standard error of each design from another source, such
            as the exact answer, in nats, for a second map in the same colours.
        visited: Whether the policy has been near each design. The others have crosses.
        names: Names of the two design values with units.
        same_units: Whether both have the same units, and hence the same scale.
        log: Whether the designs are on logarithmic scales.

    Returns:
        The figure.

    Raises:
        ValueError: If `designs` are not all pairs of two lists of values.

    Example:
        >>> designs = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0))
        >>> estimates = [EIGEstimate(v, 0.1, "pce") for v in range(6)]
        >>> figure = plot_eig_map(designs, estimates, names=["x [m]", "y [m]"])
        >>> [ax.get_ylabel() for ax in figure.axes]
        ['y [m]', 'expected information gain [nats]']
    """
    first, second, cells = _grid_of(designs)
    names = numbered_names(names, "design", 2)
    kind = _BOUND_NAMES.get(estimates[0].bound, "estimate")
    maps = [(f"{kind}, learned", [estimate.value for estimate in estimates])]
    if reference is not None:
        maps.append(("reference", [value for value, _ in reference]))
    values = np.array([numbers for _, numbers in maps])
    figure = Figure(figsize=(1.6 + 4.0 * len(maps), 4.6), layout="constrained")
    axes = figure.subplots(1, len(maps), sharex=True, sharey=True, squeeze=False)[0]
    image = None
    for ax, (title, numbers) in zip(axes, maps, strict=True):
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
        if same_units:
            ax.set_aspect("equal", adjustable="box")
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


def _floor(
    estimates: Sequence[EIGEstimate], reference: Sequence[tuple[float, float]] | None
) -> float:
    """Return below which value an estimate tells nothing that is worth the space."""
    values = [estimate.value for estimate in estimates]
    values += [value for value, _ in reference or ()]
    return -0.25 * max(*values, 0.1)


def _mark_designs(
    ax: Axes, design: Tensor | None, eig: EIGEstimate | None, candidates: Candidates
) -> None:
    """Draw the design found and those that it was compared with."""
    if len(candidates) > 1:
        others = torch.stack([other for other, _ in candidates[1:]]).cpu().numpy()
        ax.plot(
            *others.T, "o", color="white", markeredgecolor="black", label="runners-up"
        )
    if design is not None:
        label = "design found"
        if eig is not None:
            label += f": {eig.value:.2f} ± {eig.standard_error:.2f} nats"
        ax.plot(
            *design.reshape(2, 1).cpu().numpy(),
            marker="D",
            markersize=9,
            color=VERMILLION,
            markeredgecolor="white",
            markeredgewidth=1.5,
            linestyle="none",
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
