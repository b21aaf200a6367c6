"""Figures of designs and of policies: what they show."""

import math

import numpy as np
import pytest
import torch

from sbi_boed_plugin import plotting
from sbi_boed_plugin.plotting.policy import policy_densities
from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    NormalPolicy,
    PointPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from tests.test_plotting import EIG, eig_map, eig_over_design, legend_texts, policy

LOW, HIGH = torch.tensor([0.0, -5.0]), torch.tensor([24.0, 5.0])


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


def test_a_map_has_each_estimate_at_its_design_and_shares_its_colours():
    learned, reference, bar = eig_map().axes
    (mesh,) = learned.collections
    shown = np.asarray(mesh.get_array()).reshape(2, 3)
    assert shown.tolist() == [[-5.0, -4.0, -3.0], [5.0, 6.0, 7.0]]
    # From zero to the largest value of both.
    assert mesh.get_clim() == reference.collections[0].get_clim() == (0.0, 8.0)
    assert learned.get_title() == "lower bound, learned"
    assert reference.get_title() == "reference"
    assert learned.get_xlabel() == "first coordinate [m]"
    assert learned.get_ylabel() == "second coordinate [m]"
    assert bar.get_ylabel() == "expected information gain [nats]"
    lines = {line.get_label(): line.get_xydata() for line in learned.get_lines()}
    assert lines["runners-up"].tolist() == [[1.0, 20.0]]
    assert lines["design found: 1.20 ± 0.05 nats"].tolist() == [[2.0, 20.0]]
    crosses = lines["never visited by the policy"]
    assert sorted(crosses.tolist()) == [[0.0, 10.0], [0.0, 20.0]]


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
    grid = torch.cartesian_prod(designs, designs)
    figure = plotting.plot_eig_map(grid, [EIG] * 16, log=True)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    assert figure.legends == []


def test_visits_are_of_all_design_values_together():
    # One component in each of two opposite corners.
    history = {"loc": [[LOW.tolist(), HIGH.tolist()]], "weights": [[0.5, 0.5]]}
    history |= {"scale": [[0.5, 0.2]], "mode": [[0.0, -5.0]]}
    history["num_simulations"] = [1_000]
    corners = torch.cartesian_prod(torch.tensor([0.0, 24.0]), torch.tensor([-5.0, 5.0]))
    visited = plotting.visited_designs(history, corners, LOW, HIGH)
    assert visited.tolist() == [True, False, False, True]


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


def test_one_design_value_is_a_heat_map_with_the_mode_on_top():
    history = record(TruncatedNormalPolicy(LOW[:1], HIGH[:1]), num_steps=7)
    ax, bar = plotting.plot_policy(history, LOW[:1], HIGH[:1], ["time [h]"]).axes
    (image,) = ax.images
    density = np.asarray(image.get_array())
    assert density.shape == (200, 7)
    assert image.get_extent() == [0.5, 7.5, 0.0, 24.0]
    (line,) = ax.get_lines()
    assert line.get_ydata() == pytest.approx(np.array(history["mode"])[:, 0])
    # The densest row of each step is where the mode is.
    densest = (density.argmax(axis=0) + 0.5) * 24.0 / 200
    assert np.abs(densest - line.get_ydata()).max() < 24.0 / 200
    assert bar.get_ylabel() == "policy density [1/(h)]"
    assert legend_texts(ax) == ["mode"]


def test_a_policy_without_bounds_gets_axes_around_it():
    history = record(NormalPolicy(torch.tensor([12.0]), scale=(2.0, 1.0)), num_steps=4)
    ax = plotting.plot_policy(history).axes[0]
    low, high = ax.get_ylim()
    assert low < 12.0 - 6.0 and high > 12.0 + 6.0
    density = np.asarray(ax.images[0].get_array())
    height = np.diff(ax.images[0].get_extent()[2:]).item()
    assert density.mean(axis=0) * height == pytest.approx(1.0, abs=0.02)


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


def test_candidates_are_rows_of_probabilities_in_ascending_order():
    candidates = torch.tensor([[10.0], [0.5], [2.0]])
    history = record(CategoricalPolicy(candidates), num_steps=4)
    ax, bar = plotting.plot_policy_candidates(history, candidates, ["time [h]"]).axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["0.5", "2", "10"]
    shown = np.asarray(ax.images[0].get_array())
    expected = np.array(history["probabilities"]).T[[1, 2, 0]]
    assert shown == pytest.approx(expected)
    (line,) = ax.get_lines()
    assert line.get_ydata().tolist() == expected.argmax(axis=0).tolist()
    assert bar.get_ylabel() == "probability of the candidate"


def test_many_candidates_do_not_crowd_their_labels():
    candidates = torch.cartesian_prod(torch.arange(10.0), torch.arange(10.0))
    history = record(CategoricalPolicy(candidates), num_steps=3)
    ax = plotting.plot_policy_candidates(history, candidates).axes[0]
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert len(labels) == math.ceil(100 / 5)
    assert labels[:2] == ["0, 0", "0, 5"]
    assert ax.get_ylabel() == "design 1, design 2"


def test_many_design_values_are_rows_ordered_by_their_end():
    image = policy(100).axes[0].images[0]
    final = np.asarray(image.get_array())[:, -1]
    assert final.shape == (100,)
    assert (np.diff(final) >= 0).all()
