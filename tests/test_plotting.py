"""Figures: what they show, that nothing is clipped, and that they leave no trace."""

import math
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sbi_boed_plugin import EIGEstimate, plotting
from sbi_boed_plugin.plotting.policy import policy_densities
from sbi_boed_plugin.policies import (
    NormalPolicy,
    PointPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)

ONE = torch.zeros(10, 1)
LOW, HIGH = torch.tensor([0.0, -5.0]), torch.tensor([24.0, 5.0])
EIG = EIGEstimate(1.2, 0.05, "pce", cap=6.9, num_simulations=1_000)


def make_history(num_steps, dim_design):
    steps = torch.arange(num_steps)
    generator = torch.Generator().manual_seed(0)
    noise = 0.1 * torch.randn(num_steps, generator=generator)
    target = torch.linspace(-9.0, 9.0, dim_design)
    mode = target * (steps / num_steps).unsqueeze(1)
    scale = torch.linspace(6.0, 2.0, num_steps).unsqueeze(1).expand(-1, dim_design)
    return {
        "eig": (1.0 - torch.exp(-steps / 50) + noise).tolist(),
        "eig_standard_error": [0.1] * num_steps,
        "mode": mode.tolist(),
        "scale": scale.tolist(),
    }


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def trace(num_steps=200):
    return plotting.plot_trace(
        make_history(num_steps, 1),
        eig=EIG,
        objective="info_nce",
        cap=math.log(32),
        exact=1.3,
    )


def policy(dim_design, names=None, **recorded):
    history = make_history(200, dim_design) | recorded
    ends = torch.full((dim_design,), -10.0), torch.full((dim_design,), 10.0)
    return plotting.plot_policy(history, *ends, names)


def policy_of_a_mixture():
    locations = torch.tensor(make_history(200, 2)["mode"]).unsqueeze(1)
    recorded = {"loc": locations.expand(-1, 3, -1).tolist()}
    recorded["weights"] = [[0.2, 0.3, 0.5]] * 200
    return policy(2, ["time [h]", "dose [mg/kg]"], **recorded)


def eig_over_design():
    designs = torch.linspace(0.0, 10.0, 11)
    values = (designs / 10).tolist()
    estimates = [EIGEstimate(v, 0.1, "pce", num_simulations=9) for v in values]
    # Every entry that the legend can have.
    estimates[0] = replace(estimates[0], value=-9.0)
    return plotting.plot_eig_over_design(
        designs,
        estimates,
        design=8.0,
        eig=EIG,
        candidates=[(torch.tensor([8.0]), EIG), (torch.tensor([3.0]), EIG)],
        reference=[(estimate.value + 0.1, 0.01) for estimate in estimates],
        visited=designs > 2.0,
        name="time [s]",
    )


def predictive(dim_x, num_experiments):
    data = torch.randn(num_experiments, 400, dim_x)
    names = [f"concentration at time {j} [mg/l]" for j in range(dim_x)]
    return plotting.plot_predictive(data[:, 0], data, 5.0 * data, names=names)


def posterior(dim_theta):
    prior = torch.randn(500, dim_theta)
    names = [f"parameter number {j} [unit]" for j in range(dim_theta)]
    sets = [0.5 * prior, 0.2 * prior + 1.0]
    return plotting.plot_posterior_sequence(sets, prior, torch.ones(dim_theta), names)


