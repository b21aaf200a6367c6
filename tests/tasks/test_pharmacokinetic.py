"""A drug in the blood against its differential equation and nested Monte Carlo."""

import pytest
import torch

from sbi_boed_plugin.tasks import Pharmacokinetic
from sbi_boed_plugin.tasks.pharmacokinetic import concentration

TIMES = torch.linspace(0.0, 24.0, 49, dtype=torch.float64)


def as_written(theta: list[float], times: torch.Tensor) -> torch.Tensor:
    absorption, elimination, volume = theta
    decays = torch.exp(-elimination * times) - torch.exp(-absorption * times)
    return 400.0 / volume * absorption / (absorption - elimination) * decays


@pytest.mark.parametrize("theta", [[1.0, 0.1, 20.0], [0.2, 0.9, 7.0], [5.0, 0.0, 30.0]])
def test_concentration_is_the_formula_as_written(theta):
    written = as_written(theta, TIMES)
    ours = concentration(torch.tensor(theta, dtype=torch.float64), TIMES)
    torch.testing.assert_close(ours, written)
    single = concentration(torch.tensor(theta), TIMES.float())
    torch.testing.assert_close(single.double(), written, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rates_are_the_limit(dtype):
    limit = 400.0 / 20.0 * 0.3 * TIMES * torch.exp(-0.3 * TIMES)
    for difference in (0.0, 1e-12, -1e-12, 1e-7, -1e-7):
        theta = torch.tensor([0.3, 0.3 + difference, 20.0], dtype=dtype)
        ours = concentration(theta, TIMES.to(dtype))
        # 1e-7 away from the limit, 24 hours move the value by 1e-6 of it.
        torch.testing.assert_close(ours.double(), limit, rtol=3e-6, atol=0)


def test_equal_rates_have_finite_gradients():
    theta = torch.tensor([0.3, 0.3, 20.0], requires_grad=True)
    times = torch.tensor([0.0, 1.0, 24.0], requires_grad=True)
    gradients = torch.autograd.grad(concentration(theta, times).sum(), (theta, times))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_concentration_is_bounded_by_the_whole_dose():
    task = Pharmacokinetic(dim_design=5)
    theta, times = task.prior.sample((10_000,)), task.design_space.sample((10_000,))
    values = concentration(theta, times)
    assert (values >= 0).all() and (values <= 400.0 / theta[:, 2:]).all()


def test_nothing_is_learned_before_the_drug_is_absorbed():
    value, error = Pharmacokinetic().exact_eig(torch.tensor([0.0]))
    assert abs(value) < 1e-5 and error < 1e-5


def test_order_of_the_samples_does_not_matter():
    task = Pharmacokinetic(dim_design=2)
    ascending, error = task.exact_eig(torch.tensor([1.0, 18.0]), num_samples=1_024)
    descending, _ = task.exact_eig(torch.tensor([18.0, 1.0]), num_samples=1_024)
    assert ascending == pytest.approx(descending, abs=6.0 * error)


def test_best_time_of_one_sample():
    times = torch.linspace(0.0, 24.0, 97).unsqueeze(1)
    values, errors = Pharmacokinetic().exact_eig_grid(times)
    best = int(values.argmax())
    assert float(times[best]) == pytest.approx(17.0, abs=0.5)
    assert float(values[best]) == pytest.approx(1.2003, abs=5e-4)
    # A second, lower maximum while the drug is being absorbed.
    early = int(values[:16].argmax())
    assert float(times[early]) == pytest.approx(0.5, abs=0.25)
    assert float(values[early]) == pytest.approx(1.013, abs=2e-3)
    assert errors.max() < 5e-4
