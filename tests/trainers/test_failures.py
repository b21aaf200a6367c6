"""Simulations that fail, more often for some parameters than for others."""

import copy
import pickle
from functools import partial

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import estimate_eig
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.learned_model import LearnedModel
from tests.oracles import LinearGaussian
from tests.trainers.cases import on_box

pytestmark = pytest.mark.filterwarnings("ignore:.*contain NaN or infinite")

PRIOR = BoxUniform(torch.tensor([-2.0]), torch.tensor([2.0]))
DESIGN, X = torch.ones(1), torch.zeros(1)
GRID = torch.linspace(-2.0, 2.0, 2_001).unsqueeze(1)
SEARCH = {"training_batch_size": 128, "num_eig_samples": 50, "num_eig_contrastive": 31}


def log_success(theta):
    return torch.nn.functional.logsigmoid(-4.0 * theta[..., 0])


def simulator(theta, design):
    x = theta * design + torch.randn(len(theta), 1)
    fails = torch.rand(len(theta)) > log_success(theta).exp()
    return torch.where(fails.unsqueeze(1), torch.nan, x)


class Exact(torch.nn.Module):
    """The likelihood of finite outcomes, as an estimator."""

    input_shape, condition_shape = torch.Size([1]), torch.Size([2])

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    log_prob = staticmethod(LinearGaussian.log_prob)
    sample = staticmethod(LinearGaussian.sample)


make = partial(on_box, 0.9, 1.1, PRIOR)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    inference = make()
    inference.optimize_design(simulator, num_steps=60, **SEARCH)
    return inference


@pytest.fixture(scope="module")
def learned():
    """The exact likelihood of finite outcomes with a learned chance of success."""
    torch.manual_seed(0)
    theta = PRIOR.sample(torch.Size((20_000,)))
    valid = torch.rand(len(theta)) < log_success(theta).exp()
    return LikelihoodWithFailures(Exact()).learn(at_design(theta), valid)


def at_design(theta):
    """Conditions of the likelihood at design 1."""
    return torch.cat([theta, torch.ones_like(theta)], dim=1)


def exact_mean():
    log_weight = -0.5 * GRID[:, 0] ** 2 + log_success(GRID)
    return (torch.softmax(log_weight, 0) * GRID[:, 0]).sum().item()


def test_a_finite_outcome_speaks_for_parameters_that_rarely_fail(trained):
    inference = copy.deepcopy(trained)
    torch.manual_seed(0)
    inference.observe(DESIGN, X)
    # Without the chance of success -0.01. Over eight seeds of the search the belief
    # has a mean of -0.63 and a standard deviation of 0.03.
    assert exact_mean() == pytest.approx(-0.65, abs=0.01)
    assert inference.belief.particles.mean().item() == pytest.approx(-0.65, abs=0.15)
    # What chains, importance and rejection draw from is the same density.
    of_datum = inference.build_posterior(design=DESIGN).set_default_x(X)
    for posterior in (inference.build_posterior(), of_datum):
        weights = torch.softmax(posterior.potential(GRID), dim=0)
        assert (weights * GRID[:, 0]).sum().item() == pytest.approx(-0.65, abs=0.15)


def test_the_chance_of_success_is_learned(learned):
    condition = at_design(GRID)
    error = (learned.log_success(condition).exp() - log_success(GRID).exp()).abs()
    # 20,000 outcomes: a standard error of 0.03 for each hundredth of the parameters.
    assert error.max() < 0.05
    x, condition = torch.randn(3, 4, 1), condition[:4]
    expected = learned.net.log_prob(x, condition) + learned.log_success(condition)
    torch.testing.assert_close(learned.log_prob(x, condition), expected)


def test_few_outcomes_are_not_overinterpreted():
    """Ten failures by chance: about the same probability for all parameters."""
    torch.manual_seed(1)
    condition = torch.randn(200, 5)
    valid = torch.arange(200) >= 10
    likelihood = LikelihoodWithFailures(Exact())
    probability = likelihood.learn(condition, valid).log_success(condition).exp()
    assert probability.mean().item() == pytest.approx(0.95, abs=0.03)
    assert probability.std() < 0.05


def exact_information():
    """Information of finite outcomes at design 1, by quadrature, in nats."""
    x = torch.linspace(-8.0, 8.0, 801).unsqueeze(0)
    log_density = torch.distributions.Normal(GRID, 1.0).log_prob(x)
    log_density = log_density + log_success(GRID).unsqueeze(1)
    log_marginal = torch.logsumexp(log_density, 0) - torch.tensor(len(GRID)).log()
    terms = log_density.exp() * (log_density - log_marginal)
    return torch.trapezoid(terms.mean(dim=0), x[0]).item()


