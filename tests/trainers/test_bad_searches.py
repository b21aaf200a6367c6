"""What users get wrong when they optimize a design, simulators included."""

import warnings
from collections import Counter

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_boed_plugin import (
    MultiStartConfig,
    NormalPolicy,
    TruncatedNormalPolicy,
    vectorize,
)
from tests.contract_cases import seed_everything
from tests.trainers.cases import (
    CHECK,
    LOW,
    SEARCH,
    FailsAt,
    make,
    message,
    simulations,
    simulator,
)

FEW_STARTS = MultiStartConfig(
    num_starts=4, num_climb_steps=3, num_candidates=2, num_candidate_samples=20
)


# --- Arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, parts",
    [
        ({"design_policy": None}, ("design_policy=None", "TruncatedNormalPolicy(low,")),
        ({"design_policy": "uniform"}, ("design_policy", "DesignPolicy", "str")),
        ({"prior": None}, ("prior=None", "NLE_INCE(prior")),
    ],
)
def test_policy_and_prior_are_needed(given, parts):
    with pytest.raises((TypeError, ValueError), match=message(*parts)):
        make(**given).optimize_design(simulator, **SEARCH)


@pytest.mark.parametrize(
    "wrong, parts",
    [
        ({"num_contrastive": 16}, ("num_contrastive=16", "training_batch_size=16")),
        ({"num_warmup_steps": 6}, ("num_warmup_steps=6", "less than num_steps=6")),
        ({"gradient": "full"}, ("gradient='full'", "Use one of", "score")),
        ({"objective": "magic"}, ("objective='magic'", "Use one of", "gkl")),
        (
            {"objective": "lace", "gradient": "surrogate"},
            ("'lace' with method='auto' and gradient='surrogate'", "score"),
        ),
        ({"objective": "lace", "method": "multi_start"}, ("Use method='joint'",)),
        ({"method": "magic"}, ("method='magic'", "Use one of", "joint")),
        (
            {"method": "multi_start", "num_refinement_steps": 5},
            ("steps=5 with method",),
        ),
        (
            {"method": "multi_start", "gradient": "pathwise"},
            ("'pathwise' with method",),
        ),
        ({"multi_start": FEW_STARTS}, ("multi_start=", "method='joint'")),
    ],
)
def test_settings_that_make_no_sense_are_refused_before_any_simulation(wrong, parts):
    simulator_never_called = FailsAt(AssertionError("simulated"), call=1)
    with pytest.raises(ValueError, match=message(*parts)):
        make().optimize_design(simulator_never_called, **{**SEARCH, **wrong})


def test_only_a_search_can_be_resumed_and_with_its_settings():
    trainer = make()
    with pytest.raises(RuntimeError, match=message("no design optimization", "Call")):
        trainer.optimize_design(simulator, resume_training=True)
    trainer.optimize_design(simulator, **SEARCH)
    with pytest.raises(ValueError, match=message("num_steps=50", "num_steps=6")):
        trainer.optimize_design(simulator, num_steps=50, resume_training=True)


@pytest.mark.parametrize(
    "budget, text",
    [
        ({"max_num_simulations": 15}, "is too few: 16 simulations of .* need 35"),
        ({"max_seconds": 0.0}, "No step was taken"),
    ],
)
def test_budgets_too_small_for_one_step_are_refused(budget, text):
    ((name, value),) = budget.items()
    trainer = make()
    with pytest.raises(ValueError, match=text) as raised:
        trainer.optimize_design(simulator, **SEARCH, **budget)
    assert f"{name}={value}" in str(raised.value)
    # With a larger budget the search begins.
    result = trainer.optimize_design(simulator, **SEARCH)
    assert len(result.history["loss"]) == SEARCH["num_steps"]


@pytest.mark.parametrize("trained", [False, True])
def test_a_likelihood_without_designs_cannot_tell_them_apart(trained):
    stored = simulations()
    trainer = make().append_simulations(stored["theta"], stored["x"])
    if trained:
        trainer.train(max_num_epochs=1)
    with pytest.raises(ValueError, match=message("without designs", "new NLE_INCE")):
        trainer.optimize_design(simulator, **SEARCH)


# --- Simulators -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, parts",
    [
        (lambda x: x[:, 0], ValueError, ("shape (1,)", "(1, dim_x)", "vectorize")),
        (lambda x: x[:-1], ValueError, ("shape (0, 3)", "one row per row")),
        (lambda x: None, TypeError, ("simulator", "tensor", "NoneType")),
        (lambda x: (x, x[:-1]), TypeError, ("simulator", "tensor", "tuple")),
        (lambda x: x * torch.nan, ValueError, ("Only 0 of 16", "at designs between")),
    ],
    ids=["1-D", "rows", "None", "tuple", "NaN"],
)
def test_simulators_that_return_nonsense_are_refused(change, error, parts):
    with pytest.raises(error, match=message(*parts)):
        make().optimize_design(lambda *args: change(simulator(*args)), **SEARCH)


@pytest.mark.parametrize(
    "call, match",
    [(2, "dim_x=2 .* dim_x=3"), (3, "dim_x=3"), (6, "2,.*earlier ones .3,")],
)
def test_a_simulator_must_not_change_its_mind(call, match):
    calls = Counter()

    def forgetful(theta, design):
        calls["simulator"] += 1
        x = simulator(theta, design)
        return x[:, :2] if calls["simulator"] == call else x

    with pytest.raises((ValueError, RuntimeError), match=match):
        make().optimize_design(forgetful, **SEARCH)


