"""The two regression tasks against quadrature and nested Monte Carlo."""

import math

import pytest
import torch

from sbi_boed_plugin.tasks import (
    GaussianLinear,
    NoisyLinear,
    linear,
    noise_log_prob,
)
from tests.tasks.test_likelihoods import kolmogorov_smirnov

HALF_AT_EACH_END = torch.tensor([-10.0] * 5 + [10.0] * 5)


def convolution(z: torch.Tensor, gaussian_scale: float = 1.0) -> torch.Tensor:
    """Log-density of the noise by numerical convolution, with no closed form in it."""
    nu = torch.linspace(0.0, 100.0, 200_001, dtype=torch.float64)
    log_gamma = torch.distributions.Gamma(2.0, 0.5).log_prob(nu[1:])
    normal = torch.distributions.Normal(0.0, gaussian_scale)
    terms = log_gamma + normal.log_prob(z.double()[:, None] - nu[1:])
    return terms.logsumexp(dim=1) + (nu[1] - nu[0]).log()


def test_noise_density_is_the_convolution():
    z = torch.tensor([-20.0, -8.0, -5.0, -4.4, -2.0, 0.0, 0.5, 3.0, 20.0, 60.0])
    # The rule's own error: the spacing of 5e-4 squared, relative to a curvature that
    # grows with the square of z in the lower tail.
    torch.testing.assert_close(
        noise_log_prob(z.double()), convolution(z), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        noise_log_prob(z.double(), 7.0), convolution(z, 7.0), rtol=0, atol=1e-5
    )


def test_noise_density_has_finite_gradients_in_both_tails():
    z = torch.cat([-torch.logspace(3, -3, 200), torch.logspace(-3, 5, 200)])
    z.requires_grad_()
    log_prob = noise_log_prob(z)
    (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    assert log_prob.isfinite().all()
    assert gradient.isfinite().all()
    # Log-concave: the slope falls from -z (the Gaussian) to -1/2 (the Gamma).
    assert (gradient.diff() < 1e-4).all()
    assert float(gradient[0]) == pytest.approx(1e3, rel=1e-2)
    assert float(gradient[-1]) == pytest.approx(-0.5, abs=1e-4)


def test_single_precision_agrees_with_double():
    z = torch.linspace(-30.0, 100.0, 10_001)
    # Around a = -5 the sum that is left of two numbers is 1/27 of either, so that
    # some 30 units of 1e-7 are lost there; the values themselves reach 500.
    torch.testing.assert_close(
        noise_log_prob(z).double(), noise_log_prob(z.double()), rtol=1e-6, atol=3e-5
    )


def test_noise_density_is_smooth_where_the_formulas_meet():
    z = torch.linspace(-4.6, -4.4, 2001, dtype=torch.float64)
    log_prob = noise_log_prob(z)
    # Neighbours differ by 5e-4 through the slope; a kink or step would stand out
    # against second differences of 1e-8.
    assert log_prob.diff().diff().abs().max() < 2e-8


def test_simulated_noise_follows_the_density():
    task = NoisyLinear(dim_design=2)
    x = task.simulator(torch.zeros(50_000, 2), torch.zeros(50_000, 2))
    z = torch.linspace(-10.0, 90.0, 100_001, dtype=torch.float64)
    cdf = torch.cumulative_trapezoid(noise_log_prob(z).exp(), z)
    index = torch.searchsorted(z[1:], x.flatten().double()).clamp(max=len(cdf) - 1)
    assert kolmogorov_smirnov(cdf[index]) < 1.0


@pytest.mark.parametrize(
    ("position", "noisy"), [(10.0, 2.416), (5.0, 1.751), (1.0, 0.648), (0.0, 0.436)]
)
def test_information_of_one_measurement(position, noisy):
    design = torch.tensor([position])
    gaussian = 0.5 * math.log(1.0 + 9.0 * (1.0 + position**2))
    assert GaussianLinear().exact_eig(design) == (pytest.approx(gaussian), 0.0)
    # Three decimals are known.
    assert NoisyLinear().exact_eig(design) == (pytest.approx(noisy, abs=6e-4), 0.0)


@pytest.mark.parametrize(
    ("design", "expected"),
    [
        (HALF_AT_EACH_END, 5.118),
        (torch.linspace(-10.0, 10.0, 10), 4.678),
        (torch.full((10,), 10.0), 3.726),
        (torch.zeros(10), 1.462),
    ],
)
def test_noisy_eig_of_ten_measurements(design, expected):
    value, error = NoisyLinear(dim_design=10).exact_eig(design)
    assert error <= 0.02
    # The expected values come from nested Monte Carlo with a standard error of 0.023.
    assert value == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("ends", [0.0, 10.0])
def test_posterior_entropy_agrees_with_a_dense_grid(ends):
    design = torch.linspace(-ends, ends, 10, dtype=torch.float64)
    x = linear._seeded_data(design, num_samples=2, seed=0)
    # Twelve standard deviations of the prior at a tenth of the narrowest posterior's.
    grid = torch.linspace(-18.0, 18.0, 481, dtype=torch.float64)
    theta = torch.cartesian_prod(grid, grid)
    cell = float(grid[1] - grid[0]) ** 2
    log_prior = torch.distributions.Normal(0.0, 3.0).log_prob(theta).sum(dim=1)
    task = NoisyLinear(dim_design=10)
    for row in x:
        log_joint = log_prior + task.log_likelihood(row, theta, design)
        log_posterior = log_joint - log_joint.logsumexp(dim=0) - math.log(cell)
        entropy = -float((log_posterior.exp() * log_posterior).sum() * cell)
        ours = linear._posterior_entropy(row[None], design)
        assert float(ours) == pytest.approx(entropy, abs=1e-3)


def test_noisy_eig_does_not_depend_on_the_quadrature(monkeypatch):
    task = NoisyLinear(dim_design=2)
    design = torch.tensor([-10.0, 4.0])
    default, _ = task.exact_eig(design, num_samples=50)
    monkeypatch.setattr(linear, "_NUM_NODES", 81)
    finer, _ = task.exact_eig(design, num_samples=50)
    assert default == pytest.approx(finer, abs=1e-3)


def test_noisy_eig_states_its_standard_error():
    task = NoisyLinear(dim_design=2)
    design = torch.tensor([-3.0, 3.0])
    runs = [task.exact_eig(design, num_samples=50, seed=seed) for seed in range(30)]
    values, errors = torch.tensor(runs).T
    # The spread of 30 values is known to within 13 %, taken three times.
    assert float(values.std() / errors.mean()) == pytest.approx(1.0, abs=0.4)
