"""What users get wrong, and what goes wrong around them, on the way to a posterior.

Messages name the argument, its value and what to do. Interrupted design searches go on
as if nothing had happened.
"""

import pickle
import random
import re
from collections import Counter

import numpy as np
import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy
from tests.conftest import NoOpTracker
from tests.contract_cases import seed_everything

LOW, HIGH = torch.tensor([0.5]), torch.tensor([2.0])
QUIET = {"show_progress_bars": False}
SCORING = {"num_eig_samples": 12, "num_eig_contrastive": 15}
SEARCH = {
    "num_steps": 6,
    "training_batch_size": 16,
    "num_contrastive": 7,
    **SCORING,
}


def simulator(theta, design):
    """Noise from every generator that a simulator may use."""
    mean = torch.cat([theta * design, theta.sum(dim=1, keepdim=True)], dim=1)
    noise = torch.from_numpy(np.random.randn(*mean.shape)).to(mean)
    return mean + 0.3 * noise + 0.1 * torch.randn_like(mean) + 0.1 * random.random()


class FailsAt:
    """Raises an error at its n-th call, and simulates at every other."""

    def __init__(self, error, call):
        self.error, self.call, self.num_calls = error, call, 0

    def __call__(self, theta, design):
        self.num_calls += 1
        x = simulator(theta, design)  # random numbers are used up before it fails.
        if self.num_calls == self.call:
            raise self.error
        return x


class CountingTracker(NoOpTracker):
    """Counts the metrics it is given."""

    def __init__(self):
        self.counts = Counter()

    def log_metrics(self, metrics, step=None):
        self.counts.update(list(metrics))


def make(**kwargs):
    """A trainer with a design policy; arguments replace the defaults."""
    defaults = {
        "prior": BoxUniform(-2 * torch.ones(2), 2 * torch.ones(2)),
        "density_estimator": "mdn",
        "tracker": NoOpTracker(),
        "design_policy": TruncatedNormalPolicy(LOW, HIGH),
    }
    return NLE_INCE(**{**defaults, **QUIET, **kwargs})


def simulations():
    """Arguments of `append_simulations` that are right."""
    theta, design = 4 * torch.rand(60, 2) - 2, 0.5 + 1.5 * torch.rand(60, 1)
    return {"theta": theta, "x": simulator(theta, design), "design": design}


@pytest.fixture
def stored():
    return simulations()


@pytest.fixture(scope="module")
def trainers():
    """Trainers with and without designs, trained for two epochs; not to be changed."""
    torch.manual_seed(0)
    stored = simulations()
    with_designs, without = make(), make(design_policy=None)
    with_designs.append_simulations(**stored).train(max_num_epochs=1)
    without.append_simulations(stored["theta"], stored["x"]).train(max_num_epochs=1)
    return {"with designs": with_designs, "without designs": without}


def message(*parts):
    """A pattern of literal parts in this order, with anything between them."""
    return r"(?s)" + ".*".join(re.escape(part) for part in parts)


# --- Simulations that are stored ------------------------------------------------------


@pytest.mark.parametrize("value, count", [(torch.nan, "1 NaN"), (torch.inf, "1 Inf")])
def test_invalid_simulations_are_refused_as_in_sbi(stored, value, count):
    stored["x"][5, 1] = value
    with pytest.raises(ValueError, match=message(count, "NLE_INCE does not allow")):
        make().append_simulations(**stored)


@pytest.mark.parametrize(
    "name, rows, shapes",
    [("theta", 59, ("(59, 2)", "(60, 1)")), ("design", 59, ("(60, 2)", "(59, 1)"))],
)
def test_designs_need_one_row_per_simulation(stored, name, rows, shapes):
    stored[name] = stored[name][:rows]
    with pytest.raises(ValueError, match=message("theta", shapes[0], shapes[1])):
        make().append_simulations(**stored)


def test_data_need_one_row_per_simulation(stored):
    stored["x"] = stored["x"][:59]
    # IndexError where sbi finds it, ValueError where we do.
    with pytest.raises((IndexError, ValueError), match="59.*60|60.*59"):
        make().append_simulations(**stored)


def test_parameters_must_be_tensors_as_in_sbi(stored):
    stored["theta"] = stored["theta"].numpy()
    with pytest.raises(
        (AssertionError, TypeError, ValueError), match=message("theta", "Tensor")
    ):
        make().append_simulations(**stored)


def test_missing_designs_are_refused(stored):
    trainer = make().append_simulations(**stored)
    stored["design"] = None
    with pytest.raises(ValueError, match=message("design=None", "1 values", "Pass")):
        trainer.append_simulations(**stored)


