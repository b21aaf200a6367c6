"""What training reaches and reports, against known answers."""

import math

import pytest
import torch
from torch.distributions import Normal

from sbi_boed_plugin import CategoricalPolicy, TruncatedNormalPolicy
from sbi_boed_plugin.adaptive.objective import (
    contrastive_terms,
    log_posterior,
    training_terms,
)
from sbi_boed_plugin.adaptive.posterior import HistoryLikelihood
from sbi_boed_plugin.adaptive.rollout import LearnedExperiment, Rollouts, roll_out
from sbi_boed_plugin.adaptive.scoring import policy_doubts, posterior_doubts
from sbi_boed_plugin.adaptive.training import _score_loss
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.objectives._eig_estimate import EIGEstimate
from sbi_boed_plugin.search.target import Target
from sbi_boed_plugin.search.utility import Utility
from tests.adaptive.models import (
    FLAT,
    NORMAL,
    IsAbove,
    Scaled,
    make_training,
    mean_of_last,
    scaled_simulator,
)

WIDE = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 4.0))
# Two measurements at designs of 4 of a parameter ~ N(0, 1).
MOST = 0.5 * math.log(1.0 + 2 * 16.0)


def train(training, experiment, num_steps, batch_size=64):
    for step in range(num_steps):
        training.take_step(experiment, batch_size, step / num_steps)
    return training


@pytest.mark.slow
def test_questions_follow_the_answers_where_that_is_worth_it():
    """Three yes/no questions tell log 8 in turn, and log 4 at once: bisection."""
    values = {}
    for adapts in (True, False):
        torch.manual_seed(0)
        training = make_training(FLAT, 3, adapts=adapts)
        train(training, LearnedExperiment(IsAbove()), 1_000)
        values[adapts] = mean_of_last(training, "eig")
    assert values[False] < math.log(4.0) < 1.7 < values[True] < math.log(8.0)


@pytest.mark.parametrize(
    "way",
    [
        "model",
        *(
            pytest.param(way, marks=pytest.mark.slow)
            for way in ("ahead", "simulator", "list", "target")
        ),
    ],
)
def test_every_gradient_finds_the_largest_designs(way):
    torch.manual_seed(0)
    experiment = LearnedExperiment(Scaled())
    space, target, num_steps = WIDE, None, 300
    if way == "simulator":
        experiment, num_steps = scaled_simulator, 600
    elif way == "list":
        space = CategoricalPolicy(torch.tensor([[0.5], [4.0], [1.0]]))
    elif way == "target":
        target = Target([0], NORMAL)
    ahead = way == "ahead"
    training = make_training(NORMAL, 2, space, target=target, looks_ahead=ahead)
    train(training, experiment, num_steps)
    assert float(training.policy.propose()) > 3.5
    # An estimate of a lower bound, by batches of 64.
    value = mean_of_last(training, "eig")
    assert 0.6 * MOST < value < MOST + 0.3


class FailsAbove(LikelihoodWithFailures):
    """Experiments fail with a probability that is a quarter of the design."""

    def log_success(self, condition):
        return torch.log1p(-0.249 * condition[..., 1].clamp(0.0, 4.0))


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [Scaled(), IsAbove(1.0)])
def test_designs_that_fail_are_avoided(likelihood):
    """The chance of failing has a gradient, whether or not data have one."""
    torch.manual_seed(0)
    training = make_training(NORMAL, 1, WIDE)
    train(training, LearnedExperiment(FailsAbove(likelihood)), 400)
    design = torch.linspace(0.0, 4.0, 401)
    if isinstance(likelihood, Scaled):
        information = 0.5 * (1.0 + design.square()).log()
    else:
        chance = (torch.randn(20_000, 1) - design).sigmoid()
        entropy = torch.special.entr(chance) + torch.special.entr(1.0 - chance)
        mean = chance.mean(dim=0)
        information = torch.special.entr(mean) + torch.special.entr(1.0 - mean)
        information = information - entropy.mean(dim=0)
    value = information * (1.0 - 0.249 * design)
    found = float(training.policy.propose())
    at_found = value[(design - found).abs().argmin()]
    assert float(at_found) > 0.93 * float(value.max())


@pytest.mark.slow
def test_what_costs_more_than_it_tells_is_not_bought():
    torch.manual_seed(0)
    utility = Utility(lambda design: 0.1 * design[:, 0].square(), "eig_minus_cost")
    training = make_training(NORMAL, 1, WIDE, utility=utility)
    train(training, LearnedExperiment(Scaled()), 300)
    # log(1 + d²) / 2 - d² / 10 is largest at d = 2.
    assert float(training.policy.propose()) == pytest.approx(2.0, abs=0.4)
    assert mean_of_last(training, "cost") == pytest.approx(0.4, abs=0.15)


