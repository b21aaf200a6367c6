"""optimize_policy of a trainer, and what can be done with its result."""

import math
import pickle
import warnings

import pytest
import torch

import sbi_boed_plugin
from sbi_boed_plugin import (
    NLE_INCE,
    Campaign,
    HistoryPolicy,
    PolicySearchConfig,
    TruncatedNormalPolicy,
    run_experiments,
)
from sbi_boed_plugin.experiment import NoOpTracker
from tests.adaptive.models import NORMAL, scaled_simulator

WIDE = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 4.0))
# The quicker way of training; the other is that of lists, targets and simulators.
SMALL = {
    "num_steps": 20,
    "training_batch_size": 16,
    "num_eig_samples": 100,
    "looks_ahead": False,
}
BUDGET = {"max_num_simulations": 2_000, "num_experiments": 2}
# A search that takes no time, whatever simulations are stored.
JOINT = {
    "method": "joint",
    "num_steps": 5,
    "training_batch_size": 32,
    "num_eig_samples": 64,
}

pytestmark = pytest.mark.filterwarnings("ignore:No information was found")


class Counting:
    """Counts its rows, and raises after some of them."""

    def __init__(self, most=math.inf):
        self.num_rows, self.most = 0, most

    def __call__(self, theta, design):
        self.num_rows += len(theta)
        if self.num_rows > self.most:
            raise KeyboardInterrupt
        return scaled_simulator(theta, design)


def make_trainer(policy=WIDE, **kwargs):
    quiet = {"tracker": NoOpTracker(), "show_progress_bars": False}
    return NLE_INCE(NORMAL, "mdn", design_policy=policy, **quiet, **kwargs)


@pytest.fixture(scope="module")
def trained():
    """A trainer whose policy learned for a while, and the result."""
    torch.manual_seed(0)
    trainer, simulator = make_trainer(), Counting()
    settings = {**SMALL, "num_steps": 200, "training_batch_size": 64}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = trainer.optimize_policy(
            simulator, 2, max_num_simulations=8_000, **settings
        )
    return trainer, result, simulator.num_rows


def test_the_result_is_what_the_simulator_says(trained):
    trainer, result, num_rows = trained
    assert result.num_simulations == num_rows <= 8_000
    assert result.num_invalid_simulations == 0
    exact = 0.5 * math.log(1.0 + 2 * 16.0)
    assert float(result.policy.propose()) > 3.0
    for bound in result.bounds.values():
        assert bound.value < exact + 3 * bound.standard_error
        assert bound.num_simulations == 200
    assert (
        result.eig.value == max(b.value for b in result.bounds.values()) > 0.6 * exact
    )
    assert f"at least {result.eig.value:.2f} nats" in str(result)
    assert len(result.history["eig"]) == 200 and result.stop_reason == "num_steps"
    # All but those that checked the simulator and scored the policy are kept.
    assert len(trainer.simulations[0]) >= num_rows - 200 - 20


def test_what_follows_data_trains_no_posterior(trained):
    trainer, _, _ = trained
    rows = trainer.search.simulations.rows()
    log_proposal = rows.log_proposal
    later = log_proposal.isinf()
    # The first round, at designs all over the space, and later ones of the policy.
    assert 0.3 < float((~later).float().mean()) < 0.5
    exact = NORMAL.log_prob(rows.theta)
    torch.testing.assert_close(log_proposal[~later], exact[~later])