def of_model(likelihood, prior, designs, num_samples):
    model = LearnedModel(DesignEstimators(likelihood), prior, "info_nce")
    return model.information(designs, num_samples)


def test_the_information_counts_that_a_datum_is_finite(learned):
    settings = {"prior": PRIOR, "design": DESIGN, "num_samples": 1_500, "seed": 0}
    settings["num_contrastive"] = 511
    found = estimate_eig(learned, simulator, **settings)
    exact, margin = exact_information(), 4.0 * found.standard_error
    assert found.value == pytest.approx(exact, abs=margin)
    without = estimate_eig(learned.net, simulator, **settings)
    assert without.value < exact - margin
    # The model says the same without simulations.
    torch.manual_seed(0)
    value = of_model(learned, PRIOR, DESIGN.unsqueeze(0), num_samples=512)
    assert value.item() == pytest.approx(exact, abs=0.1)


def test_designs_that_always_fail_are_not_informative():
    torch.manual_seed(0)
    theta, design = torch.randn(2_000, 1), 3.0 * torch.rand(2_000, 1)
    condition = torch.cat([theta, design], dim=1)
    likelihood = LikelihoodWithFailures(Exact()).learn(condition, design[:, 0] < 1.5)
    designs = torch.tensor([[1.3], [2.5]])
    values = of_model(likelihood, LinearGaussian.prior, designs, num_samples=256)
    exact = LinearGaussian.eig(designs[:1]).item()
    assert values[0].item() == pytest.approx(exact, abs=0.1)
    assert values[1].abs() < 0.01  # With data that did not fail it would be 0.99.


def test_nothing_is_added_where_nothing_fails():
    torch.manual_seed(0)
    inference = make()
    result = inference.optimize_design(LinearGaussian.simulate, num_steps=3, **SEARCH)
    assert not isinstance(result.likelihood_estimator, LikelihoodWithFailures)


def test_what_is_known_of_failures_is_kept(trained):
    theta = torch.linspace(-1.5, 1.5, 63).unsqueeze(1)
    condition = at_design(theta)
    first, second = copy.deepcopy(trained), make()
    torch.manual_seed(0)
    first.observe(DESIGN, X, num_particles=64)
    second.search.load_state_dict(first.search.state_dict())
    with pytest.warns(UserWarning, match="pickled"):
        third = pickle.loads(pickle.dumps(first))
    expected = first._neural_net.log_success(condition)
    for other in (second, third):
        assert torch.equal(first.belief.log_prob(theta), other.belief.log_prob(theta))
        assert torch.equal(other._neural_net.log_success(condition), expected)
        (ours,), (others,) = first.observations, other.observations
        assert ours.predictive_p_value == others.predictive_p_value > 0.0
    # Later searches go on from there, those without a failure included.
    for simulate in (simulator, LinearGaussian.simulate):
        second.optimize_design(simulate, num_steps=2, **SEARCH)
        assert isinstance(second._neural_net, LikelihoodWithFailures)
        second.observe(DESIGN, X)
    # What trains further is the likelihood of finite outcomes alone.
    before, design = second._neural_net.log_success(condition), torch.ones(63, 1)
    x = LinearGaussian.simulate(theta, design)
    second.append_simulations(theta, x, design=design)
    second.train(training_batch_size=20, max_num_epochs=2)
    assert torch.equal(second._neural_net.log_success(condition), before)


def test_a_search_that_was_interrupted_learns_from_all_of_its_simulations():
    torch.manual_seed(0)
    inference, calls = make(), [0]

    def interrupted(theta, design):
        calls[0] += len(theta) == SEARCH["training_batch_size"]
        if calls[0] == 4:
            raise KeyboardInterrupt
        return simulator(theta, design)

    with pytest.raises(KeyboardInterrupt):
        inference.optimize_design(interrupted, **SEARCH, num_steps=6)
    # What is known by then serves until the search goes on.
    assert isinstance(inference._neural_net, LikelihoodWithFailures)
    inference.optimize_design(interrupted, resume_training=True, **SEARCH)
    rows = Batch.join(inference.search.optimizer.progress.stored)
    assert len(rows.theta) == 6 * SEARCH["training_batch_size"]
    expected = LikelihoodWithFailures(inference._neural_net.net)
    expected.learn(torch.cat([rows.theta, rows.design], dim=1), rows.valid)
    found = inference._neural_net.log_success(at_design(GRID))
    assert torch.equal(expected.log_success(at_design(GRID)), found)
