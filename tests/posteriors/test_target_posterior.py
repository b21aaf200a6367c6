"""Posteriors of a part of the parameters."""

import pickle

import pytest
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from torch.distributions import MultivariateNormal

from sbi_boed_plugin import NLE_INCE, TargetPosterior

PRIOR = MultivariateNormal(torch.zeros(2), torch.eye(2))
X = torch.tensor([[0.5, -0.3]])


@pytest.fixture(scope="module")
def posterior():
    torch.manual_seed(0)
    theta = PRIOR.sample((500,))
    trainer = NPE(PRIOR, posterior_nn("mdn"), show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.3 * torch.randn(500, 2))
    trainer.train(max_num_epochs=2)
    return trainer.build_posterior()


@pytest.mark.parametrize(
    "target, of",
    [
        (1, lambda theta: theta[..., 1:]),
        ([1, 0], lambda theta: theta[..., [1, 0]]),
        (lambda theta: theta.prod(dim=1), lambda theta: theta.prod(-1, keepdim=True)),
    ],
    ids=["column", "columns", "function"],
)
def test_its_draws_are_targets_of_draws(posterior, target, of):
    own = TargetPosterior(posterior, target, PRIOR)
    pairs = []
    for one in (posterior, own):
        torch.manual_seed(1)
        draws = one.sample((7, 3), x=X, show_progress_bars=False)
        batch = one.sample_batched((5,), X.repeat(4, 1), show_progress_bars=False)
        pairs.append((draws, batch))
    for theta, targets in zip(*pairs, strict=True):
        assert torch.equal(of(theta), targets)


def test_it_has_the_data_of_the_posterior(posterior):
    own = TargetPosterior(posterior, 0, PRIOR).set_default_x(X)
    assert own.sample((3,), show_progress_bars=False).shape == (3, 1)
    again = pickle.loads(pickle.dumps(own))
    assert torch.equal(again.default_x, X)
    assert posterior.default_x is None  # Which is another's.


def test_other_kinds_are_refused(posterior):
    with pytest.raises(TypeError, match="posterior must be a NeuralPosterior"):
        TargetPosterior("posterior", 0, PRIOR)
    with pytest.raises(TypeError, match="prior must be a Distribution"):
        TargetPosterior(posterior, 0, None)


def test_it_has_no_density(posterior):
    own = TargetPosterior(posterior, 0, PRIOR)
    for method in (own.log_prob, own.potential, own.map):
        with pytest.raises(NotImplementedError, match="FittedPrior"):
            method(torch.zeros(1, 1), x=X)


@pytest.mark.parametrize(
    "target",
    [2, [0, 0], [], True, 1.0, None, lambda theta: theta[0], lambda theta: None],
)
def test_targets_that_are_none_are_refused(posterior, target):
    with pytest.raises(ValueError, match="target"):
        TargetPosterior(posterior, target, PRIOR)


def test_trainers_refuse_what_is_none_before_any_training(monkeypatch):
    trainer = NLE_INCE(PRIOR, "mdn", show_progress_bars=False)
    monkeypatch.setattr(trainer._proposal, "network", None)  # Must not be called.
    with pytest.raises(ValueError, match="target=5"):
        trainer.build_posterior(target=5, sample_with="hybrid")


def test_trainers_build_it():
    torch.manual_seed(0)
    theta = PRIOR.sample((300,))
    trainer = NLE_INCE(PRIOR, "mdn", show_progress_bars=False)
    trainer.append_simulations(theta, theta + 0.3 * torch.randn(300, 2))
    trainer.train(max_num_epochs=2)
    built = trainer.build_posterior(target=[1], sample_with="hybrid")
    assert isinstance(built, TargetPosterior)
    draws = built.sample((50,), x=X, show_progress_bars=False)
    assert draws.shape == (50, 1)