def exact_rollouts(num):
    torch.manual_seed(1)
    training = make_training(NORMAL, 2, WIDE)
    experiment = LearnedExperiment(Scaled())
    theta = torch.randn(num, 1)
    with torch.no_grad():
        rollouts = roll_out(training.policy, theta, experiment)
    return training, experiment, rollouts


def exact_information(rollouts):
    """Return the expected gain of designs that do not depend on data."""
    return 0.5 * (1.0 + rollouts.design.square().sum(dim=0)).log().mean()


def test_bounds_enclose_the_information_with_any_proposal():
    training, experiment, rollouts = exact_rollouts(2_000)
    networks = experiment, training.posterior, NORMAL
    lower, upper, _, _ = contrastive_terms(*networks, rollouts, 255)
    exact = float(exact_information(rollouts))
    errors = [float(terms.std()) / 2_000**0.5 for terms in (lower, upper)]
    assert float(lower.mean()) < exact + 3 * errors[0]
    assert float(upper.mean()) > exact - 3 * errors[1]
    # An untrained proposal covers the posterior well enough for 255 draws.
    assert float(lower.mean()) > exact - 0.3
    known = log_posterior(training.posterior, rollouts.theta, rollouts)[-1]
    known = known - NORMAL.log_prob(rollouts.theta)
    assert float(known.detach().mean()) < exact


def test_likelihoods_of_histories_are_sums_over_what_did_not_fail():
    _, experiment, rollouts = exact_rollouts(5)
    x = rollouts.x.clone()
    x[1, 2] = torch.nan
    rollouts = Rollouts(rollouts.theta, rollouts.design, x, rollouts.log_prob)
    theta = torch.randn(3, 5, 1)
    found = experiment.log_likelihoods(theta, rollouts)
    assert found.shape == (2, 3, 5)
    exact = Normal(theta[None] * rollouts.design[:, None], 1.0)
    exact = exact.log_prob(x.nan_to_num()[:, None])[..., 0]
    exact[1, :, 2] = 0.0
    torch.testing.assert_close(found, exact)


def test_that_data_did_not_fail_is_part_of_their_likelihood():
    likelihood = FailsAbove(Scaled())
    theta, design, x = torch.randn(4, 1), torch.full((1, 4, 1), 2.0), torch.randn(4, 1)
    rollouts = Rollouts(theta, design, x[None], torch.zeros(1, 4))
    exact = Normal(2.0 * theta, 1.0).log_prob(x)[:, 0] + math.log1p(-0.498)
    experiment = LearnedExperiment(likelihood)
    found = experiment.log_likelihoods(theta[None], rollouts)[0, 0]
    torch.testing.assert_close(found, exact)
    rows = torch.cat([design[0], x], dim=1)
    of_rows = HistoryLikelihood(likelihood, 1, 1).log_prob(rows[None], theta)[0]
    torch.testing.assert_close(of_rows, exact)
    drawn = experiment.log_drawn(rollouts)
    torch.testing.assert_close(drawn, torch.full((1, 4), math.log1p(-0.498)))
    failed = Rollouts(
        theta, design, torch.full((1, 4, 1), torch.nan), torch.zeros(1, 4)
    )
    torch.testing.assert_close(
        experiment.log_drawn(failed), torch.full((1, 4), math.log(0.498))
    )


def test_the_score_is_the_gradient_of_what_comes_later():
    """By brute force: all of four answers, whose probabilities are parameters."""
    logits = torch.tensor([[0.3, -0.2], [0.1, 0.5]], dtype=torch.double)
    logits.requires_grad_()
    reward = torch.tensor([[1.0, 3.0], [-2.0, 5.0]], dtype=torch.double)
    chances = logits.softmax(dim=1)
    exact = (chances[0, :, None] * chances[1] * reward).sum()
    torch.manual_seed(0)
    num = 200_000
    first, second = (torch.multinomial(p, num, True) for p in chances.detach())
    log_prob = chances.log()
    actions = torch.stack([log_prob[0, first], log_prob[1, second]])
    # Whatever the baseline is that knows the first answer, and what it cost.
    known = torch.stack([first.double(), torch.full((num,), 7.0).double()])
    costs = torch.stack([0.5 * first.double(), torch.zeros(num).double()])
    worth = reward[first, second] - costs.sum(dim=0)
    loss = _score_loss(worth, known, costs, actions)
    (found,) = torch.autograd.grad(-loss, logits, retain_graph=True)
    with_costs = exact - (chances[0] * torch.tensor([0.0, 0.5]).double()).sum()
    (expected,) = torch.autograd.grad(with_costs, logits)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.0)