def test_superfluous_designs_are_refused(stored):
    trainer = make().append_simulations(stored["theta"], stored["x"])
    with pytest.raises(ValueError, match=message("design was given", "Leave it out")):
        trainer.append_simulations(**stored)


def test_designs_of_another_size_are_refused(stored):
    trainer = make(design_policy=None).append_simulations(**stored)
    stored["design"] = stored["design"].expand(60, 2)
    with pytest.raises(ValueError, match=message("design", "(60, 2)", "1)")):
        trainer.append_simulations(**stored)


def test_designs_of_another_size_than_the_policy_are_refused(stored):
    stored["design"] = stored["design"].expand(60, 2)
    with pytest.raises(ValueError, match=message("design", "(60, 2)", "1)")):
        make().append_simulations(**stored)


@pytest.mark.parametrize("value", [0.4, 2.1, -torch.inf, torch.inf])
def test_designs_outside_the_support_are_refused(stored, value):
    stored["design"][7] = value
    with pytest.raises(ValueError, match="design.*(support|infinite)"):
        make().append_simulations(**stored)


def test_the_message_shows_a_design_outside_the_support(stored):
    stored["design"][7] = 2.5
    expected = message("design=[2.5]", "support", "0.5", "2.", "Use a policy")
    with pytest.raises(ValueError, match=expected):
        make().append_simulations(**stored)


@pytest.mark.parametrize("policy", ["with policy", "without policy"])
def test_designs_that_are_nan_are_refused(stored, policy):
    stored["design"][7] = torch.nan
    trainer = make() if policy == "with policy" else make(design_policy=None)
    with pytest.raises(ValueError, match="design contains NaN"):
        trainer.append_simulations(**stored)


def test_refused_simulations_leave_nothing_behind(stored):
    trainer = make()
    for wrong in ({"design": 9 * stored["design"]}, {"x": stored["x"] * torch.nan}):
        with pytest.raises(ValueError):
            trainer.append_simulations(**{**stored, **wrong})
    # Not even that there are designs.
    trainer.append_simulations(stored["theta"], stored["x"])
    assert [len(tensor) for tensor in trainer.get_simulations()] == [60] * 3


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_designs_may_be_any_array(stored, convert):
    expected = torch.cat([stored["theta"], stored["design"]], dim=1)
    stored["design"] = convert(stored["design"])
    trainer = make().append_simulations(**stored)
    assert torch.equal(trainer.get_simulations()[0], expected)
    with pytest.raises(ValueError, match="design=None"):
        trainer.append_simulations(stored["theta"], stored["x"])


# --- Training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, parts",
    [
        ({"num_contrastive": -1}, ("num_contrastive=-1", "negative")),
        ({"num_contrastive": 50}, ("num_contrastive=50", "50", "Use fewer")),
        ({"num_contrastive": 54}, ("num_contrastive=54", "50", "Use fewer")),
        ({"regularization_strength": -0.1}, ("regularization_strength=-0.1", "neg")),
        ({"regularization_strength": np.nan}, ("regularization_strength=nan", "fin")),
        ({"regularization_strength": np.inf}, ("regularization_strength=inf", "fin")),
        (
            {"num_contrastive": 0, "regularization_strength": 0},
            ("num_contrastive=0", "regularization_strength=0", "nothing to train"),
        ),
    ],
)
def test_an_objective_out_of_range_is_refused(stored, kwargs, parts):
    trainer = make().append_simulations(**stored)
    with pytest.raises(ValueError, match=message(*parts)):
        trainer.train(training_batch_size=50, **kwargs)


def test_the_number_of_contrastive_samples_is_an_integer(stored):
    trainer = make().append_simulations(**stored)
    with pytest.raises((TypeError, ValueError), match="num_contrastive"):
        trainer.train(training_batch_size=50, num_contrastive=2.5)


def test_one_less_than_the_batch_is_the_most_contrast_there_is(stored):
    trainer = make().append_simulations(**stored)
    trainer.train(training_batch_size=50, num_contrastive=49, max_num_epochs=1)
    assert max(trainer.summary["eig_lower_bound"]) <= np.log(50)


# --- Posteriors -----------------------------------------------------------------------


def test_a_missing_design_is_refused(trainers):
    expected = message("design=None", "designs of 1 values", "Pass design=")
    with pytest.raises(ValueError, match=expected):
        trainers["with designs"].build_posterior()


