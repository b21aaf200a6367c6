"""Figures: what they show, that nothing is clipped, and that they leave no trace."""

import math

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sbi_boed_plugin import EIGEstimate, plotting
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)

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


def box(dim_design):
    return torch.full((dim_design,), -10.0), torch.full((dim_design,), 10.0)


def legend_texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def trace(num_steps=200):
    return plotting.plot_trace(
        make_history(num_steps, 1), eig=EIG, cap=math.log(32), exact=1.3
    )


def policy(dim_design):
    return plotting.plot_policy(make_history(200, dim_design), *box(dim_design))


def policy_with_units():
    history = make_history(200, 2)
    low, high = torch.tensor([-10.0, -20.0]), torch.tensor([10.0, 20.0])
    return plotting.plot_policy(history, low, high, ["time [s]", "dose [mg]"])


def eig_over_design():
    designs = torch.linspace(0.0, 10.0, 11)
    estimates = [EIGEstimate(v, 0.1, "pce") for v in (designs / 10).tolist()]
    reference = [(estimate.value + 0.1, 0.01) for estimate in estimates]
    return plotting.plot_eig_over_design(
        designs, estimates, design=8.0, eig=EIG, reference=reference, name="time [s]"
    )


def eig_map():
    values = torch.linspace(-4.0, 4.0, 5)
    designs = torch.cartesian_prod(values, values)
    estimates = [EIGEstimate(v, 0.1, "pce") for v in (-designs.norm(dim=1)).tolist()]
    return plotting.plot_eig_map(
        designs,
        estimates,
        design=designs[12],
        eig=EIG,
        candidates=[(designs[12], EIG), (designs[13], EIG)],
        reference=[(1.0, 0.1)] * 25,
        names=["first coordinate [m]", "second coordinate [m]"],
        same_units=True,
    )


def policy_of_a_mixture():
    history = make_history(200, 2)
    locations = torch.tensor(history["mode"]).unsqueeze(1).expand(-1, 3, -1)
    history |= {"loc": locations.tolist(), "weights": [[0.2, 0.3, 0.5]] * 200}
    return plotting.plot_policy(history, *box(2), ["time [h]", "dose [mg/kg]"])


def policy_of_a_point():
    history = {"mode": make_history(200, 1)["mode"], "scale": [[0.0]] * 200}
    return plotting.plot_policy(history, *box(1), ["time [h]"])


def policy_of_candidates():
    history = {"probabilities": torch.full((50, 8), 1 / 8).tolist()}
    candidates = torch.logspace(-2.0, 4.0, 8).unsqueeze(1)
    return plotting.plot_policy_candidates(history, candidates, ["concentration [M]"])


def posterior_sequence():
    prior = torch.randn(300, 3)
    sets = [prior * scale + 1.0 for scale in (0.5, 0.2)]
    return plotting.plot_posterior_sequence(sets, prior, torch.ones(3))


def predictive(dim_x, num_experiments):
    data = torch.randn(num_experiments, 400, dim_x)
    names = [f"concentration at time {j} [mg/l]" for j in range(dim_x)]
    return plotting.plot_predictive(data[:, 0], data, 5.0 * data, names=names)


def posterior(dim_theta):
    prior = torch.randn(500, dim_theta)
    names = [f"parameter number {j} [unit]" for j in range(dim_theta)]
    return plotting.plot_posterior(
        0.2 * prior + 1.0, prior, torch.ones(1, dim_theta), names
    )


FIGURES = {
    "trace": trace,
    "trace of one step": lambda: trace(1),
    "policy 1": lambda: policy(1),
    "policy 6": lambda: policy(6),
    "policy 100": lambda: policy(100),
    "policy with units": policy_with_units,
    "eig over design": eig_over_design,
    "eig map": eig_map,
    "policy of a mixture": policy_of_a_mixture,
    "policy of a point": policy_of_a_point,
    "policy of candidates": policy_of_candidates,
    "posterior sequence": posterior_sequence,
    "predictive 1": lambda: predictive(1, 1),
    "predictive 3": lambda: predictive(3, 3),
    "predictive 20": lambda: predictive(20, 2),
    "posterior 1": lambda: posterior(1),
    "posterior 2": lambda: posterior(2),
    "posterior 4": lambda: posterior(4),
}


