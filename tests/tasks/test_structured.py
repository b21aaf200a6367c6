"""Images and traces: likelihoods by the models as written, and their information."""

import math

import pytest
import torch
from torch.distributions import Normal, Poisson

from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.tasks import Camera, Trace


def photons(theta, half_width):
    """Expected photons of each pixel, one after another."""
    edges = [half_width * (2.0 * j / 16.0 - 1.0) for j in range(17)]

    def share(position, j):
        below, above = ((edges[j + k] - position) / 0.2 for k in (0, 1))
        return 0.5 * (math.erf(above / 2**0.5) - math.erf(below / 2**0.5))

    area = (2.0 * half_width / 16.0) ** 2
    return torch.tensor(
        [
            30.0 * share(theta[0], j) * share(theta[1], k) + 10.0 * area
            for j in range(16)
            for k in range(16)
        ]
    )


def response(theta, frequency):
    """The solution of x' = rate (gain * drive - x) long after the start."""
    rate, gain = theta
    values = []
    for step in range(1, 101):
        phase = 2.0 * math.pi * frequency * step / 10.0
        factor = 1.0 / (1.0 + 2.0j * math.pi * frequency / rate)
        values.append(gain * (factor * complex(math.cos(phase), math.sin(phase))).imag)
    return torch.tensor(values)


@pytest.mark.parametrize("half_width", [0.3, 1.5])
def test_photons_are_those_of_the_model(half_width):
    task, theta = Camera(), torch.tensor([0.4, -0.2])
    expected = photons(theta.tolist(), half_width)
    design = torch.tensor([half_width])
    rows = 4_000
    x = task.simulator(theta.expand(rows, 2), design.expand(rows, 1)).flatten(1)
    error = (expected / rows).sqrt()
    assert ((x.mean(dim=0) - expected).abs() < 5.0 * error + 1e-3).all()
    found = task.log_likelihood(x[:20], theta, design)
    truth = Poisson(expected).log_prob(x[:20]).sum(dim=1)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("frequency", [0.02, 0.4])
def test_responses_are_those_of_the_system(frequency):
    task, theta = Trace(), torch.tensor([1.5, 0.8])
    expected = response(theta.tolist(), frequency)
    design = torch.tensor([frequency])
    x = task.simulator(theta.expand(4_000, 2), design.expand(4_000, 1))
    assert ((x.mean(dim=0) - expected).abs() < 5.0 * 0.3 / 4_000**0.5).all()
    found = task.log_likelihood(x[:20], theta, design)
    truth = Normal(expected, 0.3).log_prob(x[:20]).sum(dim=1)
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("task, design", [(Camera(), 0.4), (Trace(), 0.3)])
def test_information_lies_between_bounds_of_the_likelihood(task, design):
    """Where information is little, contrasts enclose it closely."""
    design = torch.tensor([design])
    value, error = task.exact_eig(design, num_samples=4_096)
    lower, upper = (
        estimate_eig(
            task.log_likelihood,
            task.simulator,
            prior=task.prior,
            design=design,
            bound=bound,
            num_samples=500,
            num_contrastive=1_000,
            seed=0,
        )
        for bound in ("pce", "snmc")
    )
    assert upper.value - lower.value < 0.2
    slack = 3.0 * math.hypot(error, lower.standard_error)
    assert lower.value - slack < value < upper.value + slack
