"""Searches in rounds, which learn from all simulations so far."""

import math
import re
import warnings

import pytest
import torch
from sbi.neural_nets.estimators import ConditionalDensityEstimator
from torch.distributions import Independent, Normal

from sbi_boed_plugin import DesignSearchConfig, TruncatedNormalPolicy, vectorize
from sbi_boed_plugin.estimators.ensemble import EnsembleEstimator
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.search import rounds
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.cross_fit import CrossFit
from sbi_boed_plugin.search.estimators import DesignEstimators
from sbi_boed_plugin.search.rounds import RoundsSearch
from tests.oracles import LinearGaussian
from tests.trainers.cases import make_trainer, message

# As few as make all parts of a search work.
SMALL = {"num_rounds": 2, "num_networks": 2, "num_eig_samples": 30}
FEW = {"max_num_simulations": 200, **SMALL}


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Results of few simulations raise doubts.
        yield


class Counted:
    """Counts the rows that a simulator gets."""

    def __init__(self, simulate=LinearGaussian.simulate):
        self.simulate, self.num_rows, self.designs = simulate, 0, []

    def __call__(self, theta, design):
        self.num_rows += len(theta)
        x = self.simulate(theta, design)
        self.designs.append(design)
        return x


@pytest.fixture(scope="module")
def found():
    """A trainer and what it found with 400 simulations."""
    torch.manual_seed(0)
    trainer, simulator = make_trainer(), Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = trainer.optimize_design(
            simulator, max_num_simulations=400, num_rounds=2
        )
    return trainer, result, simulator


def test_few_simulations_find_the_design_and_are_counted(found):
    _, result, simulator = found
    # The information of x = theta * design + noise rises up to the edge, 4.
    assert LinearGaussian.eig(result.design) > 0.9 * LinearGaussian.eig(torch.tensor(4))
    assert result.num_simulations == simulator.num_rows <= 400
    assert result.config.method == "rounds"
    assert result.stop_reason == "num_rounds"
    exact = float(LinearGaussian.eig(result.design))
    assert result.eig.value < exact + 4 * result.eig.standard_error
    assert result.eig.value > 0.0


def test_results_have_a_row_for_each_round_and_candidates(found):
    _, result, _ = found
    lengths = {len(values) for values in result.history.values()}
    assert lengths == {result.config.num_rounds}
    assert result.history["mode"][-1] == result.design.tolist()
    torch.testing.assert_close(result.candidates[0][0], result.design)
    values = [eig.value for _, eig in result.candidates]
    assert values == sorted(values, reverse=True)
    assert all(math.isfinite(eig.standard_error) for _, eig in result.candidates)
    # From one end of the space, 0 to 4, to the other.
    designs = torch.stack([design for design, _ in result.candidates])
    assert designs.min() < 0.2 and designs.max() > 3.8


def test_networks_are_ensembles_and_serve_what_comes_after(found):
    trainer, result, _ = found
    assert isinstance(result.likelihood_estimator, EnsembleEstimator)
    assert isinstance(result.posterior_estimator, EnsembleEstimator)
    posterior = trainer.build_posterior(design=torch.tensor([2.0]))
    torch.manual_seed(0)
    samples = posterior.sample(
        (2_000,), x=torch.tensor([[2.0]]), show_progress_bars=False
    )
    # Exactly it is Normal, with mean 0.8 and standard deviation 0.45.
    assert abs(samples.mean() - 0.8) < 0.3
    assert abs(samples.std() - 0.45) < 0.2


def test_states_restore_ensembles(found):
    trainer, result, _ = found
    other = make_trainer()
    other.search.load_state_dict(trainer.search.state_dict())
    assert isinstance(other.search.likelihood, EnsembleEstimator)
    x, condition = torch.randn(1, 5, 1), torch.rand(5, 2)
    torch.testing.assert_close(
        other.search.likelihood.log_prob(x, condition),
        result.likelihood_estimator.log_prob(x, condition),
    )


def test_all_simulations_are_kept_and_train_learns_from_them(found):
    trainer, result, _ = found
    theta, design, x = trainer.simulations
    num_kept = result.num_simulations - result.config.num_eig_samples
    # Those of the check are not.
    assert num_kept - 10 < len(theta) == len(design) == len(x) <= num_kept
    stored, data, _ = trainer.get_simulations()
    torch.testing.assert_close(stored, torch.cat([theta, design], dim=1))
    torch.testing.assert_close(data, x)


