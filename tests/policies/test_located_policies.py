"""Policies around a location: densities, edges, gradients, units and schedules."""

import pytest
import torch
from scipy.stats import truncnorm

from sbi_boed_plugin import (
    NormalPolicy,
    PointPolicy,
    ScaleSchedule,
    TruncatedNormalPolicy,
)
from tests.policies.expectations import finite_differences, smooth

LOC = torch.tensor([0.3, -0.2], dtype=torch.float64)


def policy(loc=30.0, scale=0.1, dtype=torch.float32):
    low, high, loc = (torch.tensor([v], dtype=dtype) for v in (0.0, 100.0, loc))
    return TruncatedNormalPolicy(low, high, loc=loc, scale=scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("loc", [0.0, 2.0, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("scale", [0.003, 0.05, 0.3, 30.0])
def test_density_and_draws_are_scipys(loc, scale, dtype):
    """Also in single precision, where a Normal ends 5.4 scales above its location."""
    this, width = policy(loc, scale, dtype), 100.0 * scale
    expected = truncnorm(-loc / width, (100.0 - loc) / width, loc, width)
    grid = torch.linspace(0.0, 100.0, 2_001, dtype=dtype)
    exact = expected.logpdf(grid.double().numpy())
    log_prob = this.log_prob(grid.unsqueeze(1)).detach().double().numpy()
    assert log_prob == pytest.approx(exact, rel=1e-4, abs=1e-3)
    assert (this.log_prob(torch.tensor([[-1.0], [100.1]])) == -torch.inf).all()

    drawn = this.sample((20_000,))
    assert this.support.check(drawn).all() and this.log_prob(drawn).isfinite().all()
    # Four standard errors of mean and quantile of 20,000 draws.
    error = 4 * expected.std() / 141 + 1e-4
    assert drawn.mean().item() == pytest.approx(expected.mean(), abs=error)
    for level in (0.1, 0.5, 0.9):
        below = (drawn <= expected.ppf(level)).float().mean().item()
        assert below == pytest.approx(level, abs=4 * 0.5 / 141)


def test_gradient_of_log_prob_against_finite_differences():
    low, high, loc = torch.tensor([[0.0, -1.0], [2.0, 5.0], [0.1, 4.0]]).double()
    this = TruncatedNormalPolicy(low, high, loc=loc, scale=0.3)
    design = this.sample(torch.Size((4,)))
    finite = finite_differences(this, lambda: this.log_prob(design).sum(), 1e-6)
    (gradient,) = torch.autograd.grad(this.log_prob(design).sum(), this._unit_loc)
    torch.testing.assert_close(gradient, finite, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("loc", [0.0, 50.0, 87.0, 100.0])
def test_gradient_is_finite_at_the_ends_of_the_random_numbers(
    uniform, loc, monkeypatch
):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, uniform))
    this = policy(loc)
    design = this.rsample(torch.Size((3,)))
    assert this.support.check(design).all()
    (gradient,) = torch.autograd.grad(design.sum(), this._unit_loc)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("scale", "start", "end"),
    [
        (0.5, [0.5, 0.5], [0.5, 0.5]),
        ((4.0, 1.0), [4.0, 4.0], [1.0, 1.0]),
        (ScaleSchedule(4.0, 1.0), [4.0, 4.0], [1.0, 1.0]),
        ((torch.tensor([4.0, 9.0]), 1.0), [4.0, 9.0], [1.0, 1.0]),
        (torch.tensor([4, 9]), [4.0, 9.0], [4.0, 9.0]),
    ],
)
@pytest.mark.parametrize("width", [None, 100.0])
def test_scales_follow_a_geometric_schedule(scale, start, end, width):
    """In a box they are shares of its width."""
    if width is None:
        this, width = NormalPolicy(torch.zeros(2), scale), 1.0
    else:
        box = torch.zeros(2), torch.full((2,), width)
        this = TruncatedNormalPolicy(*box, scale=scale)
    middle = [(a * b) ** 0.5 for a, b in zip(start, end, strict=True)]
    assert (this.scale / width).tolist() == start
    for progress, expected in ((0.0, start), (0.5, middle), (1.5, end)):
        this.anneal(progress)
        scales = this.describe()["scale"] / width
        assert scales.tolist() == pytest.approx(expected)


def test_normal_learns_in_units_of_its_first_scale():
    scale = torch.tensor([100.0, 0.01])
    this = NormalPolicy(torch.tensor([5.0, 5.0]), (scale, 0.1 * scale))
    with torch.no_grad():
        this._unit_loc.add_(1.0)
    this.anneal(1.0)
    assert this.mode.tolist() == pytest.approx([105.0, 5.01])
    assert this.support.check(torch.tensor([[1e30, -1e30]])).all()


@pytest.mark.parametrize("family", [TruncatedNormalPolicy, PointPolicy])
def test_default_locations_differ_between_interchangeable_measurements(family):
    this = family(torch.full((4,), -10.0), torch.full((4,), 10.0))
    assert len(set(this.mode.tolist())) == 4
    assert family(torch.zeros(1), torch.ones(1)).mode.item() == 0.5


def test_numbers_are_corners_of_a_box_of_one_value():
    this = TruncatedNormalPolicy(0.0, 2.0, loc=0.5)
    assert this.mode.tolist() == [0.5]
    assert this.sample(torch.Size((3,))).shape == (3, 1)


@pytest.mark.parametrize("bounded", [True, False])
def test_point_gradient_is_that_of_the_function(bounded):
    box = (-2 * torch.ones(2).double(), 2 * torch.ones(2).double()) if bounded else ()
    this = PointPolicy(*box, loc=LOC)
    samples = this.rsample((7,))
    (gradient,) = torch.autograd.grad(smooth(samples).mean(), this._unit_loc)
    finite = finite_differences(this, lambda: smooth(this.mode), 1e-6)
    torch.testing.assert_close(gradient, finite, rtol=1e-6, atol=0.0)
    # Draws are separate copies of the mode.
    samples = this.sample((3,))
    samples[0] = 7.0
    assert torch.equal(samples[1], this.mode)


@pytest.mark.parametrize("family", [TruncatedNormalPolicy, PointPolicy])
def test_locations_come_back_into_the_box(family):
    # 0.3 + 0.3 is not what rounding makes of low + 1 * (high - low).
    low, high = torch.tensor([0.1]), torch.tensor([0.3 + 0.3])
    this = family(low, high)
    for value, edge in ((1.5, high), (-0.5, low)):
        this._unit_loc.data.fill_(value)
        this.project()
        assert torch.equal(this.mode, edge)
        assert this.support.check(this.rsample((20,))).all()
    point = PointPolicy(low, high, loc=high)
    # At the edge, too, it has a gradient, so that it can leave.
    (gradient,) = torch.autograd.grad(point.rsample((4,)).mean(), point._unit_loc)
    assert gradient.item() == pytest.approx(0.5)


def test_point_without_a_box_is_not_held_back():
    this = PointPolicy(loc=torch.tensor([1, 2]))
    this._unit_loc.data.fill_(1e6)
    this.project()
    assert this.mode.tolist() == [1e6 + 1, 1e6 + 2]
    assert this.support.check(this.mode)
