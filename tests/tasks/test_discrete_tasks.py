"""Tasks of yes or no and of counts, against other ways to the same numbers."""

import math

import pytest
import torch
from scipy.integrate import quad, solve_ivp
from scipy.stats import binom, halfnorm, truncnorm

from sbi_boed_plugin.tasks import (
    DeathProcess,
    HyperbolicDiscounting,
    PreyPopulation,
    Psychometric,
)

TASKS = [DeathProcess(), HyperbolicDiscounting(), PreyPopulation(), Psychometric()]


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_probabilities_sum_to_one_also_at_the_ends(task):
    theta = task.prior.sample((200,))
    middle = 0.5 * (task.design_low + task.design_high)
    x = torch.arange(task.num_values).float().unsqueeze(1)
    for design in (task.design_low, middle, task.design_high):
        log_prob = task.log_likelihood(x[:, None], theta, design)
        total = log_prob.logsumexp(dim=0)
        torch.testing.assert_close(total, torch.zeros(200), atol=1e-4, rtol=0.0)
    drawn = task.simulator(theta, middle.expand(200, -1))
    assert (drawn < task.num_values).all()
    assert task.is_dequantised or (drawn == drawn.round()).all()


@pytest.mark.parametrize("task", TASKS, ids=repr)
def test_data_are_drawn_by_their_probabilities(task):
    design = (0.7 * task.design_low + 0.3 * task.design_high).expand(20_000, -1)
    theta = task.true_parameters.expand(20_000, -1)
    x = task.simulator(theta, design).floor()
    values = torch.arange(task.num_values).float().unsqueeze(1)
    expected = task.log_likelihood(values, theta[0], design[0]).exp()
    mean = float((expected * values[:, 0]).sum())
    variance = float((expected * (values[:, 0] - mean).square()).sum())
    assert abs(float(x.mean()) - mean) < 4.0 * math.sqrt(variance / 20_000)
    # Of a variance estimated from so many draws, 3 % are more than four errors.
    assert float(x.var()) == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(
    ("attack", "handling", "number"),
    [(0.25, 0.25, 50), (3.0, 2.0, 300), (0.001, 0.01, 10), (20.0, 0.01, 3)],
)
def test_prey_that_are_left_solve_the_equation(attack, handling, number):
    def decrease(time, prey):
        return -attack * prey**2 / (1.0 + attack * handling * prey**2)

    left = solve_ivp(decrease, (0, 24), [number], rtol=1e-9, atol=1e-12).y[0, -1]
    theta, design = torch.tensor([attack, handling]).double(), torch.tensor([number])
    x = torch.arange(number + 1).double().unsqueeze(1)
    found = PreyPopulation().log_likelihood(x, theta, design.double()).exp()
    expected = binom(number, 1.0 - left / number).pmf(x[:, 0].numpy())
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_the_priors_of_positive_parameters_are_truncated_normals():
    prior = DeathProcess().prior
    exact = truncnorm(-1.0, torch.inf, 1.0, 1.0)
    draws = prior.sample((40_000,))
    assert float(draws.mean()) == pytest.approx(exact.mean(), abs=0.02)
    points = torch.tensor([[-0.1], [0.0], [0.5], [3.0]])
    expected = torch.tensor(exact.logpdf(points[:, 0].numpy())).float()
    torch.testing.assert_close(prior.log_prob(points), expected)
    variability = HyperbolicDiscounting().prior.sample((40_000,))[:, 1]
    assert float(variability.std()) == pytest.approx(halfnorm(scale=2).std(), rel=0.02)


def test_the_information_of_a_count_agrees_with_quadrature():
    task, design = DeathProcess(), torch.tensor([1.3])
    prior = truncnorm(-1.0, torch.inf, 1.0, 1.0)

    def chances(theta):
        return binom(50, 1.0 - math.exp(-theta * 1.3)).pmf(range(51))

    marginal = [
        quad(lambda t, k=k: prior.pdf(t) * chances(t)[k], 0, 8)[0] for k in (0, 25)
    ]
    found = task.log_likelihood(
        torch.tensor([[[0.0]], [[25.0]]]), task.prior.sample((200_000,)), design
    )
    torch.testing.assert_close(
        found.exp().mean(dim=1), torch.tensor(marginal).float(), rtol=0.03, atol=1e-4
    )


@pytest.mark.parametrize("x", [2.0, -1.0, 0.5])
def test_what_cannot_be_measured_has_no_probability(x):
    theta, design = torch.zeros(2), torch.zeros(1)
    found = Psychometric().log_likelihood(torch.tensor([x]), theta, design)
    assert float(found) == -math.inf
