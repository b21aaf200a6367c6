"""The response to a growth factor against series, limits and nested Monte Carlo."""

import math
from fractions import Fraction

import pytest
import torch

from sbi_boed_plugin.tasks import BMP
from sbi_boed_plugin.tasks.bmp import bound_fraction


def catalan_series(k: float, num_terms: int = 30) -> float:
    """T = 1 - C(-k), with C the generating function of the Catalan numbers."""
    exact, total = Fraction(k), Fraction(0)
    for n in range(1, num_terms):
        catalan = math.comb(2 * n, n) // (n + 1)
        total -= catalan * (-exact) ** n
    return float(total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bound_fraction_is_its_series_for_small_arguments(dtype):
    k = torch.logspace(-12, -1.5, 50, dtype=dtype)
    expected = torch.tensor([catalan_series(value) for value in k.tolist()]).double()
    # A few units in the last place.
    rtol = 5.0 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(bound_fraction(k).double(), expected, rtol=rtol, atol=0)


def test_bound_fraction_solves_the_binding_equilibrium():
    # T complexes of two receptors, of which one unit each: T = k (1 - T)^2.
    k = torch.logspace(-9, 3, 100, dtype=torch.float64)
    t = bound_fraction(k)
    torch.testing.assert_close(t, k * (1.0 - t).square(), rtol=1e-10, atol=0)
    torch.testing.assert_close(bound_fraction(k.float()), t.float(), rtol=1e-6, atol=0)


def test_nothing_is_learned_without_ligand():
    value, error = BMP().exact_eig(torch.tensor([0.0]))
    assert abs(value) < 1e-9 and error < 1e-9


def test_at_saturation_only_the_efficiency_is_measured():
    # T = 1: a uniform number plus noise, whose entropy for small noise exceeds that
    # of the uniform number by two edges of 0.597 standard deviations.
    noise = 0.02
    value, _ = BMP(noise=noise).exact_eig(torch.tensor([1e12]))
    z = torch.linspace(-9.0, 9.0, 10_001, dtype=torch.float64)
    density = torch.special.ndtr(z)
    edge = -float(torch.trapezoid(torch.special.xlogy(density, density), z))
    expected = 2.0 * noise * edge - math.log(noise * math.sqrt(2.0 * math.pi * math.e))
    assert value == pytest.approx(expected, abs=2e-4)


def test_a_single_measurement_tells_most_at_the_largest_concentration():
    task = BMP()
    grid = torch.logspace(-6, 3, 46).unsqueeze(1)
    values, _ = task.exact_eig_grid(grid, num_samples=1_024)
    assert (values.diff() > -1e-9).all()
    assert float(values[-1]) == pytest.approx(2.485, abs=2e-3)


def test_without_noise_the_response_is_a_function():
    task = BMP(noise=0.0)
    theta = torch.tensor([[0.5, 0.8]]).expand(3, -1)
    x = task.simulator(theta, torch.tensor([[4.0]]).expand(3, -1))
    torch.testing.assert_close(x, torch.full((3, 1), 0.4))
    assert not task.has_log_likelihood and not task.has_exact_eig
    with pytest.raises(NotImplementedError, match="No likelihood is known"):
        task.log_likelihood(x, theta, torch.ones(3, 1))
    for function in (task.exact_eig, task.exact_eig_grid):
        with pytest.raises(NotImplementedError, match="No exact information gain"):
            function(torch.ones(1, 1))


@pytest.mark.parametrize("noise", [-0.1, math.nan, math.inf])
def test_noise_must_be_a_standard_deviation(noise):
    with pytest.raises(ValueError, match=f"noise={noise} must be"):
        BMP(noise=noise)