FIGURES = {
    "trace": trace,
    "trace of one step": lambda: trace(1),
    "policy 1": lambda: policy(1),
    "policy 6": lambda: policy(6),
    "policy 100": lambda: policy(100),
    "policy of a mixture": policy_of_a_mixture,
    "policy of a point": lambda: policy(1, ["time [h]"], scale=[[0.0]] * 200),
    "eig over design": eig_over_design,
    "predictive 1": lambda: predictive(1, 1),
    "predictive 3": lambda: predictive(3, 3),
    "predictive 20": lambda: predictive(20, 2),
    "predictive of one value": lambda: plotting.plot_predictive([ONE[0]], [ONE]),
    "policy without bounds": lambda: plotting.plot_policy(make_history(200, 2)),
    "posterior 1": lambda: posterior(1),
    "posterior 4": lambda: posterior(4),
    "posterior over decades": lambda: plotting.plot_posterior(
        torch.rand(99, 2), torch.rand(99, 2), torch.ones(2), log=[True, False]
    ),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_no_text_is_clipped_and_no_global_state_changes(make):
    settings = dict(matplotlib.rcParams)
    figure = make()
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    assert width * 150 / figure.dpi >= 800
    boxes = [ax.get_tightbbox(canvas.get_renderer()) for ax in figure.axes]
    legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes)]
    boxes += [legend.get_window_extent() for legend in legends if legend]
    for tight in filter(None, boxes):
        assert tight.x0 > -1 and tight.y0 > -1
        assert tight.x1 < width + 1 and tight.y1 < height + 1


def test_the_trace_shows_smoothed_bounds_cap_exact_and_final_estimate():
    (ax,) = trace().axes
    raw = np.array(make_history(200, 1)["eig"])
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert {"one step", "cap of one step", "design found"} < set(legend_texts(ax))
    smoothed = lines["info_nce, mean of 5 steps"]
    assert smoothed[100] == pytest.approx(raw[98:103].mean())
    assert smoothed[0] == pytest.approx(raw[:3].mean())
    assert lines["cap of one step"][0] == pytest.approx(math.log(32))
    assert lines["exact, design found"][0] == 1.3
    # The band narrows with the root of the number of averaged steps.
    (band,) = [c for c in ax.collections if c.get_alpha() == 0.3]
    vertices = band.get_paths()[0].vertices
    at_step = vertices[vertices[:, 0] == 101, 1]
    assert np.ptp(at_step) == pytest.approx(2 * 0.1 / math.sqrt(5))


def test_a_bad_start_does_not_squeeze_the_trace():
    history = make_history(200, 1)
    history["eig"][:5] = [-500.0, -90.0, -50.0, -20.0, -10.0]
    (ax,) = plotting.plot_trace(history).axes
    bottom, top = ax.get_ylim()
    assert -1.0 < bottom < 0.0
    assert max(history["eig"]) < top < 2.0


def test_the_posterior_figure_has_each_parameter_on_its_own_axis():
    prior = torch.randn(400, 2)
    samples = torch.tensor([2.0, -1.0]) + 0.01 * prior
    figure = plotting.plot_posterior(samples, prior, torch.tensor([2.0, -1.0]))
    histogram, _, pair, other = figure.axes
    _, points = (collection.get_offsets() for collection in pair.collections)
    assert np.abs(points - [2.0, -1.0]).max() < 0.1
    (truth,) = pair.get_lines()
    assert truth.get_xydata()[0].tolist() == [2.0, -1.0]
    assert (pair.get_xlabel(), pair.get_ylabel()) == ("parameter 1", "parameter 2")
    assert other.get_xlabel() == "parameter 2"
    # The columns share their horizontal axis, whatever the user does with it.
    pair.set_xlim(0.0, 1.0)
    assert histogram.get_xlim() == (0.0, 1.0)


def test_a_sequence_shows_each_experiment_with_the_last_on_top():
    prior = torch.randn(400, 2)
    sets = [0.5 * prior + 1.0, 0.1 * prior + 1.5, 0.01 * prior + 2.0]
    truth = torch.tensor([2.0, 1.9])
    figure = plotting.plot_posterior_sequence(sets, prior, truth, ["a", "b"])
    after = [f"after experiment {k}" for k in (1, 2, 3)]
    assert legend_texts(figure.axes[1]) == ["prior", *after, "truth"]
    pair = figure.axes[2]
    centres = [points.get_offsets().mean(axis=0) for points in pair.collections]
    expected = [[0.0], [1.0], [1.5], [2.0]]
    assert np.abs(np.array(centres) - expected).max() < 0.2
    colors = [tuple(points.get_facecolor()[0, :3]) for points in pair.collections]
    luminance = [np.dot(color, [0.3, 0.6, 0.1]) for color in colors[1:]]
    assert len(set(luminance)) == 3 and luminance == sorted(luminance, reverse=True)