def test_posteriors_of_histories_are_right_in_no_time(trained):
    trainer, _, _ = trained
    design, x = torch.tensor([[3.5], [3.9]]), torch.tensor([[3.0], [2.0]])
    precision = 1.0 + float(design.square().sum())
    mean = float((design * x).sum()) / precision
    torch.manual_seed(1)
    posterior = trainer.build_posterior(history=(design, x))
    draws = posterior.sample((4_000,), show_progress_bars=False)
    assert float(draws.mean()) == pytest.approx(mean, abs=0.15)
    assert float(draws.std()) == pytest.approx(precision**-0.5, rel=0.25)
    # One experiment less, and none that failed.
    failed = torch.tensor([[3.0], [torch.nan]])
    other = trainer.build_posterior(history=(design, failed))
    wider = other.sample((4_000,), show_progress_bars=False).std()
    assert float(wider) == pytest.approx((1.0 + 3.5**2) ** -0.5, rel=0.25)
    direct = trainer.build_posterior(history=(design, x), sample_with="direct")
    assert direct.sample((10,), show_progress_bars=False).shape == (10, 1)


@pytest.mark.parametrize(
    ("history", "others", "message"),
    [
        ((torch.zeros(3, 1), torch.zeros(3, 1)), {}, "posterior is of 1 to 2"),
        ((torch.zeros(0, 1), torch.zeros(0, 1)), {}, "posterior is of 1 to 2"),
        ((torch.zeros(1, 2), torch.zeros(1, 1)), {}, "a history has designs"),
        ((torch.zeros(1, 1),) * 2, {"sample_with": "mcmc"}, "goes with sample_with"),
        ((torch.zeros(1, 1),) * 2, {"design": torch.zeros(1)}, "without .*design"),
    ],
)
def test_posteriors_of_other_histories_are_refused(trained, history, others, message):
    with pytest.raises(ValueError, match=message):
        trained[0].build_posterior(history=history, **others)


@pytest.mark.slow
def test_a_policy_needs_no_simulator_where_there_are_simulations():
    torch.manual_seed(0)
    trainer = make_trainer()
    theta, design = NORMAL.sample((500,)), WIDE.spread(500)
    trainer.append_simulations(theta, scaled_simulator(theta, design), design=design)
    with pytest.warns(UserWarning, match="No simulation has scored the policy"):
        result = trainer.optimize_policy(None, 2, **SMALL)
    assert result.num_simulations == result.eig.num_simulations == 0
    assert "inside the learned model" in str(result)


@pytest.mark.slow
def test_an_interrupted_training_goes_on():
    torch.manual_seed(0)
    trainer, simulator = make_trainer(), Counting(most=1_200)
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_policy(simulator, **BUDGET, **SMALL)
    taken = trainer._policy_search.training.step
    assert 0 < taken < 20
    again = pickle.loads(pickle.dumps(trainer))
    for each in (trainer, again):
        counting = Counting()
        result = each.optimize_policy(counting, **BUDGET, **SMALL, resume_training=True)
        assert len(result.history["eig"]) == 20
        assert result.num_simulations <= 2_000
    with pytest.raises(RuntimeError, match="no training of a policy to resume"):
        make_trainer().optimize_policy(simulator, **BUDGET, resume_training=True)


@pytest.mark.slow
def test_a_killed_process_goes_on_from_its_checkpoint(tmp_path):
    path = tmp_path / "policy.pt"
    saving = {**SMALL, "checkpoint": path, "checkpoint_seconds": 0.0}
    torch.manual_seed(0)
    with pytest.raises(KeyboardInterrupt):
        make_trainer().optimize_policy(Counting(most=1_200), **BUDGET, **saving)
    # Another trainer, as in a new process.
    trainer, simulator = make_trainer(), Counting()
    result = trainer.optimize_policy(simulator, **BUDGET, **saving)
    assert len(result.history["eig"]) == 20
    # The simulations of the first rounds were not run again, and count.
    assert simulator.num_rows + 600 < result.num_simulations <= 2_000
    assert len(trainer.simulations[0]) > simulator.num_rows
    with pytest.raises(ValueError, match="of other experiments: settings was"):
        make_trainer().optimize_policy(
            simulator, **BUDGET, **{**saving, "learning_rate": 0.1}
        )


def test_time_ends_a_training():
    torch.manual_seed(0)
    settings = {**SMALL, "num_steps": 10**6, "max_seconds": 6.0}
    result = make_trainer().optimize_policy(scaled_simulator, **BUDGET, **settings)
    assert result.stop_reason == "max_seconds"
    assert 0 < len(result.history["eig"]) < 10**6


