"""Figures of the information over designs, and of predictions: what they show."""

import numpy as np
import pytest
import torch

from sbi_boed_plugin import EIGEstimate, plotting
from tests.test_plotting import EIG, legend_texts


def estimates_of(values, error=0.1):
    return [EIGEstimate(float(value), error, "barber_agakov") for value in values]


def marker_positions(ax, label):
    (container,) = [c for c in ax.containers if c.get_label() == label]
    return container.lines[0].get_xydata()


def test_the_curve_shows_estimates_candidates_and_the_design_found():
    designs = torch.linspace(0.0, 10.0, 11)
    candidates = [(torch.tensor([7.0]), EIG), (torch.tensor([3.0]), EIG)]
    figure = plotting.plot_eig_over_design(
        designs, estimates_of(designs / 10), design=7.0, eig=EIG, candidates=candidates
    )
    (ax,) = figure.axes
    shown = marker_positions(ax, "lower bound ± standard error")
    assert shown == pytest.approx(np.stack([designs, designs / 10], axis=1))
    compared = marker_positions(ax, "candidates compared")
    assert compared.tolist() == [[7.0, EIG.value], [3.0, EIG.value]]
    assert marker_positions(ax, "design found").tolist() == [[7.0, EIG.value]]
    assert ax.get_xscale() == "linear"


def test_designs_over_decades_have_a_logarithmic_axis():
    designs = torch.logspace(-6.0, 3.0, 10)
    figure = plotting.plot_eig_over_design(designs, estimates_of(range(10)), log=True)
    assert figure.axes[0].get_xscale() == "log"


def test_untrained_designs_do_not_squeeze_the_curve():
    values = [-600.0, -20.0, 0.5, 2.0]
    figure = plotting.plot_eig_over_design(
        torch.arange(4.0),
        estimates_of(values, error=50.0)[:2] + estimates_of(values[2:]),
    )
    (ax,) = figure.axes
    bottom, top = ax.get_ylim()
    assert bottom == -0.5 and 2.0 < top < 3.0
    shown = marker_positions(ax, "lower bound ± standard error")
    assert shown.tolist() == [[2.0, 0.5], [3.0, 2.0]]
    (below,) = [
        line for line in ax.get_lines() if line.get_label().endswith("further below")
    ]
    assert below.get_xydata().tolist() == [[0.0, -0.5], [1.0, -0.5]]
    assert "lower bound, further below" in legend_texts(ax)


@pytest.mark.parametrize("order", ["row by row", "shuffled"])
def test_a_map_has_each_estimate_at_its_design(order):
    first, second = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([10.0, 20.0])
    designs = torch.cartesian_prod(first, second)
    if order == "shuffled":
        designs = designs[torch.randperm(6, generator=torch.Generator().manual_seed(0))]
    values = designs[:, 0] + designs[:, 1]
    design = torch.tensor([2.0, 20.0])
    candidates = [(design, EIG), (torch.tensor([1.0, 20.0]), EIG)]
    figure = plotting.plot_eig_map(
        designs,
        estimates_of(values),
        design=design,
        eig=EIG,
        candidates=candidates,
        names=["dose [mg]", "time [h]"],
    )
    ax, bar = figure.axes
    (mesh,) = ax.collections
    shown = np.asarray(mesh.get_array()).reshape(2, 3)
    assert shown.tolist() == [[10.0, 11.0, 12.0], [20.0, 21.0, 22.0]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("dose [mg]", "time [h]")
    assert bar.get_ylabel() == "expected information gain [nats]"
    lines = {line.get_label(): line.get_xydata().tolist() for line in ax.get_lines()}
    assert lines["runners-up"] == [[1.0, 20.0]]
    assert lines["design found: 1.20 ± 0.05 nats"] == [[2.0, 20.0]]
    assert ax.get_aspect() == "auto"


def test_a_map_and_its_reference_share_colours_from_zero():
    values = torch.arange(-4.0, 5.0)
    designs = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
    figure = plotting.plot_eig_map(
        designs,
        estimates_of(values),
        reference=[(6.0, 0.1)] * 9,
        same_units=True,
        log=False,
    )
    learned, reference, _ = figure.axes
    for ax in (learned, reference):
        assert ax.collections[0].get_clim() == (0.0, 6.0)
        assert ax.get_aspect() == 1.0
    assert learned.get_title() == "lower bound, learned"
    assert reference.get_title() == "reference"
    assert figure.legends == []


def test_a_map_over_decades_has_logarithmic_axes():
    values = torch.logspace(-2.0, 2.0, 3)
    designs = torch.cartesian_prod(values, values)
    figure = plotting.plot_eig_map(designs, estimates_of(range(9)), log=True)
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"


def test_designs_that_are_no_grid_are_refused():
    designs = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    with pytest.raises(ValueError, match="cartesian_prod"):
        plotting.plot_eig_map(designs, estimates_of(range(3)))


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
    assert [text.get_text() for text in legend.get_texts()] == [
        "prior predictive",
        "posterior predictive",
        "observed",
    ]
    # The posterior predictive is uniform on the unit interval, of density one.
    (outline,) = [p for p in ax.patches if p.get_label() == "posterior predictive"]
    heights = outline.get_xy()[:, 1]
    assert np.median(heights[heights > 0]) == pytest.approx(1.0, rel=0.05)
    low, high = ax.get_xlim()
    assert low < -4.5 and high > 4.5


def test_each_experiment_has_a_row_with_its_measurements():
    data = torch.randn(3, 200, 2)
    figure = plotting.plot_predictive(
        data[:, 0], data, names=["first", "second"], titles=["a", "b", "c"]
    )
    rows = [ax.get_subplotspec().rowspan.start for ax in figure.axes]
    assert rows == [0, 0, 1, 1, 2, 2]
    titles = [ax.get_title().splitlines()[0] for ax in figure.axes]
    assert titles == ["a", "a", "b", "b", "c", "c"]
    for ax, x in zip(figure.axes, data[:, 0].flatten().tolist(), strict=True):
        assert ax.get_lines()[0].get_xdata()[0] == pytest.approx(x)


def test_many_measurements_are_intervals_in_one_panel():
    data = torch.randn(500, 20) + torch.arange(20.0).flip(0)
    observed = torch.arange(20.0).flip(0)
    observed[0] = 100.0
    (ax,) = plotting.plot_predictive([observed], [data], [3.0 * data]).axes
    assert ax.get_title().startswith("95% of the measurements")
    (points,) = ax.get_lines()
    assert points.get_ydata().tolist() == [*range(19), 100.0]
    assert len(ax.collections) == 2


def test_constant_predictions_can_be_drawn():
    (ax,) = plotting.plot_predictive([torch.ones(1)], [torch.ones(50, 1)]).axes
    low, high = ax.get_xlim()
    assert low < 1.0 < high
    assert ax.get_title() == "50% of draws below"


def test_predictions_for_another_number_of_experiments_are_refused():
    data = torch.randn(2, 50, 1)
    with pytest.raises(ValueError, match="posterior_predictive has 1 entries"):
        plotting.plot_predictive(data[:, 0], data[:1])
    with pytest.raises(ValueError, match="titles has 3 entries"):
        plotting.plot_predictive(data[:, 0], data, titles=["a", "b", "c"])