def test_predictions_stand_beside_what_was_observed():
    x = torch.linspace(0.0, 1.0, 1_001).unsqueeze(1)
    figure = plotting.plot_predictive(
        [torch.tensor([[0.25]])], [x], [10.0 * x - 5.0], names=["count [people]"]
    )
    (ax,) = figure.axes
    assert ax.get_xlabel() == "count [people]"
    assert ax.get_title() == "25% of draws below"
    (line,) = ax.get_lines()
    assert line.get_xdata() == [0.25, 0.25]
    (legend,) = figure.legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["prior predictive", "posterior predictive", "observed"]
    # The posterior predictive is uniform on the unit interval, of density one.
    (outline,) = [p for p in ax.patches if p.get_label() == "posterior predictive"]
    heights = outline.get_xy()[:, 1]
    assert np.median(heights[heights > 0]) == pytest.approx(1.0, rel=0.05)
    low, high = ax.get_xlim()
    assert low < -4.5 and high > 4.5


def test_at_most_eight_measurements_are_drawn():
    data = torch.randn(500, 20)
    axes = plotting.plot_predictive([data[0]], [data]).axes
    assert [ax.get_xlabel() for ax in axes] == [
        f"measurement {j}" for j in range(1, 20, 3)
    ]


def record(policy, num_steps=5, seed=0):
    """Return the history of a policy whose parameters walk at random."""
    generator = torch.Generator().manual_seed(seed)
    history = []
    for step in range(num_steps):
        policy.anneal(step / max(1, num_steps - 1))
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            policy.project()
        history.append({key: v.tolist() for key, v in policy.describe().items()})
    return {key: [entry[key] for entry in history] for key in history[0]}


def marker_positions(ax, label):
    (container,) = [c for c in ax.containers if c.get_label() == label]
    return container.lines[0].get_xydata()


def test_the_curve_shows_estimates_candidates_and_the_design_found():
    (ax,) = eig_over_design().axes
    # The first estimate, far below, must not squeeze the others.
    floor = -0.25 * 1.1
    assert ax.get_ylim()[0] == pytest.approx(floor)
    lines = {line.get_label(): line for line in ax.get_lines()}
    below = lines["lower bound, further below"].get_xydata()
    assert below == pytest.approx(np.array([[0.0, floor]]))
    shown = marker_positions(ax, "lower bound ± standard error")
    expected = np.arange(1.0, 11.0)[:, None] * [1.0, 0.1]
    assert shown == pytest.approx(expected)
    compared = marker_positions(ax, "candidates compared")
    assert compared.tolist() == [[8.0, EIG.value], [3.0, EIG.value]]
    assert marker_positions(ax, "design found").tolist() == [[8.0, EIG.value]]
    assert lines["reference"].get_ydata()[1:] == pytest.approx(expected[:, 1] + 0.1)
    assert ax.get_xscale() == "linear" and ax.get_xlabel() == "time [s]"
    assert legend_texts(ax).count("never visited by the policy") == 1


def test_designs_over_decades_have_logarithmic_axes():
    designs = torch.tensor([1.0, 10.0, 100.0, 1_000.0])
    visited = torch.tensor([False, False, True, False])
    (ax,) = plotting.plot_eig_over_design(
        designs, [EIG] * 4, visited=visited, log=True
    ).axes
    assert ax.get_xscale() == "log"
    ends = [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches]
    expected = np.array([[0.0, 0.5], [0.5, 1.5], [2.5, 3.0]])
    assert np.log10(ends) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("scale", "num_simulations", "visited"),
    [
        # The probability beyond 2.5 is 0.023, hence one in 44.
        (0.25, [20, 40], [2]),
        (0.25, [20, 50], [1, 2, 3]),
        (0.0, [20, 50], [2]),
    ],
)
def test_visits_are_counted_in_simulations(scale, num_simulations, visited):
    grid = torch.arange(5.0)[:, None]
    history = {"mode": [[2.0], [2.0]], "scale": [[scale], [scale]]}
    history["num_simulations"] = num_simulations
    found = plotting.visited_designs(history, grid, grid[0], grid[-1])
    assert found.nonzero().flatten().tolist() == visited