def test_simulators_alone_train_a_policy_within_the_budget():
    torch.manual_seed(0)
    simulator, trainer = Counting(), make_trainer()
    settings = {"training_batch_size": 16, "num_eig_samples": 100}
    result = trainer.optimize_policy(
        simulator, **BUDGET, **settings, method="simulator"
    )
    assert result.num_simulations == simulator.num_rows <= 2_000
    assert result.likelihood_estimator is None and set(result.bounds) == {
        "barber_agakov"
    }
    design, x = torch.ones(1, 1), torch.ones(1, 1)
    with pytest.raises(RuntimeError, match="use sample_with='direct'"):
        trainer.build_posterior(history=(design, x))


@pytest.mark.slow
def test_what_is_set_aside_scores_the_policy():
    def raises(theta, design):
        if (theta > 1.5).any():
            raise ValueError("too large")
        return scaled_simulator(theta, design)

    torch.manual_seed(0)
    trainer = make_trainer()
    settings = {**SMALL, "num_experiments": 2, "max_num_simulations": 1_500}
    with pytest.warns(UserWarning, match="too large"):
        result = trainer.optimize_policy(raises, **settings)
    # Calls that are repeated after an error cost training, and not the score.
    assert result.eig.num_simulations > 20
    assert result.num_simulations <= 1_500
    with pytest.raises(ValueError, match="there have been .* score the policy"):
        trainer.optimize_policy(raises, **settings, resume_training=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_experiments": 3}, "num_experiments=3 with resume_training=True"),
        ({"learning_rate": 0.1}, "learning_rate=0.1 with resume_training=True"),
    ],
)
def test_a_training_goes_on_with_its_settings(changed, message):
    torch.manual_seed(0)
    trainer = make_trainer()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_policy(Counting(most=1_200), **BUDGET, **SMALL)
    settings = {**BUDGET, **SMALL, **changed}
    with pytest.raises(ValueError, match=message):
        trainer.optimize_policy(Counting(), **settings, resume_training=True)
    trainer.observe(torch.tensor([2.0]), torch.tensor([1.0]))
    with pytest.raises(RuntimeError, match="observations since the training"):
        trainer.optimize_policy(Counting(), **BUDGET, **SMALL, resume_training=True)


def test_rounds_that_time_leaves_out_are_told():
    torch.manual_seed(0)
    settings = {**SMALL, "num_steps": 10**6, "max_seconds": 1.0}
    with pytest.warns(UserWarning, match="of 3 rounds of simulations"):
        make_trainer().optimize_policy(scaled_simulator, **BUDGET, **settings)