def test_a_superfluous_design_is_refused(trainers):
    expected = message("design was given", "no designs", "Leave it out")
    with pytest.raises(ValueError, match=expected):
        trainers["without designs"].build_posterior(design=torch.ones(1))


@pytest.mark.parametrize(
    "design, parts",
    [
        (torch.ones(2), ("design", "2)", "1)")),
        (torch.ones(1, 1, 1), ("design", "(1, 1, 1)", "1)")),
        (torch.ones(0, 1), ("design", "(0, 1)")),
        (torch.tensor([torch.nan]), ("design", "NaN")),
        (torch.tensor([2.5]), ("design=[2.5]", "support", "Use a policy")),
        (torch.tensor([[1.0], [0.25]]), ("design=[0.25]", "support", "Use a policy")),
    ],
)
def test_a_design_that_cannot_be_is_refused(trainers, design, parts):
    with pytest.raises(ValueError, match=message(*parts)):
        trainers["with designs"].build_posterior(design=design)


def test_a_posterior_before_training_is_refused():
    with pytest.raises(RuntimeError, match=message("no likelihood yet", "train()")):
        make().build_posterior(design=torch.ones(1))
    # Without a design it is sbi that refuses.
    with pytest.raises((AssertionError, RuntimeError), match="estimator|likelihood"):
        make().build_posterior()


@pytest.mark.parametrize("name", ["with designs", "without designs"])
def test_data_of_another_size_are_refused(trainers, name):
    kwargs = {"design": torch.ones(1)} if name == "with designs" else {}
    posterior = trainers[name].build_posterior(sample_with="importance", **kwargs)
    with pytest.raises((ValueError, RuntimeError), match=r"input.*2.*expected.*3"):
        posterior.sample((2,), x=torch.zeros(1, 2), **QUIET)


# --- Optimizing a design: arguments ---------------------------------------------------


def test_a_policy_is_needed():
    expected = message("design_policy=None", "TruncatedNormalPolicy(low, high)")
    with pytest.raises(ValueError, match=expected):
        make(design_policy=None).optimize_design(simulator, **SEARCH)


def test_a_policy_is_a_policy():
    with pytest.raises(
        TypeError, match=message("design_policy", "DesignPolicy", "str")
    ):
        make(design_policy="uniform")


def test_a_prior_is_needed():
    with pytest.raises(ValueError, match=message("prior=None", "NLE_INCE(prior")):
        make(prior=None).optimize_design(simulator, **SEARCH)


def test_there_must_be_something_to_resume():
    with pytest.raises(RuntimeError, match=message("no design optimization", "Call")):
        make().optimize_design(simulator, resume_training=True)


@pytest.mark.parametrize(
    "wrong, parts",
    [
        ({"num_contrastive": 16}, ("num_contrastive=16", "training_batch_size=16")),
        ({"num_contrastive": 0}, ("num_contrastive=0", "at least 1")),
        ({"num_contrastive": -3}, ("num_contrastive=-3", "at least 1")),
        ({"regularization_strength": -1.0}, ("regularization_strength=-1.0",)),
        ({"regularization_strength": np.nan}, ("regularization_strength=nan",)),
        ({"regularization_strength": np.inf}, ("regularization_strength=inf",)),
        ({"gradient": "full"}, ("gradient='full'", "Use one of", "score")),
        ({"num_steps": 0}, ("num_steps=0", "at least 1")),
        ({"training_batch_size": 0}, ("training_batch_size=0", "at least 1")),
        ({"num_simulations_per_design": 5}, ("training_batch_size=16", "design=5")),
        ({"num_simulations_per_design": 16}, ("fewer than two designs", "Increase")),
        ({"learning_rate": 0.0}, ("learning_rate=0.0", "positive")),
        ({"design_learning_rate": np.nan}, ("design_learning_rate=nan", "positive")),
        ({"stop_after_steps": -3}, ("stop_after_steps=-3",)),
        ({"num_eig_samples": 1}, ("num_", "samples=1", "at least 2")),
        ({"num_eig_contrastive": 0}, ("num_", "contrastive=0", "at least 1")),
    ],
)
def test_settings_out_of_range_are_refused_before_any_simulation(wrong, parts):
    simulator_never_called = FailsAt(AssertionError("simulated"), call=1)
    with pytest.raises(ValueError, match=message(*parts)):
        make().optimize_design(simulator_never_called, **{**SEARCH, **wrong})


@pytest.mark.parametrize("budget", [{"max_num_simulations": 15}, {"max_seconds": 0.0}])
def test_budgets_too_small_for_one_step_are_refused(budget):
    ((name, value),) = budget.items()
    trainer = make()
    with pytest.raises(ValueError, match=message("No step", f"{name}={value}", "16")):
        trainer.optimize_design(simulator, **SEARCH, **budget)
    # With a larger budget the same search begins.
    result = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert len(result.history["loss"]) == SEARCH["num_steps"]