@pytest.mark.slow
def test_later_rounds_simulate_where_networks_think_best():
    torch.manual_seed(1)
    simulator = Counted()
    make_trainer().optimize_design(simulator, **FEW)
    # Neither the check nor the score.
    first, second = (rows for rows in simulator.designs if len(rows) > 30)
    assert second.mean() > first.mean()
    assert first.min() < 1.0 and first.max() > 3.0


def test_a_search_on_stored_simulations_needs_no_simulator():
    torch.manual_seed(2)
    theta, design = LinearGaussian.prior.sample((600,)), 0.1 + 3.9 * torch.rand(600, 1)
    trainer = make_trainer()
    x = LinearGaussian.simulate(theta, design)
    trainer.append_simulations(theta, x, design=design)
    with pytest.warns(UserWarning, match="No simulation has scored the design"):
        result = trainer.optimize_design(None, num_networks=2)
    exact = float(LinearGaussian.eig(result.design))
    assert exact > 0.9 * LinearGaussian.eig(torch.tensor(4.0))
    assert abs(result.eig.value - exact) < 0.4 + 4 * result.eig.standard_error
    assert result.num_simulations == 0 and len(result.history["eig"]) == 1
    assert trainer.simulations[0].shape == (600, 1)


@pytest.mark.slow
def test_a_search_starts_from_stored_simulations():
    torch.manual_seed(3)
    theta, design = LinearGaussian.prior.sample((300,)), 0.1 + 3.9 * torch.rand(300, 1)
    trainer, simulator = make_trainer(), Counted()
    trainer.append_simulations(
        theta, LinearGaussian.simulate(theta, design), design=design
    )
    result = trainer.optimize_design(simulator, **FEW)
    assert simulator.num_rows == result.num_simulations <= 200
    # One for what was stored, before any round.
    assert len(result.history["eig"]) == 3
    assert len(trainer.simulations[0]) > 300


def stored_rows(num=2_000, proposal=None):
    torch.manual_seed(4)
    theta = (proposal or LinearGaussian.prior).sample((num,))
    design = torch.ones(num, 1)
    x = LinearGaussian.simulate(theta, design)
    log_proposal = (proposal or LinearGaussian.prior).log_prob(theta)
    valid = torch.ones(num, dtype=torch.bool)
    return Batch(theta, x, design, valid, log_proposal=log_proposal)


def weights_of(stored):
    trainer = make_trainer()
    search = RoundsSearch(
        trainer.design_policy,
        LinearGaussian.prior,
        trainer.search.models,
        DesignSearchConfig(method="rounds"),
        stored=stored,
    )
    return search._weights(stored)


def test_parameters_of_another_proposal_are_weighted():
    torch.testing.assert_close(weights_of(stored_rows()), torch.ones(2_000))
    stored = stored_rows(proposal=Independent(Normal(torch.ones(1), torch.ones(1)), 1))
    weights = weights_of(stored)
    torch.testing.assert_close(weights.mean(), torch.tensor(1.0))
    mean = (weights * stored.theta[:, 0]).mean()
    assert abs(mean) < 0.15 and stored.theta.mean() > 0.9


@pytest.mark.slow
def test_after_an_observation_stored_simulations_count_by_the_belief():
    torch.manual_seed(5)
    trainer = make_trainer()
    trainer.optimize_design(LinearGaussian.simulate, **FEW)
    trainer.observe(torch.tensor([2.0]), torch.tensor([2.0]), num_particles=512)
    num_before = len(trainer.simulations[0])
    trainer.optimize_design(LinearGaussian.simulate, **FEW)
    theta = trainer.simulations[0]
    # The new ones are draws of the belief: about Normal with mean 0.8.
    assert theta[num_before:].mean() > 0.4 > theta[:num_before].mean()


def fails_often(theta, design):
    x = LinearGaussian.simulate(theta, design)
    return torch.where(theta > 0.5, torch.nan, x)


