import pytest
import torch

from sbi_boed_plugin import TruncatedNormalMixturePolicy, TruncatedNormalPolicy
from tests.policies.expectations import assert_unbiased, by_score, grid_over

LOW, HIGH = [-1.0, 0.0], [1.0, 1.0]
# One component in the middle, one on an edge and one in a corner.
LOCATIONS = [[0.1, 0.5], [-1.0, 0.3], [1.0, 1.0]]


def policy(scale=0.15, loc=LOCATIONS, dtype=torch.float64, low=LOW, high=HIGH):
    low, high, loc = (torch.tensor(values, dtype=dtype) for values in (low, high, loc))
    this = TruncatedNormalMixturePolicy(
        low, high, num_components=len(loc), loc=loc, scale=scale
    )
    if len(loc) == 3:
        this.logits.data = torch.tensor([0.3, -0.4, 0.1], dtype=dtype)
    return this


def line(locations, weights, scale):
    """Components on the interval from 0 to 1."""
    this = policy(scale, [[loc] for loc in locations], low=[0.0], high=[1.0])
    this.logits.data = torch.tensor(weights, dtype=torch.float64).log()
    return this


@pytest.mark.parametrize("scale", [0.02, 0.15, 5.0])
def test_density_integrates_to_one(scale):
    grid, area = grid_over(LOW, HIGH, 400)
    total = (policy(scale).log_prob(grid).exp() * area).sum()
    assert total.item() == pytest.approx(1.0, abs=1e-4)
    assert (policy(scale).log_prob(grid + 2.1) == -torch.inf).all()


def test_one_component_is_a_truncated_normal():
    low, high = torch.zeros(3), torch.tensor([1.0, 2.0, 5.0])
    single = TruncatedNormalPolicy(low, high, scale=0.2)
    this = TruncatedNormalMixturePolicy(low, high, num_components=1, scale=0.2)
    torch.testing.assert_close(this.loc[0], single.loc)
    design = single.sample((50,))
    torch.testing.assert_close(this.log_prob(design), single.log_prob(design))
    torch.testing.assert_close(this.mode, single.mode)


@pytest.mark.parametrize("scale", [0.05, 0.3])
def test_samples_follow_the_density(scale):
    this = policy(scale)
    samples = this.sample((20_000,))
    assert this.support.check(samples).all()
    grid, area = grid_over(LOW, HIGH, 400)
    mass = this.log_prob(grid).exp() * area
    for statistic in (
        lambda x: x[..., 0],
        lambda x: x[..., 0] * x[..., 1],
        lambda x: (x[..., 0] > 0.5).double(),
        lambda x: ((x[..., 0] < -0.75) & (x[..., 1] < 0.3)).double(),
    ):
        values = statistic(samples)
        error = values.std().item() / 20_000**0.5
        expected = (mass * statistic(grid)).sum().item()
        assert values.mean().item() == pytest.approx(expected, abs=4 * error + 1e-3)


@pytest.mark.parametrize("scale", [0.15, 0.4])
def test_score_gradients_are_those_of_the_expectation(scale):
    exact = assert_unbiased(policy(scale), by_score, LOW, HIGH, precision=0.05)
    assert (exact.abs() > 0.02).sum() >= 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 0.05, 5.0])
def test_gradients_are_finite_for_narrow_and_wide_components(scale, dtype):
    this = policy(scale, dtype=dtype)
    loss = this.log_prob(this.sample((20_000,))).sum()
    for gradient in torch.autograd.grad(loss, list(this.parameters())):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("locations", "weights", "scale"),
    [
        ([0.2, 0.8], [0.3, 0.7], 0.05),  # apart
        ([0.45, 0.55, 0.1], [0.35, 0.35, 0.3], 0.1),  # two join into one mode
        ([0.0, 0.5], [0.4, 0.6], 0.1),  # truncation doubles the density at the edge
    ],
)
def test_mode_is_the_most_likely_design(locations, weights, scale):
    this = line(locations, weights, scale)
    grid = torch.linspace(0.0, 1.0, 10_001, dtype=torch.float64).unsqueeze(1)
    best = grid[this.log_prob(grid).argmax()]
    assert this.mode.item() == pytest.approx(best.item(), abs=2e-3)
    assert this.log_prob(this.mode) >= this.log_prob(this.loc).max()
    assert not this.mode.requires_grad


@pytest.mark.parametrize("num_components", range(1, 9))
def test_initial_locations_cover_the_box(num_components):
    box = torch.tensor([-1.0]), torch.tensor([1.0])
    this = TruncatedNormalMixturePolicy(*box, num_components=num_components)
    again = TruncatedNormalMixturePolicy(*box, num_components=num_components)
    assert torch.equal(this.loc, again.loc)
    edges = torch.tensor([-1.0, *sorted(this.loc.flatten().tolist()), 1.0])
    assert (edges.diff() > 0.0).all()
    assert edges.diff().max() <= 2.0 * 2.0 / (num_components + 1)
    # Where measurements are interchangeable, equal values would be a saddle point.
    box = -torch.ones(2), torch.ones(2)
    loc = TruncatedNormalMixturePolicy(*box, num_components=num_components).loc
    assert ((loc[:, 0] - loc[:, 1]).abs() > 0.2 / num_components).all()