def test_invalid_simulations_are_counted():
    def sometimes_invalid(theta, design):
        x = simulator(theta, design)
        x[:1, 0], x[3:4, 1] = torch.nan, torch.inf
        return x

    with pytest.warns(UserWarning, match="2 of 12 simulations .* tell nothing"):
        result = make().optimize_design(sometimes_invalid, **SEARCH)
    steps, batch = SEARCH["num_steps"], SEARCH["training_batch_size"]
    assert all(torch.tensor(result.history["loss"]).isfinite())
    assert result.history["num_simulations"][-1] == steps * batch + CHECK
    # Those that score the design count as well, in both numbers.
    total = steps * batch + CHECK + SEARCH["num_eig_samples"]
    assert result.num_simulations == total
    assert result.num_invalid_simulations == 2 * steps + 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_designs_at_which_every_run_fails_count_as_telling_nothing():
    """The best designs are the highest ones, if they can be had."""

    def fails_at_high_designs(theta, design):
        x = simulator(theta, design)
        x[(design > 1.5).squeeze(1)] = torch.nan
        return x

    settings = {**SEARCH, "num_steps": 120, "training_batch_size": 64}
    modes = []
    for simulate in (simulator, fails_at_high_designs):
        seed_everything(1)
        result = make().optimize_design(simulate, **settings)
        assert all(torch.tensor(result.history["eig"]).isfinite())
        modes.append(result.design.item())
    assert result.num_invalid_simulations >= 4
    assert modes[0] > 1.8 and modes[1] < 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_policies_and_priors_of_any_precision(dtype):
    prior = Independent(Normal(torch.zeros(2, dtype=dtype), 1.0), 1)
    low, high = LOW.to(dtype), torch.tensor([0.3 + 0.3], dtype=dtype)
    policy = TruncatedNormalPolicy(low, high, loc=high)
    trainer = make(prior=prior, design_policy=policy)
    result = trainer.optimize_design(simulator, **SEARCH)
    assert result.design.dtype == dtype
    trainer.build_posterior(design=policy.high)


def test_a_result_stays_as_it_was_when_the_search_goes_on():
    trainer = make(design_policy=NormalPolicy(torch.ones(1), scale=0.1))
    result = trainer.optimize_design(simulator, **SEARCH)
    condition, x = torch.ones(1, 3), torch.ones(1, 1, 3)
    before = result.likelihood_estimator.log_prob(x, condition).detach()
    design = result.design.clone()
    trainer.optimize_design(simulator, **SEARCH)
    after = result.likelihood_estimator.log_prob(x, condition).detach()
    assert torch.equal(before, after) and torch.equal(design, result.design)


def test_the_objective_cannot_change_by_the_batch_size_on_resuming():
    stored = simulations()
    trainer = make(design_policy=None).append_simulations(stored["theta"], stored["x"])
    trainer.train(max_num_epochs=1)
    with pytest.raises(ValueError, match="num_contrastive=2 .* used .*=3"):
        trainer.train(training_batch_size=3, resume_training=True)


def test_pooled_designs_are_warned_of():
    stored = simulations()
    trainer = make().append_simulations(**stored)
    trainer.append_simulations(**stored, from_round=1)
    with pytest.warns(UserWarning, match="appended in several calls"):
        trainer.train(max_num_epochs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Maximum number of epochs")
        trainer.train(max_num_epochs=1, num_contrastive=0)


class HeavyTails(Independent):
    """A prior of which some later draws overflow in single precision."""

    num_draws = 0

    def sample(self, sample_shape=torch.Size()):
        draw = super().sample(sample_shape)
        self.num_draws += len(draw) == SEARCH["training_batch_size"]
        return draw if self.num_draws < 3 else draw.clamp(max=0.0) + 1e18


def test_a_loss_that_overflows_tells_what_is_extreme():
    def bounded(theta, design):
        return simulator(theta.clamp(-1.0, 1.0), design)

    prior = HeavyTails(Normal(torch.zeros(2), 1.0), 1)
    expected = message("not finite", "theta 1e+18", "x ", "design ", "shorter tails")
    with pytest.raises(ValueError, match=expected):
        make(prior=prior).optimize_design(bounded, **SEARCH)


# --- What a search counts -------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*simulations")
@pytest.mark.parametrize("method", ["joint", "multi_start"])
@pytest.mark.parametrize("limit", [1.95, 5.0])
@pytest.mark.parametrize("budget", [None, 250])
def test_simulations_reported_are_those_made_and_allowed(method, limit, budget):
    num_rows = 0

    def raises_for_large_parameters(theta, design):
        nonlocal num_rows
        num_rows += len(theta)
        if (theta > limit).any():
            raise RuntimeError("the solver diverged")
        return simulator(theta, design)

    seed_everything(0)
    result = make().optimize_design(
        raises_for_large_parameters,
        **{**SEARCH, "num_steps": 12, "num_eig_samples": 40},
        method=method,
        multi_start=FEW_STARTS if method == "multi_start" else None,
        max_num_simulations=budget,
    )
    assert result.num_simulations == num_rows
    assert budget is None or num_rows <= budget
    if budget is not None:
        assert result.history["num_simulations"][-1] > 100
        # What raises fails, and nothing else: by chance a tenth does.
        assert result.eig.num_invalid_simulations <= {1.95: 8, 5.0: 0}[limit]


@pytest.mark.parametrize("gradient", ["score", "pathwise"])
def test_functions_of_one_vector_are_refused_or_vectorized(gradient):
    def one_vector(theta, design):
        return theta[0] * design + 0.1 * torch.randn(1)

    settings = {**SEARCH, "gradient": gradient}
    with pytest.raises(ValueError, match="mixes rows.*vectorize"):
        make().optimize_design(one_vector, **settings)
    result = make().optimize_design(vectorize(one_vector), **settings)
    # They need no check.
    assert result.history["num_simulations"] == [16 * k for k in range(1, 7)]
