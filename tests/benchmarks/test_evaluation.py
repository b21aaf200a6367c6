"""Measures of finished experiments, against what is known exactly."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal

from benchmarks.evaluation import (
    lc2st_statistic,
    median_predictive_distance,
    total_information,
)

DESIGNS = torch.tensor([[0.5], [1.0], [1.5]])
NOISE = 0.5


def prior():
    return Independent(Normal(torch.zeros(1), 1.0), 1)


def log_likelihood(x, theta, design):
    return Normal(theta * design, NOISE).log_prob(x).sum(dim=-1)


def linear_sequences(num):
    theta = prior().sample((num,))
    x = theta.unsqueeze(1) * DESIGNS + NOISE * torch.randn(num, len(DESIGNS), 1)
    return theta, x


def exact_information():
    return 0.5 * math.log(1.0 + float(DESIGNS.square().sum()) / NOISE**2)


def exact_log_ratio(theta, x):
    """Log-likelihood minus log-evidence of one sequence."""
    a = DESIGNS[:, 0].double()
    covariance = torch.outer(a, a) + NOISE**2 * torch.eye(3, dtype=torch.double)
    evidence = torch.distributions.MultivariateNormal(a.new_zeros(3), covariance)
    own = log_likelihood(x, theta.expand(3, 1), DESIGNS).double().sum()
    return float(own - evidence.log_prob(x[:, 0].double()))


def test_both_estimates_converge_to_the_log_ratio_of_a_sequence():
    torch.manual_seed(0)
    theta, x = linear_sequences(3)
    for truth, data in zip(theta, x, strict=True):
        bounds = total_information(
            log_likelihood, prior(), truth, DESIGNS, data, num_contrastive=200_000
        )
        assert bounds == pytest.approx([exact_log_ratio(truth, data)] * 2, abs=0.02)


def test_their_means_enclose_the_exact_information():
    torch.manual_seed(0)
    theta, x = linear_sequences(500)
    bounds = torch.tensor(
        [
            total_information(
                log_likelihood, prior(), t, DESIGNS, d, num_contrastive=15, seed=i
            )
            for i, (t, d) in enumerate(zip(theta, x, strict=True))
        ]
    )
    # The mean of the exact log-ratios is the information; sequence by sequence, the
    # bounds differ from them by far less than these vary.
    exact = torch.tensor([exact_log_ratio(t, d) for t, d in zip(theta, x, strict=True)])
    sampling_error = float(exact.std()) / math.sqrt(len(exact))
    assert float(exact.mean()) == pytest.approx(
        exact_information(), abs=3.0 * sampling_error
    )
    bias = bounds - exact.unsqueeze(1)
    error = bias.std(dim=0) / math.sqrt(len(bias))
    assert bias[:, 0].mean() < -2.0 * error[0]
    assert bias[:, 1].mean() > 2.0 * error[1]


def test_the_lower_bound_has_its_cap():
    theta, designs = torch.tensor([1.0]), torch.full((50, 1), 100.0)
    x = 100.0 * theta.expand(50, 1)
    lower, upper = total_information(
        log_likelihood, prior(), theta, designs, x, num_contrastive=9
    )
    assert lower == pytest.approx(math.log(10.0))
    assert upper > 1e4


def test_chunks_change_nothing_nor_does_the_callers_random_state(monkeypatch):
    torch.manual_seed(0)
    theta, x = linear_sequences(1)
    arguments = (log_likelihood, prior(), theta[0], DESIGNS, x[0])
    before = torch.get_rng_state()
    at_once = total_information(*arguments, num_contrastive=40_000)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr("benchmarks.evaluation._MAX_ROWS", 3 * 1_000)
    in_parts = total_information(*arguments, num_contrastive=40_000)
    # Other draws, since those of a chunk are drawn together, but the same quantity.
    assert in_parts == pytest.approx(at_once, abs=0.05)
    with pytest.raises(ValueError, match="num_contrastive=0"):
        total_information(*arguments, num_contrastive=0)


def test_the_distance_is_that_of_all_experiments_together():
    simulator = lambda theta, design: theta + design
    designs, samples = torch.tensor([[0.0], [1.0]]), torch.full((7, 1), 3.0)
    x_o = torch.tensor([[0.0], [0.0]])
    distance = median_predictive_distance(simulator, samples, designs, x_o)
    assert distance == pytest.approx(5.0)


def test_failed_predictions_are_left_out_of_the_median():
    simulator = lambda theta, design: torch.where(theta > 0, theta, torch.nan)
    samples, design = torch.tensor([[-1.0], [2.0], [2.0]]), torch.zeros(1, 1)
    x_o = torch.zeros(1, 1)
    assert median_predictive_distance(simulator, samples, design, x_o) == 2.0
    assert math.isnan(median_predictive_distance(simulator, -samples[1:], design, x_o))


@pytest.mark.slow
def test_lc2st_tells_a_posterior_that_is_too_narrow():
    torch.manual_seed(0)
    theta = torch.randn(2_000, 1)
    x = theta + torch.randn(2_000, 1)
    x_o = torch.zeros(1, 1)

    def statistic(scale):
        draws = 0.5 * x + scale * torch.randn(2_000, 1)
        theta_o = scale * torch.randn(1_000, 1)
        return lc2st_statistic(theta, x, draws, theta_o=theta_o, x_o=x_o)

    exact, narrow = statistic(math.sqrt(0.5)), statistic(0.1)
    assert exact < 0.005 < 0.03 < narrow


def test_a_seed_that_drew_the_truth_does_not_draw_it_again():
    torch.manual_seed(0)
    draws: list[torch.Tensor] = []

    def remember(x, theta, design):
        draws.append(theta)
        return torch.zeros(len(theta))

    theta_0 = prior().sample(torch.Size((100,)))[0]
    total_information(remember, prior(), theta_0, DESIGNS, DESIGNS, num_contrastive=100)
    contrastive = torch.cat(draws[1:])
    assert not (contrastive == theta_0).all(dim=1).any()
