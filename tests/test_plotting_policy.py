"""Figures of policies: that densities are those of the policies they were made from."""

import math

import numpy as np
import pytest
import torch

from sbi_boed_plugin import plotting
from sbi_boed_plugin.plotting._policy_density import policy_densities
from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    NormalPolicy,
    PointPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
)
from tests.test_plotting import legend_texts, policy, policy_with_units

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
    low, high = (None, None) if isinstance(policy, NormalPolicy) else (LOW, HIGH)
    densities = policy_densities(history, edges, low, high).float()
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
    densities = policy_densities(history, edges, LOW, HIGH, index=0).float()
    torch.testing.assert_close(densities[::100, -1], expected, rtol=1e-3, atol=1e-6)


def test_one_design_value_is_a_heat_map_with_the_mode_on_top():
    policy = TruncatedNormalPolicy(LOW[:1], HIGH[:1])
    history = record(policy, num_steps=7)
    figure = plotting.plot_policy(history, LOW[:1], HIGH[:1], ["time [h]"])
    ax, bar = figure.axes
    (image,) = ax.images
    density = np.asarray(image.get_array())
    assert density.shape == (200, 7)
    assert density.mean(axis=0) * 24.0 == pytest.approx(1.0, rel=1e-3)
    assert image.get_extent() == [0.5, 7.5, 0.0, 24.0]
    (line,) = ax.get_lines()
    assert line.get_ydata() == pytest.approx(np.array(history["mode"])[:, 0])
    # The densest row of each step is where the mode is.
    densest = (density.argmax(axis=0) + 0.5) * 24.0 / 200
    assert np.abs(densest - line.get_ydata()).max() < 24.0 / 200
    assert ax.get_ylabel() == "time [h]"
    assert bar.get_ylabel() == "policy density [1/h]"
    assert legend_texts(ax) == ["mode"]


def test_a_policy_without_bounds_gets_axes_around_it():
    policy = NormalPolicy(torch.tensor([12.0]), scale=(2.0, 1.0))
    history = record(policy, num_steps=4)
    figure = plotting.plot_policy(history)
    low, high = figure.axes[0].get_ylim()
    assert low < 12.0 - 6.0 and high > 12.0 + 6.0
    density = np.asarray(figure.axes[0].images[0].get_array())
    height = np.diff(figure.axes[0].images[0].get_extent()[2:]).item()
    assert density.mean(axis=0) * height == pytest.approx(1.0, abs=0.02)


def test_a_mixture_over_several_design_values_has_a_heat_map_for_each():
    history = record(TruncatedNormalMixturePolicy(LOW, HIGH), num_steps=6)
    figure = plotting.plot_policy(history, LOW, HIGH, ["time [h]", "ξ"])
    maps = [ax for ax in figure.axes if ax.images]
    assert [ax.get_ylabel() for ax in maps] == ["time [h]", "ξ"]
    for ax, width in zip(maps, (24.0, 10.0), strict=True):
        density = np.asarray(ax.images[0].get_array())
        assert density.mean(axis=0) * width == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("dim_design", [1, 2])
def test_a_point_is_a_line_without_a_band(dim_design):
    low, high = LOW[:dim_design], HIGH[:dim_design]
    history = record(PointPolicy(low, high))
    axes = plotting.plot_policy(history, low, high).axes
    assert len(axes) == dim_design
    for j, ax in enumerate(axes):
        assert not ax.images and not ax.collections
        (line,) = ax.get_lines()
        assert line.get_ydata() == pytest.approx(np.array(history["mode"])[:, j])


def test_a_policy_that_describes_its_mode_only_is_a_line():
    (ax,) = plotting.plot_policy({"mode": [[0.2], [0.8]]}).axes
    assert ax.get_lines()[0].get_ydata().tolist() == [0.2, 0.8]
    low, high = ax.get_ylim()
    assert low < 0.2 and high > 0.8


def test_candidates_are_rows_of_probabilities_in_ascending_order():
    candidates = torch.tensor([[10.0], [0.5], [2.0]])
    policy = CategoricalPolicy(candidates)
    history = record(policy, num_steps=4)
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


def test_the_policy_band_stays_in_the_box():
    (ax,) = policy(3).axes
    for band in ax.collections:
        values = band.get_paths()[0].vertices[:, 1]
        assert values.min() >= -10.0 and values.max() <= 10.0
    assert legend_texts(ax) == ["design 1", "design 2", "design 3"]


def test_designs_with_different_ranges_have_panels_in_their_units():
    time, dose = policy_with_units().axes
    assert time.get_title(loc="left") == "time [s]"
    assert dose.get_title(loc="left") == "dose [mg]"
    assert dose.get_ylim()[1] > 20.0 > time.get_ylim()[1]


def test_many_design_values_are_rows_ordered_by_their_end():
    image = policy(100).axes[0].images[0]
    final = np.asarray(image.get_array())[:, -1]
    assert final.shape == (100,)
    assert (np.diff(final) >= 0).all()