def test_a_likelihood_without_designs_cannot_tell_them_apart(stored):
    trainer = make().append_simulations(stored["theta"], stored["x"])
    trainer.train(max_num_epochs=1)
    with pytest.raises(ValueError, match=message("without designs", "new NLE_INCE")):
        trainer.optimize_design(simulator, **SEARCH)


def test_simulations_without_designs_do_not_go_with_a_search(stored):
    trainer = make().append_simulations(stored["theta"], stored["x"])
    with pytest.raises(ValueError, match=message("without designs", "new NLE_INCE")):
        trainer.optimize_design(simulator, **SEARCH)
    trainer.train(max_num_epochs=1)


# --- Optimizing a design: simulators --------------------------------------------------


@pytest.mark.parametrize(
    "change, error, parts",
    [
        (lambda x: x[:, 0], ValueError, ("shape (16,)", "(16, *x_event_shape)")),
        (lambda x: x[:-1], ValueError, ("shape (15, 3)", "one row per row")),
        (lambda x: x.sum(), ValueError, ("shape ()", "(16, *x_event_shape)")),
        (lambda x: None, TypeError, ("simulator", "tensor", "NoneType")),
        (lambda x: "x", TypeError, ("simulator", "tensor", "str")),
        (lambda x: (x, x[:-1]), TypeError, ("simulator", "tensor", "tuple")),
        (lambda x: x * torch.nan, ValueError, ("Only 0 of 16", "at designs between")),
    ],
    ids=["1-D", "rows", "number", "None", "text", "tuple", "NaN"],
)
def test_simulators_that_return_nonsense_are_refused(change, error, parts):
    with pytest.raises(error, match=message(*parts)):
        make().optimize_design(lambda *args: change(simulator(*args)), **SEARCH)


def test_data_of_several_dimensions_are_refused():
    # As NLE does: flows and mixtures are densities of vectors.
    with pytest.raises((AssertionError, ValueError), match=r"multi-dim|\(16, 3, 4\)"):
        make().optimize_design(
            lambda *args: simulator(*args).unsqueeze(-1).expand(-1, 3, 4), **SEARCH
        )


def test_a_simulator_must_not_change_its_mind():
    calls = Counter()

    def forgetful(theta, design):
        calls["simulator"] += 1
        x = simulator(theta, design)
        return x[:, :2] if calls["simulator"] == 3 else x

    with pytest.raises((ValueError, RuntimeError), match=r"2.*expected.*3"):
        make().optimize_design(forgetful, **SEARCH)


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.numpy,
        torch.Tensor.tolist,
        torch.Tensor.double,
        torch.Tensor.requires_grad_,
        lambda x: x.round().long(),
    ],
    ids=["numpy", "list", "double", "with gradient", "integer"],
)
def test_simulators_may_return_any_array(convert):
    result = make().optimize_design(lambda *args: convert(simulator(*args)), **SEARCH)
    assert np.isfinite(result.eig.value)


def test_invalid_simulations_are_left_out_and_counted():
    def sometimes_invalid(theta, design):
        x = simulator(theta, design)
        x[0, 0], x[3, 1] = torch.nan, torch.inf
        return x

    with pytest.warns(UserWarning, match="2 of 12 simulations .* left out"):
        result = make().optimize_design(sometimes_invalid, **SEARCH)
    steps, batch = SEARCH["num_steps"], SEARCH["training_batch_size"]
    assert all(torch.tensor(result.history["loss"]).isfinite())
    assert result.history["num_simulations"][-1] == steps * batch
    # Those that score the design count as well, in both numbers.
    assert result.num_simulations == steps * batch + SEARCH["num_eig_samples"]
    assert result.num_invalid_simulations == 2 * steps + 2


# --- Optimizing a design: interruptions -----------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted():
    """Result and weights of a search from seed 0 that nothing disturbed."""
    trainer = make()
    seed_all()
    result = trainer.optimize_design(simulator, **SEARCH)
    return result, trainer._neural_net.state_dict()


def seed_all():
    seed_everything(0)
    random.seed(0)


def global_states():
    return torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()


def resume_after_other_work(trainer):
    """Resume when the global generators are somewhere else; they must stay there."""
    torch.rand(3), np.random.rand(3), random.random()
    before = global_states()
    result = trainer.optimize_design(simulator, resume_training=True, **SCORING)
    assert global_states() == before
    return result