@pytest.mark.slow
def test_failures_cost_their_rows_and_are_no_data():
    def fails(theta, design):
        x = scaled_simulator(theta, design)
        return x.masked_fill(design > 3.0, torch.nan)

    torch.manual_seed(0)
    result = make_trainer().optimize_policy(fails, **BUDGET, **SMALL)
    assert 0 < result.num_invalid_simulations < result.num_simulations
    assert math.isfinite(result.eig.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experiments": 0}, "num_experiments=0 must be at least 1"),
        ({"method": "magic"}, "method='magic' is unknown"),
        ({"maximize": "eig_per_cost"}, "maximize='eig_per_cost': .*subtracted"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be positive"),
        ({"training_batch_size": 1}, "training_batch_size=1 must be at least 2"),
        ({"max_seconds": -1.0}, "max_seconds=-1.0 must be positive"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PolicySearchConfig(**{"num_experiments": 2, **settings})


@pytest.mark.parametrize(
    ("trainer", "settings", "error", "message"),
    [
        (make_trainer(), {"max_num_simulations": 300}, ValueError, "is too few: 200"),
        (make_trainer(), {"simulator": 3}, TypeError, "simulator must be a function"),
        (make_trainer(), {"simulator": None}, ValueError, "leave out max_num"),
        (make_trainer(None), {}, ValueError, "design_policy=None"),
        (make_trainer(), {"target": [3]}, ValueError, "target"),
        (make_trainer(), {"maximize": "eig_minus_cost"}, ValueError, "needs cost"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_any_work(
    trainer, settings, error, message
):
    simulator = Counting()
    given = {"simulator": simulator, **BUDGET, **SMALL, **settings}
    with pytest.raises(error, match=message):
        trainer.optimize_policy(**given)
    assert simulator.num_rows == 0


def test_campaigns_take_policies_and_search_where_they_end(trained, tmp_path):
    trainer, result, _ = trained
    state = trainer.search.state_dict()
    search = {**JOINT, "seed": 3}

    def opened():
        other = make_trainer()
        other.search.load_state_dict(state)
        return Campaign(
            tmp_path, other, scaled_simulator, policy=result.policy, **search
        )

    with opened() as campaign:
        first = campaign.propose()
        assert torch.equal(first, result.policy.propose())
        record = campaign.record(torch.tensor([2.0]))
        assert record.eig is None and record.num_simulations == 0
        assert "nats expected" not in str(campaign.status())
    with opened() as campaign:
        second = campaign.propose()
        history = first[None], torch.tensor([[2.0]])
        assert torch.equal(second, result.policy.propose(*history))
        assert campaign.status().eig is None
        campaign.record(2.0 * second / first)
        with pytest.warns(UserWarning, match="it is for 2 experiments. A search"):
            third = campaign.propose()
        assert WIDE.support.check(third)
        assert campaign.status().eig is not None


def test_data_that_nothing_predicts_end_the_policy(trained):
    trainer, result, _ = trained
    other = make_trainer()
    other.search.load_state_dict(trainer.search.state_dict())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = run_experiments(
            other,
            scaled_simulator,
            lambda design: torch.tensor([25.0]),
            2,
            policy=result.policy,
            seed=1,
            show_progress_bar=False,
            **JOINT,
        )
    assert made.records[0].eig is None and made.records[1].eig is not None
    messages = [str(warning.message) for warning in caught]
    assert any("data lie beyond all" in message for message in messages)


def test_designs_that_a_campaign_excludes_are_not_proposed(trained):
    trainer, result, _ = trained
    narrow = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    late = HistoryPolicy(WIDE, 2, num_before=3)
    for policy, proposes, others, message in (
        (WIDE, result.policy, {"feasible": lambda d: d[:, 0] < 2.5}, "is impossible"),
        (narrow, result.policy, {}, "is none of the trainer's"),
        (WIDE, late, {}, "was trained after 3 observations"),
    ):
        other = make_trainer(policy)
        other.search.likelihood = trainer.search.likelihood
        other.search.dim_design = 1
        with pytest.warns(UserWarning, match=message):
            made = run_experiments(
                other,
                scaled_simulator,
                lambda design: design,
                1,
                policy=proposes,
                show_progress_bar=False,
                **JOINT,
                **others,
            )
        assert made.records[0].eig is not None


def test_policies_that_do_not_belong_to_a_trainer_are_refused(trained, tmp_path):
    _, result, _ = trained
    search = {**JOINT, "seed": 3}
    flat = HistoryPolicy(TruncatedNormalPolicy(torch.zeros(2), torch.ones(2)), 2)
    for policy, error, message in (
        ("best", TypeError, "policy must be a HistoryPolicy"),
        (flat, ValueError, "proposes designs of 2 values"),
        (result.policy, ValueError, "no likelihood to learn from data with"),
    ):
        with pytest.raises(error, match=message):
            Campaign(
                tmp_path, make_trainer(), scaled_simulator, policy=policy, **search
            )


def test_names_are_public():
    assert {"HistoryPolicy", "PolicyResult", "PolicySearchConfig"} <= set(
        sbi_boed_plugin.__all__
    )
