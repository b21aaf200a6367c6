"""Quadrature and nested estimates of the information against closed forms."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_boed_plugin.tasks import get_task
from sbi_boed_plugin.tasks._gaussian import (
    GaussianTask,
    GridTask,
    gaussian_information,
    nodes_for,
)

# One design of each task, and of those that measure several times.
ONE_VALUE = {
    "bmp": ({}, [10.0]),
    "location_finding": ({}, [1.0, -0.5]),
    "pharmacokinetic": ({}, [12.0]),
    "ces": ({}, [10.0, 40.0, 30.0, 30.0, 20.0, 40.0]),
}
SEVERAL_VALUES = {
    "bmp": ({"dim_design": 3}, [0.5, 5.0, 1_000.0]),
    "pharmacokinetic": ({"dim_design": 3}, [0.5, 3.0, 15.0]),
}


def make(name: str) -> GridTask:
    task = get_task(name)
    assert isinstance(task, GridTask)
    return task


def affine_scale(mean: torch.Tensor) -> torch.Tensor:
    return 0.1 + 0.05 * mean.abs()


@pytest.mark.parametrize("scale", [0.05, 0.5, 5.0])
def test_information_about_a_gaussian_mean_is_the_closed_form(scale):
    nodes = nodes_for(-8.0, 8.0, lambda mean: torch.full_like(mean, scale))
    # Exact probabilities, not samples: what is left is the error of the quadratures.
    shares = torch.exp(-0.5 * nodes.square())
    shares = (shares / shares.sum()).unsqueeze(0)
    value = gaussian_information(shares, nodes, torch.full_like(nodes, scale))
    expected = 0.5 * math.log1p(1.0 / scale**2)
    assert float(value) == pytest.approx(expected, abs=1e-9)


def test_one_node_is_no_information_and_two_distant_ones_are_one_bit():
    nodes = nodes_for(0.0, 20.0, affine_scale)
    shares = torch.zeros(4, len(nodes), dtype=torch.float64)
    shares[0, 0] = shares[1, len(nodes) // 2] = shares[2, -1] = 1.0
    shares[3, 0] = shares[3, -1] = 0.5
    values = gaussian_information(shares, nodes, affine_scale(nodes))
    # The rule's spacing has a kink where the nodes end and the tails begin.
    assert values[:3].abs().max() < 1e-4
    assert float(values[3]) == pytest.approx(math.log(2.0), abs=1e-4)


class Repeated(GaussianTask):
    """Repeated measurements of one standard normal number, with noise of 0.3."""

    true_parameters = torch.zeros(1, 1)
    noise = 0.3

    def __init__(self, dim_x):
        self.dim_x = dim_x
        self.prior = Independent(Normal(torch.zeros(1), 1.0), 1)

    def _mean(self, theta, design):
        return theta.expand(-1, self.dim_x)


@pytest.mark.parametrize("dim_x", [2, 5])
def test_nested_information_is_the_closed_form(dim_x):
    task = Repeated(dim_x)
    value, error = task._nested_information(torch.zeros(dim_x), 16_384, seed=0)
    expected = 0.5 * math.log1p(dim_x / 0.3**2)
    assert error < 5e-3
    assert value == pytest.approx(expected, abs=4.0 * error)


def test_nested_and_quadrature_agree_for_one_measurement():
    for name in ("bmp", "location_finding", "pharmacokinetic"):
        task, design = make(name), torch.tensor(ONE_VALUE[name][1]).double()
        assert isinstance(task, GaussianTask)
        nested, error = task._nested_information(design, 4_096, seed=0)
        value, _ = task.exact_eig(design)
        assert nested == pytest.approx(value, abs=4.0 * error), name


@pytest.mark.slow
@pytest.mark.parametrize("name", SEVERAL_VALUES)
def test_default_accuracy_of_several_measurements(name):
    arguments, design = SEVERAL_VALUES[name]
    _, error = get_task(name, **arguments).exact_eig(torch.tensor(design))
    assert error <= 5e-3


@pytest.mark.parametrize("name", ONE_VALUE)
def test_the_standard_error_is_honest(name):
    arguments, design = ONE_VALUE[name]
    task = get_task(name, **arguments)
    reference, error = task.exact_eig(torch.tensor(design))
    assert error <= 1e-3
    runs = [
        task.exact_eig(torch.tensor(design), num_samples=256, seed=seed)
        for seed in range(1, 21)
    ]
    values, errors = torch.tensor(runs, dtype=torch.float64).T
    # Scores of Student's t with seven degrees of freedom have a spread of 1.2.
    scores = (values - reference) / errors
    assert float(scores.square().mean().sqrt()) < 2.0


@pytest.mark.parametrize("name", ONE_VALUE)
def test_grid_is_the_same_as_design_by_design_and_in_chunks(name, monkeypatch):
    task = make(name)
    designs = torch.stack([task.design_low, 0.5 * task.design_high, task.design_high])
    values, errors = task.exact_eig_grid(designs, num_samples=128)
    assert values.shape == errors.shape == (3,)
    assert values.dtype == torch.float64
    single = [task.exact_eig(design, num_samples=128) for design in designs]
    assert single == [
        pytest.approx(pair)
        for pair in zip(values.tolist(), errors.tolist(), strict=True)
    ]
    monkeypatch.setattr("sbi_boed_plugin.tasks._gaussian._MAX_MEANS", 128)
    chunked, _ = task.exact_eig_grid(designs, num_samples=128)
    torch.testing.assert_close(chunked, values)


NOISY = {"noisy_linear": ({"dim_design": 2}, [-3.0, 3.0])}


@pytest.mark.parametrize("cases", [ONE_VALUE, SEVERAL_VALUES, NOISY])
def test_seeded_and_without_touching_the_global_generator(cases):
    for name, (arguments, design) in cases.items():
        task, point = get_task(name, **arguments), torch.tensor(design)
        state = torch.get_rng_state()
        first = task.exact_eig(point, num_samples=128, seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        assert task.exact_eig(point, num_samples=128, seed=1) == first
        assert task.exact_eig(point, num_samples=128, seed=2) != first


@pytest.mark.parametrize("name", ONE_VALUE)
def test_exact_eig_refuses_what_it_cannot_use(name):
    task = make(name)
    design = task.design_high
    with pytest.raises(ValueError, match="num_samples=1 must be at least 2"):
        task.exact_eig(design, num_samples=1)
    with pytest.raises(ValueError, match=r"`designs` must be .* shape \(batch"):
        task.exact_eig_grid(design)
    with pytest.raises(ValueError, match="`design` must be finite"):
        task.exact_eig(design * torch.nan)
