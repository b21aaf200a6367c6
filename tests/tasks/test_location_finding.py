"""Hidden sources against the model as written, symmetries and nested Monte Carlo."""

import math

import pytest
import torch

from sbi_boed_plugin.tasks import LocationFinding


def test_signal_is_bounded_at_a_source_and_far_away():
    task = LocationFinding(num_sources=1)
    theta = torch.zeros(1, 2)
    at_source = task._mean(theta, torch.zeros(1, 2))
    assert float(at_source) == pytest.approx(math.log(0.1 + 1e4), rel=1e-6)
    far_away = task._mean(theta, torch.full((1, 2), 1e6))
    assert float(far_away) == pytest.approx(math.log(0.1), rel=1e-6)
    low, high = LocationFinding(num_sources=3)._mean_range(theta)
    assert low == pytest.approx(math.log(0.1))
    assert high == pytest.approx(math.log(0.1 + 3e4))


def test_exact_eig_depends_on_the_distance_alone():
    task = LocationFinding()
    angles = torch.arange(0.0, 6.0, 0.7)
    circle = 1.5 * torch.stack([angles.cos(), angles.sin()], dim=1)
    values, errors = task.exact_eig_grid(circle)
    assert errors.max() < 1e-3
    assert float(values.max() - values.min()) < 6.0 * float(errors.max())


def test_exact_eig_is_largest_at_the_origin():
    radius = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0])
    values, errors = LocationFinding().exact_eig_grid(
        torch.stack([radius, torch.zeros(6)], dim=1)
    )
    expected = torch.tensor([0.827, 0.820, 0.786, 0.562, 0.280, 0.112])
    # Three decimals are known.
    torch.testing.assert_close(values.float(), expected, rtol=0, atol=1.5e-3)
    assert (values.diff() < -3.0 * errors[1:]).all()