@pytest.mark.slow
def test_failed_simulations_cost_their_rows():
    torch.manual_seed(6)
    trainer, simulator = make_trainer(), Counted(fails_often)
    result = trainer.optimize_design(simulator, **FEW)
    assert result.num_simulations == simulator.num_rows <= 200
    assert result.num_invalid_simulations > 20
    condition = torch.tensor([[1.5, 2.0], [-1.0, 2.0]])
    likely, unlikely = result.likelihood_estimator.log_success(condition).flip(0)
    assert likely > unlikely + 1.0
    theta, _, x = trainer.simulations
    assert bool((x.isnan() == (theta > 0.5)).all())
    assert trainer.get_simulations()[1].isfinite().all()


@pytest.mark.slow
def test_an_interrupted_search_keeps_its_simulations_and_goes_on():
    torch.manual_seed(7)
    trainer, simulator = make_trainer(), Counted()
    limit = 100

    def interrupted(theta, design):
        if simulator.num_rows > limit - 50 and len(theta) > 3:
            raise KeyboardInterrupt
        return simulator(theta, design)

    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(interrupted, **FEW)
    num_kept = len(trainer.simulations[0])
    assert num_kept == simulator.num_rows - 7 > 50
    result = trainer.optimize_design(
        simulator, max_num_simulations=200, num_eig_samples=30, resume_training=True
    )
    assert result.num_simulations == simulator.num_rows <= 200
    assert len(trainer.simulations[0]) > num_kept


@pytest.mark.slow
def test_no_round_begins_that_would_take_too_long():
    torch.manual_seed(8)
    trainer, simulator = make_trainer(), Counted()
    result = trainer.optimize_design(simulator, **FEW, max_seconds=0.5)
    assert result.stop_reason == "max_seconds" and len(result.history["eig"]) == 1
    assert result.num_simulations == simulator.num_rows < 150
    assert result.candidates and result.doubts
    result = trainer.optimize_design(
        simulator, max_seconds=1e4, max_num_simulations=200, resume_training=True
    )
    assert result.stop_reason == "num_rounds"
    assert 150 < result.num_simulations == simulator.num_rows <= 200


@pytest.mark.parametrize(
    "spent, is_late", [(74.0, False), (76.0, True)], ids=["in time", "late"]
)
def test_a_round_has_time_at_the_pace_of_the_last(spent, is_late):
    """It takes 5 s of simulations and 10 s of learning, and 10 s are for the score."""
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    config = DesignSearchConfig(method="rounds", max_seconds=100.0)
    search = RoundsSearch(policy, LinearGaussian.prior, None, config)
    rows = torch.zeros(50, 1)
    search.start_from(Batch(rows, rows, rows, torch.ones(50).bool()), num_spent=50)
    search.pace, search.progress.seconds = (0.1, 0.1), spent
    assert search._is_late(num_new=50, num_after=100) == is_late
    # At most a fifth of the time is for the score.
    search.progress.seconds = spent - 10.0
    assert search._is_late(num_new=50, num_after=1_000) == is_late


@pytest.mark.parametrize(
    "settings, method",
    [
        ({}, "joint"),
        ({"max_num_simulations": 1_000}, "rounds"),
        ({"max_num_simulations": 30_001}, "joint"),
        ({"max_num_simulations": 1_000, "num_steps": 10}, "joint"),
        ({"max_num_simulations": 1_000, "gradient": "surrogate"}, "joint"),
        ({"max_num_simulations": 1_000, "objective": "gkl"}, "joint"),
        ({"max_num_simulations": 1_000, "objective": "info_nce"}, "joint"),
        ({"max_num_simulations": 1_000, "objective": "lace"}, "rounds"),
        ({"max_num_simulations": 1_000, "method": "joint"}, "joint"),
        ({"max_num_simulations": 1_000, "num_workers": 2}, "rounds"),
        ({"max_num_simulations": 1_000, "max_seconds": 60.0}, "rounds"),
    ],
)
def test_the_method_follows_from_what_is_asked(settings, method):
    config = DesignSearchConfig(**settings)
    assert config.with_method(has_simulator=True).method == method


def test_without_a_simulator_the_method_is_rounds():
    assert DesignSearchConfig().with_method(has_simulator=False).method == "rounds"


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"method": "rounds"}, ("max_num_simulations=None", "simulator=None")),
        (
            {"method": "rounds", "max_num_simulations": 500, "num_steps": 9},
            ("num_steps=9 with method='rounds'", "method='joint'"),
        ),
        (
            {"method": "rounds", "max_num_simulations": 500, "objective": "gkl"},
            ("objective='gkl' with method='rounds'",),
        ),
        ({"max_num_simulations": 60}, ("max_num_simulations=60 is too few", "86")),
        ({"max_num_simulations": 600, "num_networks": 1}, ("num_networks=1", "2")),
    ],
)
def test_wrong_settings_are_refused_before_any_simulation(settings, parts):
    simulator = Counted()
    with pytest.raises(ValueError, match=message(*parts)):
        make_trainer().optimize_design(simulator, **settings)
    assert simulator.num_rows == 0