@pytest.mark.parametrize("make", FIGURES.values(), ids=FIGURES)
def test_no_text_is_clipped_and_no_global_state_changes(make):
    settings = dict(matplotlib.rcParams)
    figure = make()
    assert isinstance(figure, Figure)
    assert dict(matplotlib.rcParams) == settings
    assert plt.get_fignums() == []

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = canvas.get_width_height()
    assert width * 150 / figure.dpi >= 800
    for ax in figure.axes:
        tight = ax.get_tightbbox(canvas.get_renderer())
        if tight is not None:
            assert tight.x0 > -1 and tight.y0 > -1
            assert tight.x1 < width + 1 and tight.y1 < height + 1


def test_the_trace_shows_smoothed_bounds_cap_exact_and_final_estimate():
    history = make_history(200, 1)
    (ax,) = trace().axes
    assert set(legend_texts(ax)) == {
        "one step",
        "mean of 5 steps",
        "cap of one step",
        "exact, design found",
        "design found",
    }
    lines = {line.get_label(): line for line in ax.get_lines()}
    smoothed = lines["mean of 5 steps"].get_ydata()
    raw = np.array(history["eig"])
    assert smoothed[100] == pytest.approx(raw[98:103].mean())
    assert smoothed[0] == pytest.approx(raw[:3].mean())
    assert lines["cap of one step"].get_ydata()[0] == pytest.approx(math.log(32))
    assert lines["exact, design found"].get_ydata()[0] == 1.3


def test_the_band_narrows_with_the_root_of_the_number_of_averaged_steps():
    (ax,) = trace().axes
    (band,) = [c for c in ax.collections if c.get_alpha() == 0.3]
    vertices = band.get_paths()[0].vertices
    at_step = vertices[vertices[:, 0] == 101, 1]
    assert np.ptp(at_step) == pytest.approx(2 * 0.1 / math.sqrt(5))


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ("barber_agakov", "Barber-Agakov bound"),
        ("gkl", "generalized-KL bound"),
        ("info_nce", "InfoNCE bound"),
        ("marginal", "marginal estimate (no bound)"),
    ],
)
def test_the_trace_is_named_after_its_objective(objective, name):
    assert objective in POLICY_OBJECTIVES
    (ax,) = plotting.plot_trace(make_history(200, 1), objective=objective).axes
    assert legend_texts(ax) == ["one step", f"{name}, mean of 5 steps"]


def test_a_bad_start_does_not_squeeze_the_trace():
    history = make_history(200, 1)
    history["eig"][:5] = [-500.0, -90.0, -50.0, -20.0, -10.0]
    (ax,) = plotting.plot_trace(history).axes
    bottom, top = ax.get_ylim()
    assert -1.0 < bottom < 0.0
    assert max(history["eig"]) < top < 2.0


def test_figures_can_be_drawn_into_given_axes():
    figure = Figure()
    left, right = figure.subplots(1, 2)
    history = make_history(10, 1)
    assert plotting.plot_trace(history, ax=left) is figure
    estimates = [EIGEstimate(0.5, 0.1, "exact")]
    designs = torch.tensor([1.0])
    assert plotting.plot_eig_over_design(designs, estimates, ax=right) is figure
    assert legend_texts(right) == ["exact ± standard error"]


def test_the_posterior_figure_has_each_parameter_on_its_own_axis():
    prior = torch.randn(400, 2)
    samples = torch.stack([torch.full((400,), 2.0), torch.full((400,), -1.0)], dim=-1)
    samples = samples + 0.01 * prior
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


def test_long_tails_of_the_prior_do_not_squeeze_the_posterior():
    prior = torch.exp(2.0 * torch.randn(2_000, 2))
    samples = 1.0 + 0.1 * torch.rand(500, 2)
    figure = plotting.plot_posterior(samples, prior)
    low, high = figure.axes[0].get_xlim()
    assert high < prior[:, 0].max()
    assert low > -0.5