@pytest.mark.parametrize(
    "policy",
    [
        TruncatedNormalPolicy(LOW[:1], HIGH[:1]),
        TruncatedNormalMixturePolicy(LOW[:1], HIGH[:1], num_components=3),
        NormalPolicy(torch.tensor([12.0]), scale=(6.0, 2.0)),
    ],
    ids=lambda policy: type(policy).__name__,
)
def test_recorded_densities_are_those_of_the_policy(policy):
    history = record(policy)
    # Between edges this close the mean density is that of the middle.
    edges = torch.linspace(0.0, 24.0, 2_401, dtype=torch.float64)
    positions = (0.5 * (edges[1:] + edges[:-1])).float()
    box = None if isinstance(policy, NormalPolicy) else (LOW, HIGH)
    densities = policy_densities(history, edges, box, 0).float()
    assert densities.shape == (2_400, 5)
    expected = policy.log_prob(positions.unsqueeze(1)).exp().detach()
    torch.testing.assert_close(densities[:, -1], expected, rtol=1e-3, atol=1e-6)


def test_the_density_of_one_value_of_a_mixture_is_the_marginal_one():
    policy = TruncatedNormalMixturePolicy(LOW, HIGH, num_components=3)
    history = record(policy)
    edges = torch.linspace(0.0, 24.0, 2_401, dtype=torch.float64)
    first = (0.5 * (edges[1:] + edges[:-1])).float()[::100]
    second = torch.linspace(-5.0, 5.0, 401)
    joint = policy.log_prob(torch.cartesian_prod(first, second)).exp().detach()
    expected = torch.trapezoid(joint.view(24, 401), second, dim=1)
    densities = policy_densities(history, edges, (LOW, HIGH), 0).float()
    torch.testing.assert_close(densities[::100, -1], expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "family", [TruncatedNormalMixturePolicy, TruncatedNormalPolicy, PointPolicy]
)
def test_several_design_values_have_a_panel_for_each(family):
    history = record(family(LOW, HIGH), num_steps=6)
    axes = plotting.plot_policy(history, LOW, HIGH, ["time [h]", "ξ"]).axes
    panels = [ax for ax in axes if ax.get_lines()]
    assert [ax.get_ylabel() for ax in panels] == ["time [h]", "ξ"]
    for j, (ax, width) in enumerate(zip(panels, (24.0, 10.0), strict=True)):
        (line,) = ax.get_lines()
        assert line.get_ydata() == pytest.approx(np.array(history["mode"])[:, j])
        if family is PointPolicy:
            assert not ax.images and not ax.collections
        else:
            density = np.asarray(ax.images[0].get_array())
            assert density.mean(axis=0) * width == pytest.approx(1.0, rel=1e-3)


def test_many_design_values_are_lines_of_one_panel():
    (ax,) = policy(100).axes
    ends = [line.get_ydata()[-1] for line in ax.get_lines()]
    assert len(ends) == 100 and ends == sorted(ends)
    assert min(ends) > 0.0 and max(ends) < 1.0


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plotting.plot_posterior_sequence([], ONE), "samples is empty"),
        (
            lambda: plotting.plot_posterior(ONE, ONE, names=["a", "b"]),
            "must hold 1 names",
        ),
        (
            lambda: plotting.plot_predictive([ONE[0]] * 2, [ONE]),
            "posterior_predictive has 1 entries",
        ),
        (
            lambda: plotting.plot_predictive([ONE[0]], [ONE], titles=["a", "b"]),
            "titles has 2 entries",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