def test_a_search_without_a_simulator_needs_stored_simulations():
    with pytest.raises(ValueError, match="append_simulations"):
        make_trainer().optimize_design(None)
    with pytest.raises(ValueError, match="leave out max_num_simulations"):
        make_trainer().optimize_design(None, max_num_simulations=100)
    with pytest.raises(RuntimeError, match="no simulations with designs"):
        _ = make_trainer().simulations


@pytest.mark.slow
def test_the_mean_of_likelihoods_knows_failures_as_each_does():
    torch.manual_seed(8)

    def fails_late(theta, design):
        x = LinearGaussian.simulate(theta, design)
        return torch.where(design > 2.0, torch.nan, x)

    trainer = make_trainer()
    trainer.optimize_design(fails_late, **FEW)
    fit = trainer.search.optimizer.fit
    condition = torch.tensor([[0.0, 0.5], [0.0, 1.5], [0.0, 3.5]])
    expected = fit.members[0].likelihood.log_success(condition)
    torch.testing.assert_close(fit.joined.likelihood.log_success(condition), expected)
    assert expected[0] > expected[2] + 1.0


class Exact(ConditionalDensityEstimator):
    """The likelihood, or the posterior of a Normal prior, of the linear model."""

    def __init__(self, of_theta=None):
        shapes = [torch.Size([1]), torch.Size([2])]
        super().__init__(torch.nn.Linear(1, 1), *shapes)
        self.of_theta = of_theta

    def normal(self, condition):
        first, design = condition[..., :1], condition[..., 1:]
        if self.of_theta is None:
            return Normal(first * design, 1.0)
        mean, std = self.of_theta
        precision = std**-2 + design**2
        return Normal((mean / std**2 + first * design) / precision, precision**-0.5)

    def log_prob(self, input, condition, **kwargs):
        return self.normal(condition).log_prob(input).squeeze(-1)

    def loss(self, input, condition, **kwargs):
        return -self.log_prob(input.unsqueeze(0), condition)[0]

    def sample(self, sample_shape, condition, **kwargs):
        return self.normal(condition).sample(sample_shape)


def exact_fit(mean, std, share_of_failures=0.0):
    """Networks that are exact, of rows from the prior, and what is known by now."""
    torch.manual_seed(9)
    theta, design = torch.randn(4_000, 1), 0.1 + 3.9 * torch.rand(4_000, 1)
    known = Independent(Normal(torch.full((1,), mean), torch.full((1,), std)), 1)
    valid = torch.rand(4_000) >= share_of_failures
    x = LinearGaussian.simulate(theta, design)
    x[~valid] = torch.nan
    weights = (known.log_prob(theta) - LinearGaussian.prior.log_prob(theta)).exp()
    likelihood = Exact()
    if share_of_failures:
        likelihood = LikelihoodWithFailures(likelihood)
        rows = torch.cat([theta, design], dim=1)
        likelihood.learn(rows, valid)
    networks = DesignEstimators(likelihood, Exact((mean, std)))
    rows = Batch(theta, x, design, valid)
    folds = torch.arange(4_000) % 2
    weights = weights / weights.mean()
    return CrossFit([networks, networks], networks, known, rows, folds, weights)


@pytest.mark.parametrize(
    "mean, std, failures", [(0.0, 1.0, 0.0), (0.8, 0.447, 0.0), (0.0, 1.0, 0.5)]
)
@pytest.mark.parametrize("objective", ["barber_agakov", "lace"])
def test_stored_simulations_tell_the_information(mean, std, failures, objective):
    fit = exact_fit(mean, std, failures)
    eig = fit.estimate_near(torch.tensor([3.0]), objective)
    exact = (1.0 - failures) * 0.5 * math.log(1.0 + (3.0 * std) ** 2)
    assert eig.value == pytest.approx(exact, abs=4 * eig.standard_error)
    assert eig.standard_error < 0.2
    # Exact networks agree.
    assert fit.better_objective() == "barber_agakov"