def test_a_state_goes_on_where_it_was():
    torch.manual_seed(0)
    training, other = (make_training(NORMAL, 2, WIDE) for _ in range(2))
    experiment = LearnedExperiment(Scaled())
    train(training, experiment, 5)
    other.load_state_dict(training.state_dict())
    for one in (training, other):
        torch.manual_seed(1)
        one.take_step(experiment, 32, 0.5)
    assert training.policy.digest() == other.policy.digest()
    assert training.history == other.history and other.step == 6


def test_the_encoder_learns_with_the_posterior_alone():
    training = make_training(NORMAL, 2, WIDE)
    of_policy, of_posterior = (
        {id(p) for group in each.param_groups for p in group["params"]}
        for each in training.optimizers
    )
    assert training.posterior.encoder is training.policy.encoder
    assert not of_policy & of_posterior
    assert {id(p) for p in training.policy.encoder.parameters()} <= of_posterior
    kept = {id(p) for p in training.policy.space.parameters()}
    assert {
        id(p) for p in training.policy.parameters()
    } - of_posterior - kept == of_policy


def test_sampled_gradients_are_those_of_all_contrasts():
    training, experiment, _ = exact_rollouts(1)
    training.find_start(experiment, 100, math.inf)
    design = torch.full((2, 6, 1), 1.5).requires_grad_()
    theta = torch.randn(6, 1)
    x = (theta * design + torch.randn(2, 6, 1)).detach()
    rollouts = Rollouts(theta, design, x, torch.zeros(2, 6))
    gradients, values = [], []
    own = experiment.log_likelihoods(theta[None], rollouts)[:, 0]
    for seed in range(400):
        torch.manual_seed(seed)
        terms = training_terms(experiment, training.posterior, NORMAL, rollouts)
        gradients.append(torch.autograd.grad(terms.sum(), design)[0].flatten())
        values.append(terms.detach())
    exact = Normal(theta * design, 1.0).log_prob(x)[..., 0]
    torch.testing.assert_close(own.detach(), exact.detach())
    # The evidence of the data is known, and few contrasts nearly tell it.
    precision = 1.0 + design.square().sum(dim=0)[:, 0]
    mean = (design * x).sum(dim=0)[:, 0]
    log_evidence = -0.5 * (x.square().sum(dim=0)[:, 0] - mean.square() / precision)
    log_evidence = log_evidence - 0.5 * precision.log() - math.log(2.0 * math.pi)
    information = exact.sum(dim=0) - log_evidence
    (expected,) = torch.autograd.grad(information.sum(), design)
    found = torch.stack(gradients)
    error = found.std(dim=0) / 400**0.5
    # Means of 33 weights are off by a few hundredths.
    assert ((found.mean(dim=0) - expected.flatten()).abs() < 4 * error + 0.1).all()
    bias = torch.stack(values).mean(dim=0) - information.detach()
    assert (bias.abs() < 0.15).all()


@pytest.mark.parametrize("at_random", [None, (1.2, 0.1), (1.4, 0.1)])
def test_a_policy_that_is_worse_than_designs_at_random_is_told(at_random):
    """By more than three errors, both inside the model, whatever simulations say."""
    eig = EIGEstimate(0.9, 0.1, "lace", num_simulations=100)
    doubts = policy_doubts(eig, 1.0, at_random, 0.0)
    told = ["designs at random tell 1.40 nats" in doubt for doubt in doubts]
    assert told == ([True] if at_random == (1.4, 0.1) else [])
    # What the density of the prior lacks is in the values inside already.
    assert not policy_doubts(eig, 1.0, (1.1, 0.1), 0.0)
    assert "1.60 nats" in policy_doubts(eig, 1.0, (1.1, 0.1), 0.5)[-1]


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_posterior_that_is_off_is_told(shift):
    """Parameters that are higher than the posterior has ever seen, by a spread."""
    torch.manual_seed(0)
    training = make_training(NORMAL, 1, WIDE)
    experiment = LearnedExperiment(Scaled())
    training.find_start(experiment, 300, math.inf)
    with torch.no_grad():
        _, rollouts = training._at_random(experiment, 128)
    others = rollouts.design, rollouts.x, rollouts.log_prob
    moved = Rollouts(rollouts.theta + shift, *others)
    doubts = posterior_doubts(training, moved)
    assert len(doubts) == (shift > 0.0)
    assert not doubts or "posterior of histories is off" in doubts[0]


def test_what_designs_at_random_tell_is_known_from_the_start():
    torch.manual_seed(0)
    training = make_training(NORMAL, 2, WIDE)
    training.find_start(LearnedExperiment(Scaled()), 50, math.inf)
    design = torch.rand(2, 100_000) * 4.0
    exact = float(0.5 * (1.0 + design.square().sum(dim=0)).log().mean())
    # Of 128 sequences, whose terms have a standard deviation of about one.
    value, error = training.at_random
    assert value == pytest.approx(exact, abs=0.35) and 0.03 < error < 0.2
