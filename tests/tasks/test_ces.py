"""Comparing baskets: utility, prior, point masses and information."""

import math

import pytest
import torch

from sbi_boed_plugin.tasks import CES
from sbi_boed_plugin.tasks.ces import CENSORING, _log_normal_cdf, utility, weights
from tests.tasks.test_likelihoods import kolmogorov_smirnov

HIGH = 1.0 - CENSORING
DESIGN = [10.0, 40.0, 30.0, 30.0, 20.0, 40.0]
# Empty baskets, equal ones, single goods, and as little as single precision holds.
CORNERS = torch.tensor(
    [
        [0.0] * 6,
        [100.0] * 6,
        [100.0] * 3 + [0.0] * 3,
        [100.0, 0.0, 0.0, 0.0, 0.0, 100.0],
        [0.0, 50.0, 0.0, 0.0, 50.0, 0.0],
        [1e-38, 1e-30, 100.0, 100.0, 0.0, 1e-45],
    ]
)


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moments(theta: torch.Tensor, design: torch.Tensor) -> tuple[float, float]:
    """Mean and standard deviation of the logit, as the model is written."""
    rho, first, second, slope = theta.double().tolist()
    alpha = double(first, (1 - first) * second, (1 - first) * (1 - second))
    one, two = design.double()[:3], design.double()[3:]
    utilities = [((alpha * x**rho).sum() ** (1 / rho)).item() for x in (one, two)]
    distance = float((one - two).norm())
    return slope * (utilities[0] - utilities[1]), slope * 0.005 * (1 + distance)


