"""What users get wrong on the way to a posterior.

Messages name the argument, its value and what to do.
"""

import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_boed_plugin import TruncatedNormalPolicy
from tests.contract_cases import seed_everything
from tests.trainers.cases import (
    HIGH,
    LOW,
    QUIET,
    SCORING,
    SEARCH,
    FailsAt,
    make,
    message,
    simulations,
    simulator,
)


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
    with pytest.raises(ValueError, match="theta has 60 rows and x 59"):
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
    with pytest.raises(
        ValueError, match=message("design=[nan] in row 7", "Leave such rows out")
    ):
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
        (torch.ones(2), ("design", "(2,)", "(num_designs, 1)")),
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
        (lambda x: x[:, 0], ValueError, ("shape (16,)", "(16, dim_x)")),
        (lambda x: x[:-1], ValueError, ("shape (15, 3)", "one row per row")),
        (lambda x: x.sum(), ValueError, ("shape ()", "(16, dim_x)")),
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


def test_invalid_simulations_are_counted():
    def sometimes_invalid(theta, design):
        x = simulator(theta, design)
        x[0, 0], x[3, 1] = torch.nan, torch.inf
        return x

    with pytest.warns(UserWarning, match="2 of 12 simulations .* tell nothing"):
        result = make().optimize_design(sometimes_invalid, **SEARCH)
    steps, batch = SEARCH["num_steps"], SEARCH["training_batch_size"]
    assert all(torch.tensor(result.history["loss"]).isfinite())
    assert result.history["num_simulations"][-1] == steps * batch
    # Those that score the design count as well, in both numbers.
    assert result.num_simulations == steps * batch + SEARCH["num_eig_samples"]
    assert result.num_invalid_simulations == 2 * steps + 2


def test_a_design_at_which_every_run_fails_counts_as_telling_nothing():
    def fails_at_high_designs(theta, design):
        x = simulator(theta, design)
        x[(design > 1.5).squeeze(1)] = torch.nan
        return x

    trainer = make()
    settings = {**SEARCH, "num_simulations_per_design": 4, "num_warmup_steps": 0}
    seed_everything(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = trainer.optimize_design(fails_at_high_designs, **settings)
    assert result.num_invalid_simulations >= 4
    assert all(torch.tensor(result.history["eig_lower_bound"]).isfinite())
    assert result.policy.mode.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_policies_and_priors_of_any_precision(dtype):
    prior = Independent(Normal(torch.zeros(2, dtype=dtype), 1.0), 1)
    low, high = LOW.to(dtype), torch.tensor([0.3 + 0.3], dtype=dtype)
    policy = TruncatedNormalPolicy(low, high, loc=high)
    trainer = make(prior=prior, design_policy=policy)
    result = trainer.optimize_design(simulator, **SEARCH)
    assert result.design.dtype == dtype
    trainer.build_posterior(design=policy.high)


class PolicyWithSpareParameters(TruncatedNormalPolicy):
    def __init__(self, low, high):
        super().__init__(low, high)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)


def test_policies_may_have_parameters_that_are_not_used():
    policy = PolicyWithSpareParameters(LOW, HIGH)
    before = policy.mode
    make(design_policy=policy).optimize_design(simulator, **SEARCH)
    assert policy.unused.item() == policy.frozen.item() == 0.0
    assert policy.mode != before


def test_settings_cannot_change_on_resuming():
    trainer = make()
    trainer.optimize_design(simulator, **SEARCH)
    with pytest.raises(ValueError, match=message("num_steps=50", "num_steps=6")):
        trainer.optimize_design(simulator, num_steps=50, resume_training=True)


def test_a_result_keeps_its_likelihood_when_the_search_goes_on():
    trainer = make()
    result = trainer.optimize_design(simulator, **SEARCH)
    condition, x = torch.ones(1, 3), torch.ones(1, 1, 3)
    before = result.likelihood_estimator.log_prob(x, condition).detach()
    trainer.optimize_design(simulator, **SEARCH)
    after = result.likelihood_estimator.log_prob(x, condition).detach()
    assert torch.equal(before, after)


def test_the_objective_cannot_change_by_the_batch_size_on_resuming(stored):
    trainer = make(design_policy=None).append_simulations(stored["theta"], stored["x"])
    trainer.train(max_num_epochs=1)
    expected = message("training_batch_size=3", "num_contrastive=2")
    with pytest.raises(ValueError, match=expected):
        trainer.train(training_batch_size=3, resume_training=True)


def test_pooled_designs_are_warned_of(stored):
    trainer = make().append_simulations(**stored)
    trainer.append_simulations(**stored, from_round=1)
    with pytest.warns(UserWarning, match="appended in several calls"):
        trainer.train(max_num_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Maximum number of epochs")
        trainer.train(max_num_epochs=1, num_contrastive=0)