def assert_same_search(result, network, uninterrupted):
    expected, weights = uninterrupted
    assert torch.equal(result.design, expected.design)
    assert result.eig == expected.eig
    assert result.num_simulations == expected.num_simulations
    assert result.stop_reason == expected.stop_reason
    for key in set(expected.history) - {"seconds"}:
        assert result.history[key] == expected.history[key], key
    assert len(result.history["seconds"]) == len(expected.history["seconds"])
    state = network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[key], weights[key]) for key in weights)
    for key, value in expected.policy.state_dict().items():
        assert torch.equal(result.policy.state_dict()[key], value), key


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
@pytest.mark.parametrize("pickled", [False, True], ids=["same trainer", "pickled"])
@pytest.mark.parametrize("call", [2, 4, 7], ids=["step 2", "step 4", "scoring"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_search_ends_as_if_it_had_not_been(
    uninterrupted, error, call, pickled
):
    tracker = CountingTracker()
    trainer = make(tracker=tracker)
    seed_all()
    with pytest.raises(error, match="lights out") as caught:
        trainer.optimize_design(FailsAt(error("lights out"), call), **SEARCH)
    completed = call - 1
    assert tracker.counts["design_loss"] == completed
    notes = getattr(caught.value, "__notes__", ["resume_training=True"])
    assert all("resume_training=True" in note for note in notes)
    assert trainer.build_posterior(design=torch.ones(1)) is not None

    if pickled:
        trainer = pickle.loads(pickle.dumps(trainer))
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_search_interrupted_before_its_first_step_starts_again(uninterrupted):
    trainer = make()
    seed_all()
    with pytest.raises(RuntimeError, match="lights out"):
        trainer.optimize_design(FailsAt(RuntimeError("lights out"), 1), **SEARCH)
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


class FailsOnce(TruncatedNormalPolicy):
    """A policy whose first log-density fails: the network is built by then."""

    failed = False

    def log_prob(self, design):
        if not self.failed:
            self.failed = True
            raise KeyboardInterrupt
        return super().log_prob(design)


def test_a_search_interrupted_within_its_first_step_starts_again(uninterrupted):
    trainer = make(design_policy=FailsOnce(LOW, HIGH))
    seed_all()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(simulator, **SEARCH)
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_search_interrupted_again_and_again_ends_the_same(uninterrupted):
    trainer = make()
    seed_all()
    with pytest.raises(KeyboardInterrupt):
        trainer.optimize_design(FailsAt(KeyboardInterrupt(), 2), **SEARCH)
    for _ in range(2):  # each gets one step further.
        with pytest.raises(KeyboardInterrupt):
            trainer.optimize_design(
                FailsAt(KeyboardInterrupt(), 2), resume_training=True
            )
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_search_stopped_by_its_budget_ends_the_same(uninterrupted):
    trainer = make()
    seed_all()
    budget = {"max_num_simulations": 3 * SEARCH["training_batch_size"] + 1}
    partial = trainer.optimize_design(simulator, **SEARCH, **budget)
    assert partial.stop_reason == "max_num_simulations"
    assert len(partial.history["loss"]) == 3
    result = resume_after_other_work(trainer)
    assert len(partial.history["loss"]) == 3  # the earlier result stays as it was.
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_a_finished_search_can_be_resumed_without_effect(uninterrupted):
    trainer = make()
    seed_all()
    trainer.optimize_design(simulator, **SEARCH)
    result = resume_after_other_work(trainer)
    assert_same_search(result, trainer._neural_net, uninterrupted)


def test_without_a_completed_step_there_is_nothing_to_keep():
    trainer = make()
    with pytest.raises(RuntimeError, match="lights out") as caught:
        trainer.optimize_design(FailsAt(RuntimeError("lights out"), 1), **SEARCH)
    assert not getattr(caught.value, "__notes__", [])
    with pytest.raises(RuntimeError, match="no likelihood yet"):
        trainer.build_posterior(design=torch.ones(1))


@pytest.mark.filterwarnings("ignore:When the inference object is pickled")
def test_a_trainer_pickled_before_its_first_step_says_what_is_missing():
    trainer = make()
    with pytest.raises(RuntimeError, match="lights out"):
        trainer.optimize_design(FailsAt(RuntimeError("lights out"), 1), **SEARCH)
    loaded = pickle.loads(pickle.dumps(trainer))
    with pytest.raises((RuntimeError, ValueError), match="density_estimator|pickle"):
        loaded.optimize_design(simulator, resume_training=True)