@pytest.mark.parametrize("rho", [0.02, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("basket", [(10.0, 20.0, 70.0), (0.01, 1.0, 99.0), (0, 3, 0)])
def test_utility_is_the_formula_as_written(rho, basket):
    alpha, x = double(0.2, 0.3, 0.5), double(*basket)
    expected = (alpha * x**rho).sum() ** (1.0 / rho)
    torch.testing.assert_close(utility(double(rho)[0], alpha, x), expected)
    single = utility(torch.tensor(rho), alpha.float(), x.float())
    torch.testing.assert_close(single.double(), expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("rho", [0.0, 1e-30, 1e-9, 1e-6])
def test_utility_without_substitution_is_the_product(rho):
    alpha, x = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([5.0, 80.0, 20.0])
    product = float((x**alpha).prod())
    assert float(utility(torch.tensor(rho), alpha, x)) == pytest.approx(product, 2e-5)
    # Somebody who cannot substitute has no use for a basket without one of the goods.
    x[1] = 0.0
    assert float(utility(torch.tensor(rho), alpha, x)) == 0.0


def test_prior_weights_are_uniform_on_the_simplex():
    theta = CES().prior.sample((40_000,))
    alpha = weights(theta[:, 1:3])
    torch.testing.assert_close(alpha.sum(dim=1), torch.ones(40_000))
    # Marginals of Dirichlet(1, 1, 1) are Beta(1, 2).
    for column in alpha.T:
        assert kolmogorov_smirnov(1.0 - (1.0 - column.double()).square()) < 1.0
    covariance = torch.cov(alpha.T)
    torch.testing.assert_close(
        covariance, (torch.eye(3) - 1.0 / 3.0) / 12.0, rtol=0, atol=2e-3
    )
    assert kolmogorov_smirnov(theta[:, 0]) < 1.0
    log_slope = torch.distributions.Normal(1.0, 3.0).cdf(theta[:, 3].log())
    assert kolmogorov_smirnov(log_slope) < 1.0


@pytest.mark.parametrize("slope", [1e-3, 0.05, 1.0, 10.0, 200.0])
def test_likelihood_integrates_to_one_with_its_point_masses(slope):
    task = CES()
    theta = double(0.9, 0.2, 0.375, slope)
    cap = math.log(HIGH / CENSORING)
    mean, scale = moments(theta, torch.tensor(DESIGN))
    low, high = max(-cap, mean - 9 * scale), min(cap, mean + 9 * scale)
    between = 0.0
    if low < high:
        # The ends themselves are point masses and not part of the integral.
        eta = torch.linspace(low, high, 20_003, dtype=torch.float64)[1:-1]
        y = eta.sigmoid()
        log_prob = task.log_likelihood(y[:, None], theta, double(*DESIGN))
        between = float(torch.trapezoid(log_prob.exp() * y * (1.0 - y), eta))
    ends = double(CENSORING, HIGH)[:, None]
    masses = task.log_likelihood(ends, theta, double(*DESIGN)).exp()
    assert between + float(masses.sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("slope", [0.05, 10.0, 60.0, 1_000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simulated_data_follow_the_likelihood(slope, dtype):
    task = CES()
    num = 20_000
    theta = torch.tensor([[0.9, 0.2, 0.375, slope]], dtype=dtype).expand(num, -1)
    design = torch.tensor([[20.0, 30.0, 30.4, 30.0, 20.0, 32.0]], dtype=dtype)
    y = task.simulator(theta, design.expand(num, -1))[:, 0]
    mean, scale = moments(theta[0], design[0])
    normal = torch.distributions.Normal(mean, scale)
    cap = math.log(HIGH / CENSORING)
    for end, z in ((CENSORING, (-cap - mean) / scale), (HIGH, (mean - cap) / scale)):
        share = float((y == end).double().mean())
        mass = float(torch.special.ndtr(double(z)))
        # Four standard errors of a frequency.
        assert abs(share - mass) <= 4.0 * math.sqrt(mass * (1.0 - mass) / num) + 1e-9
        log_prob = task.log_likelihood(
            torch.tensor([[end]], dtype=dtype), theta[0], design[0]
        )
        assert float(log_prob.double().exp()) == pytest.approx(mass, rel=1e-3, abs=1e-9)
    inside = y[(y > CENSORING) & (y < HIGH)].double()
    # Single precision rounds next to the upper end.
    if len(inside) > 100 and dtype == torch.float64:
        ends = normal.cdf(double(-cap, cap))
        conditional = (normal.cdf(inside.logit()) - ends[0]) / (ends[1] - ends[0])
        assert kolmogorov_smirnov(conditional) < 1.0


def test_point_masses_keep_their_digits_far_in_the_tail():
    theta = torch.tensor([0.9, 0.2, 0.375, 10.0])
    low = CES().log_likelihood(torch.tensor([HIGH]), theta, torch.tensor(DESIGN))
    mean, scale = moments(theta, torch.tensor(DESIGN))
    z = (mean - math.log(HIGH / CENSORING)) / scale
    # log Phi(z) = -z^2 / 2 - log(-z) - log(2 pi) / 2 + O(1 / z^2).
    assert z < -20.0
    expected = -0.5 * z**2 - math.log(-z) - 0.5 * math.log(2.0 * math.pi) - 1.0 / z**2
    assert float(low) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_arises_anywhere(dtype):
    task = CES()
    designs = torch.cat([task.design_space.sample((5_000,)), CORNERS])
    # Some goods are missing from many baskets.
    designs[:2_000] *= torch.rand(2_000, 6) > 0.5
    extremes = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1e-7, 1.0])])
    extremes = torch.cat([extremes, torch.full((27, 1), 2.7)], dim=1)
    theta = torch.cat([task.prior.sample((len(designs),)), extremes]).to(dtype)
    designs = torch.cat([designs, CORNERS[torch.arange(27) % len(CORNERS)]]).to(dtype)
    y = task.simulator(theta, designs)
    assert y.isfinite().all() and (y >= CENSORING).all() and (y <= HIGH).all()
    point = theta.requires_grad_(), designs.requires_grad_()
    own = task.log_likelihood(y, *point)
    assert own.isfinite().all()
    for gradient in torch.autograd.grad(own.sum(), point):
        assert not gradient.isnan().any()
    other = task.log_likelihood(y, theta.roll(1, dims=0), designs)
    assert not other.isnan().any() and (other < torch.inf).all()


def test_log_of_the_normal_distribution_function_and_its_gradient():
    z = torch.cat([-torch.logspace(4, -3, 3_000).double(), double(0.0, 3.0, 40.0)])
    z.requires_grad_()
    values = _log_normal_cdf(z)
    torch.testing.assert_close(values, torch.special.log_ndtr(z), rtol=1e-9, atol=0)
    (gradient,) = torch.autograd.grad(values.sum(), z)
    log_density = torch.distributions.Normal(double(0.0), 1.0).log_prob(z)
    expected = torch.exp(log_density - values)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


def test_exchanging_the_baskets_mirrors_the_answer():
    task = CES()
    theta, design = task.prior.sample((50,)).double(), torch.tensor(DESIGN)
    y = double(0.3, CENSORING, HIGH)[:, None, None]
    torch.testing.assert_close(
        task.log_likelihood(y, theta, design),
        task.log_likelihood(1.0 - y, theta, design.roll(3)),
    )
    value, error = task.exact_eig(design)
    mirrored, _ = task.exact_eig(design.roll(3))
    assert value == pytest.approx(mirrored, abs=6.0 * error)


def test_equal_baskets_tell_the_slope_alone():
    # y = clip(u tau eps): the logarithm of its size is Gaussian noise around log u.
    # Neither which goods nor how many matter.
    designs = torch.tensor([[50.0] * 6, [0.0] * 6, [1.0, 2.0, 3.0, 1.0, 2.0, 3.0]])
    values, errors = CES().exact_eig_grid(designs)
    assert float(values.max() - values.min()) < 1e-9
    log_slope = torch.linspace(-26.0, 28.0, 2_001, dtype=torch.float64)
    prior = torch.distributions.Normal(double(1.0), 3.0).log_prob(log_slope).exp()
    prior = prior / prior.sum()
    scale = 0.005 * log_slope.exp()
    cap = math.log(HIGH / CENSORING)
    # Both signs are equally likely: one half of the line, with twice the density.
    log_eta = torch.linspace(-60.0, math.log(cap), 4_001, dtype=torch.float64)
    z = log_eta.exp()[:, None] / scale
    density = 2.0 * torch.exp(-0.5 * z**2) / math.sqrt(2.0 * math.pi) * z
    mass = 2.0 * torch.special.ndtr(-cap / scale)

    def entropy(density, mass):
        integrand = -torch.special.xlogy(density, density)
        return torch.trapezoid(integrand, log_eta, dim=0) - torch.special.xlogy(
            mass, mass
        )

    conditional = (prior * entropy(density, mass)).sum()
    expected = entropy(density @ prior, (prior * mass).sum()) - conditional
    assert float(values[0]) == pytest.approx(float(expected), abs=5e-4)
