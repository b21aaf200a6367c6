"""NRE_GKL: a normalized ratio, with designs if there are some, and bad input."""

import math
from contextlib import nullcontext

import pytest
import torch
from sbi.inference.trainers._contracts import LossArgsNRE
from torch.distributions import MultivariateNormal, Normal
from torch.utils.data import DataLoader, TensorDataset

from sbi_boed_plugin import NRE_GKL
from sbi_boed_plugin.trainers import nre_gkl
from tests.conftest import NoOpTracker

QUIET = {"show_progress_bars": False}
PRIOR = MultivariateNormal(torch.zeros(1), torch.eye(1))


def trained(num=5_000, design=None):
    """x = (design) theta + N(0, 1)."""
    torch.manual_seed(0)
    theta = PRIOR.sample((num,))
    scale = 1.0 if design is None else design(num)
    x = scale * theta + torch.randn(num, 1)
    trainer = NRE_GKL(PRIOR, "mlp", tracker=NoOpTracker(), **QUIET)
    kwargs = {} if design is None else {"design": scale}
    trainer.append_simulations(theta, x, **kwargs)
    trainer.train(learning_rate=2e-3, max_num_epochs=40, stop_after_epochs=10)
    return trainer


def exact_ratio(theta, x, scale=1.0):
    """log p(x | theta) - log p(x)."""
    likelihood = Normal(scale * theta, 1.0).log_prob(x)
    return (likelihood - Normal(0.0, math.sqrt(scale**2 + 1.0)).log_prob(x))[:, 0]


@pytest.fixture(scope="module")
def gaussian():
    return trained()


def test_the_ratio_is_normalized_for_every_observation(gaussian):
    ratio = gaussian._neural_net
    for x in (-1.0, 0.0, 1.5):
        # Two standard deviations of the posterior, which is N(x / 2, 1 / 2).
        axis = 0.5 * x + torch.linspace(-1.4, 1.4, 13).unsqueeze(1)
        data = torch.full_like(axis, x)
        with torch.no_grad():
            learned = ratio(axis, data)
        # A ratio up to a function of x would be off by a constant.
        assert (learned - exact_ratio(axis, data)).abs().mean() < 0.15


def test_the_loss_tells_the_information(gaussian):
    """At the optimum it is one minus the mutual information, half of log 2."""
    best = gaussian.summary["best_validation_loss"][0]
    # 500 validation rows with terms of standard deviation about 0.7.
    assert 1.0 - best == pytest.approx(0.5 * math.log(2.0), abs=0.12)


def test_validation_averages_over_many_atoms(gaussian, monkeypatch):
    """One contrast for each row would leave noise that early stopping fits."""
    theta, x, _ = gaussian.get_simulations()
    rows = gaussian.val_indices[:400]
    theta, x = theta[rows], x[rows]
    loader = DataLoader(
        TensorDataset(theta, x, torch.ones(len(rows))), batch_size=len(rows)
    )
    with torch.no_grad():
        pairs = gaussian._neural_net(
            theta.repeat(len(rows), 1), x.repeat_interleave(len(rows), 0)
        ).view(len(rows), len(rows))
    others = pairs.exp()[~torch.eye(len(rows), dtype=torch.bool)]
    exact = -pairs.diag().mean() + others.mean()

    def validate():
        return gaussian._validate_epoch(loader, LossArgsNRE(num_atoms=2))

    assert validate() == validate()
    # With other atoms each time, ten of them for a row; a single one is asked for.
    monkeypatch.setattr(nre_gkl, "isolated_rng", lambda seed: nullcontext())
    torch.manual_seed(1)
    values = torch.tensor([validate() for _ in range(30)])
    error_of_one = others.std() / len(rows) ** 0.5
    assert values.std() < 0.5 * error_of_one
    assert (values.mean() - exact).abs() < error_of_one


def test_designs_enter_the_ratio():
    trainer = trained(design=lambda num: 0.2 + 2.0 * torch.rand(num, 1))
    theta = torch.linspace(-1.0, 1.0, 9).unsqueeze(1)
    x_o = torch.tensor([[0.8]])
    for scale in (0.5, 2.0):
        design = torch.tensor([scale])
        posterior = trainer.build_posterior(design=design).set_default_x(x_o)
        learned = posterior.potential(theta) - PRIOR.log_prob(theta)
        exact = exact_ratio(theta, x_o.expand_as(theta), scale)
        assert (learned - exact).abs().mean() < 0.25
    both = trainer.build_posterior(design=torch.tensor([[0.5], [2.0]]))
    total = both.set_default_x(torch.tensor([[0.8], [0.8]])).potential(theta)
    alone = [
        trainer.build_posterior(design=torch.tensor([scale]))
        .set_default_x(x_o)
        .potential(theta)
        for scale in (0.5, 2.0)
    ]
    expected = alone[0] + alone[1] - PRIOR.log_prob(theta)
    torch.testing.assert_close(total, expected)
    with pytest.raises(ValueError, match="has 1 rows.*2 designs"):
        both.set_default_x(x_o).potential(theta)
    with pytest.raises(ValueError, match="design=None"):
        trainer.build_posterior()


def test_a_ratio_that_is_not_there_is_named():
    trainer = NRE_GKL(PRIOR, tracker=NoOpTracker(), **QUIET)
    with pytest.raises(RuntimeError, match="There is no ratio yet"):
        trainer.build_posterior(design=torch.tensor([1.0]))
