"""The three losses of the generalized-KL family, against exact values."""

import math

import pytest
import torch
from torch.distributions import Normal

from sbi_boed_plugin.objectives.generalized_kl import (
    atomic_hybrid_loss,
    draw_by_ratio,
    hybrid_loss,
    partition_by_draws,
    partition_function,
    ratio_loss,
)

# theta ~ N(0, 1), x = theta + N(0, 1): the posterior is N(x / 2, 1 / 2).
NUM = 200_000


def simulate(num=NUM):
    """Parameters, data, and parameters that are independent of them."""
    torch.manual_seed(0)
    theta = torch.randn(num)
    return theta, theta + torch.randn(num), torch.randn(8, num)


def log_posterior(theta, x):
    return Normal(0.5 * x, math.sqrt(0.5)).log_prob(theta)


def log_ratio_to_prior(theta, x):
    return log_posterior(theta, x) - Normal(0.0, 1.0).log_prob(theta)


def test_each_loss_at_its_optimum_is_the_entropy_or_the_information():
    theta, x, others = simulate()
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * 0.5)
    # Standard deviations of the terms are near one: 0.01 is four standard errors.
    ratio, marginal = (log_ratio_to_prior(each, x) for each in (theta, others))
    information = 0.5 * math.log(2.0)
    loss = ratio_loss(ratio, marginal).mean()
    assert loss == pytest.approx(1.0 - information, abs=0.01)
    # A base that is too wide, with its exact correction.
    draws = 0.5 * x + torch.randn(8, NUM)
    base = Normal(0.5 * x, 1.0)
    log_ratio = log_posterior(theta, x) - base.log_prob(theta)
    partition = partition_function(log_posterior(draws, x) - base.log_prob(draws))
    loss = hybrid_loss(base.log_prob(theta), log_ratio, partition).mean()
    assert loss == pytest.approx(entropy + 1.0, abs=0.01)


@pytest.mark.parametrize("scale", [0.8, 1.25])
def test_losses_are_least_at_the_optimum(scale):
    theta, x, others = simulate(20_000)
    ratio, marginal = (log_ratio_to_prior(each, x) for each in (theta, others))
    best = ratio_loss(ratio, marginal).mean()
    assert ratio_loss(scale * ratio, scale * marginal).mean() > best
    shift = math.log(scale)
    assert ratio_loss(ratio + shift, marginal + shift).mean() > best


def test_few_draws_have_the_gradient_of_all_on_average():
    """For ratios slope * theta, with d Z / d slope = mean of theta e^(slope theta)."""
    torch.manual_seed(3)
    theta = 2.0 * torch.randn(40, 3)
    slope = torch.ones(3, requires_grad=True)
    exact_value = partition_function(slope * theta)
    (exact,) = torch.autograd.grad(exact_value.sum(), slope)
    gradients = []
    for _ in range(4_000):
        log_ratio = slope * theta
        chosen = draw_by_ratio(log_ratio, 3)
        assert chosen.shape == (3, 3)
        value = partition_by_draws(log_ratio, torch.gather(log_ratio, 0, chosen))
        torch.testing.assert_close(value, exact_value)
        gradients.append(torch.autograd.grad(value.sum(), slope)[0])
    found = torch.stack(gradients)
    error = found.std(dim=0) / len(found) ** 0.5
    assert ((found.mean(dim=0) - exact).abs() < 4.0 * error).all()
    assert (error < 0.02 * exact.abs()).all()


def test_huge_ratios_do_not_overflow():
    ratio = torch.tensor([[50.0, 1e4]], requires_grad=True)
    total = partition_function(ratio)
    assert total.isfinite().all() and total[1] > total[0]
    (gradient,) = torch.autograd.grad(total.sum(), ratio)
    assert gradient.isfinite().all() and (gradient > 0.0).all()
    small = torch.tensor([[39.0]])
    assert partition_function(small).item() == pytest.approx(math.exp(39.0), rel=1e-5)
    log_ratio = torch.tensor([[0.0, 500.0], [500.0, 400.0], [-500.0, -500.0]])
    chosen = draw_by_ratio(log_ratio, 4)
    assert (chosen[:, 0] == 1).all() and (chosen[:, 1] < 2).all()
    drawn = torch.gather(log_ratio, 0, chosen).requires_grad_()
    value = partition_by_draws(log_ratio, drawn)
    torch.testing.assert_close(value, partition_function(log_ratio))
    (gradient,) = torch.autograd.grad(value.sum(), drawn)
    assert value.isfinite().all() and gradient.isfinite().all()


def test_draws_outside_the_support_count_as_nothing():
    ratio = torch.tensor([[0.0], [1.0], [2.0]])
    inside = torch.tensor([[True], [False], [True]])
    expected = (1.0 + math.exp(2.0)) / 3.0
    assert partition_function(ratio, inside).item() == pytest.approx(expected)
    ratio.requires_grad_()
    total = partition_function(torch.where(inside, ratio, -torch.inf)).sum()
    assert total.item() == pytest.approx(expected)
    (gradient,) = torch.autograd.grad(total, ratio)
    assert gradient.isfinite().all() and gradient[1] == 0.0


def test_the_atomic_loss_ignores_what_belongs_to_the_data_alone():
    matrix = torch.randn(5, 7)
    shifted = matrix + torch.randn(7)
    torch.testing.assert_close(atomic_hybrid_loss(shifted), atomic_hybrid_loss(matrix))
    expected = -torch.log_softmax(matrix, dim=0)[0]
    torch.testing.assert_close(atomic_hybrid_loss(matrix), expected)
