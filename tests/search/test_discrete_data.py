"""Answers of yes or no, choices with a time, and small counts."""

import math

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from torch.distributions import Bernoulli, MultivariateNormal, Poisson

from sbi_boed_plugin import (
    NLE_INCE,
    TruncatedNormalPolicy,
    categorical_likelihood_nn,
)
from tests.trainers.cases import message

PRIOR = MultivariateNormal(torch.tensor([8.0]), torch.tensor([[4.0]]))
GRID = torch.linspace(0.0, 16.0, 4_001)


def probability(theta, design):
    return 0.02 + 0.96 * torch.sigmoid((design - theta) / 0.5)


def answer(theta, design):
    return Bernoulli(probability(theta, design)).sample()


def exact(design):
    weights = torch.softmax(-0.5 * ((GRID - 8.0) / 2.0) ** 2, dim=0)
    p = probability(GRID, design)
    entropy = lambda q: -(q * q.log() + (1.0 - q) * (1.0 - q).log())  # noqa: E731
    return float(entropy((weights * p).sum()) - (weights * entropy(p)).sum())


def make(density_estimator):
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 16.0))
    return NLE_INCE(
        PRIOR, density_estimator, design_policy=policy, show_progress_bars=False
    )


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"method": "joint", "num_steps": 300}, marks=pytest.mark.slow),
        pytest.param(
            {"method": "multi_start", "num_steps": 300}, marks=pytest.mark.slow
        ),
        pytest.param({"max_num_simulations": 1_000}, marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings.get("method", "rounds"),
)
@pytest.mark.filterwarnings(
    "ignore:The networks", "ignore:Designs", "ignore:The policy"
)
def test_the_best_question_and_what_answers_tell(settings):
    trainer = make(categorical_likelihood_nn([0, 1]))
    result = trainer.optimize_design(answer, **settings)
    with pytest.raises(ValueError, match="none of the values"):
        trainer.observe(result.design, torch.tensor([0.5]))
    assert exact(result.design.item()) > 0.93 * exact(8.0)
    assert result.eig.value <= math.log(2.0)
    slack = 0.08 if "method" in settings else 0.2  # By fewer simulations.
    assert result.eig.value == pytest.approx(exact(result.design.item()), abs=slack)
    assert not any("values" in doubt for doubt in result.doubts)
    designs = torch.tensor([[8.0], [9.0], [10.0], [8.5]])
    x = torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    trainer.observe(designs, x)
    log_weights = -0.5 * ((GRID - 8.0) / 2.0) ** 2
    for design, said in zip(designs[:, 0], x[:, 0], strict=True):
        p = probability(GRID, design)
        log_weights = log_weights + (p if said else 1.0 - p).log()
    weights = log_weights.softmax(dim=0)
    mean = (weights * GRID).sum()
    sd = ((weights * (GRID - mean).square()).sum()).sqrt()
    particles = trainer.belief.particles
    assert abs(particles.mean() - mean) < 0.4 * sd
    assert particles.std().item() == pytest.approx(sd.item(), rel=0.3)


@pytest.mark.filterwarnings("ignore")
def test_a_density_of_answers_is_told():
    result = make("mdn").optimize_design(answer, num_steps=20, num_eig_samples=200)
    (told,) = (
        doubt for doubt in result.doubts if "takes only 2 values (0, 1)" in doubt
    )
    assert "categorical_likelihood_nn" in told


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["joint", "multi_start"])
def test_choices_with_a_time_have_mixed_likelihoods(method):
    def choose(theta, design):
        time = torch.exp(0.3 * torch.randn(len(theta), 1)) + 0.1 * design
        return torch.cat([time, answer(theta, design)], dim=1)

    build = likelihood_nn("mnle", log_transform_x=True)
    trainer = make(build)
    result = trainer.optimize_design(
        choose, method=method, num_steps=30, num_eig_samples=200
    )
    assert math.isfinite(result.eig.value)
    trainer.observe(result.design, torch.tensor([1.5, 1.0]))
    assert torch.isfinite(trainer.belief.particles).all()


@pytest.mark.filterwarnings("ignore")
def test_small_counts_of_several_values():
    def count(theta, design):
        rate = (theta * design / 16.0).clamp(0.1, 6.0).expand(-1, 2)
        return Poisson(rate).sample().clamp(max=9.0)

    build = categorical_likelihood_nn([list(range(10)), range(10)])
    result = make(build).optimize_design(count, num_steps=20, num_eig_samples=100)
    assert result.design.shape == (1,)


@pytest.mark.parametrize(
    "values", [[1], [0, 0], [0, math.nan], [[0, 1], [2]], torch.zeros(2, 2, 2)]
)
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="different finite numbers"):
        categorical_likelihood_nn(values)


@pytest.mark.parametrize(
    ("values", "said"),
    [([0, 2], "x=1 is none of values"), ([[0, 1]] * 3, "3 lists, but x has 1")],
)
def test_data_are_of_the_values(values, said):
    with pytest.raises(ValueError, match=message(said)):
        make(categorical_likelihood_nn(values)).optimize_design(answer, num_steps=1)