def test_what_is_known_leaves_few_stored_simulations():
    known = Independent(Normal(torch.full((1,), 30.0), torch.full((1,), 0.01)), 1)
    trainer = make_trainer()
    networks = trainer.design_policy, known, trainer.search.models
    config = DesignSearchConfig(method="rounds")
    search = RoundsSearch(*networks, config, stored=stored_rows())
    assert search._weights(stored_rows()).isfinite().all()
    assert not search._can_learn()


@pytest.mark.slow
def test_few_stored_simulations_wait_for_more():
    torch.manual_seed(10)
    trainer = make_trainer()
    theta, design = torch.randn(6, 1), torch.ones(6, 1)
    x = LinearGaussian.simulate(theta, design)
    trainer.append_simulations(theta, x, design=design)
    result = trainer.optimize_design(LinearGaussian.simulate, **FEW)
    assert len(result.history["eig"]) == 2
    with pytest.raises(ValueError, match="too few to learn from"):
        other = make_trainer()
        other.append_simulations(theta, x, design=design)
        other.optimize_design(None)


def test_resuming_with_too_small_a_budget_changes_nothing(found):
    trainer, result, _ = found
    num_stored = len(trainer.simulations[0])
    for budget in (result.num_simulations, 100):
        with pytest.raises(ValueError, match=f"max_num_simulations={budget} is too"):
            trainer.optimize_design(
                LinearGaussian.simulate,
                max_num_simulations=budget,
                num_eig_samples=5,
                resume_training=True,
            )
    assert len(trainer.simulations[0]) == num_stored


def test_states_keep_simulations(found):
    trainer, _, _ = found
    other = make_trainer()
    other.search.load_state_dict(trainer.search.state_dict())
    for one, another in zip(trainer.simulations, other.simulations, strict=True):
        torch.testing.assert_close(one, another)


@pytest.mark.slow
def test_joint_searches_go_on_from_ensembles():
    torch.manual_seed(11)
    trainer = make_trainer()
    trainer.optimize_design(LinearGaussian.simulate, **FEW)
    settings = {"num_steps": 3, "training_batch_size": 16, "num_eig_samples": 20}
    trainer.optimize_design(LinearGaussian.simulate, objective="gkl", **settings)
    other = make_trainer()
    other.search.load_state_dict(trainer.search.state_dict())
    base = other.search.networks.posterior.base
    assert isinstance(base, EnsembleEstimator)


def test_training_after_an_interrupted_search_knows_the_designs(monkeypatch):
    torch.manual_seed(12)
    trainer = make_trainer()

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(rounds, "cross_fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(LinearGaussian.simulate, **FEW)
    assert trainer.search.dim_design == 1
    assert trainer.search.trained_after == 0
    estimator = trainer.train(max_num_epochs=1)
    assert estimator.condition_shape == (2,)
    with pytest.raises(ValueError, match="design=None"):
        trainer.append_simulations(torch.randn(5, 1), torch.randn(5, 1))


@pytest.mark.slow
def test_each_call_of_a_vectorized_simulator_is_shown(capsys):
    simulator = vectorize(lambda t, d: LinearGaussian.simulate(t[None], d[None])[0])
    trainer = make_trainer(show_progress_bars=True)
    result = trainer.optimize_design(simulator, **FEW)
    shown = capsys.readouterr().err
    # Bars of both rounds, and none of the score.
    totals = [int(n) for n in re.findall(r"Simulating: 100%.* \d+/(\d+) ", shown)]
    assert sum(set(totals)) == result.num_simulations - SMALL["num_eig_samples"]


@pytest.mark.slow
def test_designs_that_are_as_good_are_a_doubt(monkeypatch):
    def differing(self, members, designs):
        slopes = torch.linspace(-1.0, 1.0, len(members)).unsqueeze(1)
        return 1.0 + slopes * (designs[:, 0] - 2.0)

    monkeypatch.setattr(RoundsSearch, "_values", differing)
    trainer = make_trainer()
    found = [trainer.optimize_design(LinearGaussian.simulate, **FEW)]
    found.append(trainer.optimize_design(None, num_rounds=None, num_networks=2))
    for result in found:
        assert any("as good as far as" in doubt for doubt in result.doubts)
