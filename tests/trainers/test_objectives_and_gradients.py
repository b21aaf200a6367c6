"""Searches with every objective, every gradient and policies of every kind."""

import math

import pytest
import torch

from sbi_boed_plugin.policies import (
    CategoricalPolicy,
    PointPolicy,
    TruncatedNormalPolicy,
)
from sbi_boed_plugin.search.gradients import DATA_PATHS, POLICY_GRADIENTS
from sbi_boed_plugin.search.information import POLICY_OBJECTIVES
from sbi_boed_plugin.search.multi_start import MultiStartConfig
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import (
    CHECK,
    SEARCH,
    FailsAt,
    make,
    make_trainer,
    message,
    simulator,
)

SHORT = {**SEARCH, "num_steps": 3}
QUICK = MultiStartConfig(num_starts=8, num_climb_steps=6, num_candidate_samples=50)
BOX = torch.tensor([-2.0]), torch.tensor([2.0])
NEVER_CALLED = FailsAt(AssertionError("simulated"), call=1)


@pytest.mark.filterwarnings("ignore:The pce", "ignore:At the end of the search")
@pytest.mark.parametrize(
    ("objective", "gradient"),
    [
        (name, gradient)
        for name, objective in POLICY_OBJECTIVES.items()
        for gradient in (["score"] if objective.by_score else POLICY_GRADIENTS)
    ],
)
def test_every_objective_goes_with_its_gradients(objective, gradient):
    trainer = make()
    before = trainer.design_policy.mode
    settings = {**SHORT, "objective": objective, "gradient": gradient}
    if objective == "target":
        settings["target"] = 0
    result = trainer.optimize_design(simulator, **settings)
    assert not torch.equal(result.policy.mode, before)
    own = POLICY_OBJECTIVES[objective].bound
    assert own in result.bounds and result.eig.bound in (own, "lace")  # the larger.
    assert math.isfinite(result.eig.value)
    assert all(map(math.isfinite, result.history["eig"]))
    assert (result.config.objective, result.config.gradient) == (objective, gradient)
    has_posterior = result.posterior_estimator is not None
    assert has_posterior == (objective in ("gkl", "barber_agakov", "lace"))
    assert (result.marginal_estimator is not None) == (objective == "marginal")


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["surrogate", "implicit"])
def test_a_point_follows_a_likelihood_that_knows_other_designs(gradient):
    """At a point alone nothing tells how data depend on the design."""
    trainer = make_trainer(Model.prior, PointPolicy(*BOX, loc=torch.tensor([0.6])))
    trainer.optimize_design(
        Model.simulate,
        method="multi_start",
        num_steps=150,
        multi_start=QUICK,
        num_eig_samples=100,
        objective="barber_agakov",
    )
    assert_ends_at_the_end(trainer, gradient)


@pytest.mark.slow
def test_a_point_follows_a_differentiable_simulator_from_the_start():
    trainer = make_trainer(Model.prior, PointPolicy(*BOX, loc=torch.tensor([0.6])))
    assert_ends_at_the_end(trainer, "pathwise")


def assert_ends_at_the_end(trainer, gradient):
    result = trainer.optimize_design(
        Model.simulate,
        gradient=gradient,
        num_steps=150,
        num_warmup_steps=20,
        num_eig_samples=500,
    )
    # The information is 0.80 nats at the end of the box, 0.15 at the start.
    best = Model.eig(BOX[1]).item()
    assert result.design.item() > 0
    assert Model.eig(result.design).item() > 0.9 * best
    assert result.eig.value < best + 3 * result.eig.standard_error


def test_a_choice_among_candidates_ends_at_the_best():
    candidates = torch.tensor([[0.2], [-1.0], [3.0], [-0.5]])
    trainer = make_trainer(Model.prior, CategoricalPolicy(candidates))
    result = trainer.optimize_design(
        Model.simulate, num_steps=120, design_learning_rate=0.1, num_eig_samples=500
    )
    assert torch.equal(result.design, candidates[2])
    assert result.policy.probabilities[2] > 0.6


CHOICE = CategoricalPolicy(torch.tensor([[0.0], [1.0]]))


@pytest.mark.parametrize(
    "policy, gradient, other",
    [
        (PointPolicy(*BOX), "score", "surrogate"),
        *((CHOICE, gradient, "score") for gradient in DATA_PATHS),
    ],
)
def test_policies_are_refused_gradients_that_they_do_not_have(policy, gradient, other):
    trainer = make_trainer(Model.prior, policy)
    parts = f"gradient='{gradient}'", type(policy).__name__, f"gradient='{other}'"
    with pytest.raises(ValueError, match=message(*parts)):
        trainer.optimize_design(NEVER_CALLED, gradient=gradient, **SHORT)


def test_a_likelihood_without_a_gradient_is_refused_one():
    made = make(density_estimator="made")
    with pytest.raises(NotImplementedError, match="gradient='score'"):
        made.optimize_design(simulator, gradient="surrogate", **SHORT)


@pytest.mark.filterwarnings("ignore:The pce estimate")
def test_multi_start_trains_over_the_box_and_once_only():
    # A policy that would see hardly anything of it.
    policy = TruncatedNormalPolicy(*BOX, loc=torch.tensor([-1.0]), scale=0.01)
    trainer = make_trainer(Model.prior, policy)
    seen = []

    def simulate(theta, design):
        seen.append(design)
        return Model.simulate(theta, design)

    settings = {"method": "multi_start", "multi_start": QUICK, "num_eig_samples": 60}
    first = trainer.optimize_design(simulate, num_steps=20, **settings)
    training = torch.cat(seen[3:23])  # the first calls are a check.
    # Uniform designs: four standard errors of mean and spread of 5,120 numbers.
    assert abs(training.mean()) < 4 * training.std() / len(training) ** 0.5
    assert training.std().item() == pytest.approx(4 / 12**0.5, rel=0.05)
    assert first.policy.mode.item() == pytest.approx(-1.0)
    assert len(first.history["loss"]) == 20
    num_candidates = len(first.candidates)
    assert 1 <= num_candidates <= QUICK.num_candidates
    assert torch.equal(first.candidates[0][0], first.design)
    values = [estimate.value for _, estimate in first.candidates]
    assert values == sorted(values, reverse=True)
    assert first.num_simulations == CHECK + 20 * 256 + 60 + 50 * num_candidates

    weights = {k: v.clone() for k, v in trainer._neural_net.state_dict().items()}
    second = trainer.optimize_design(simulate, **settings)
    assert second.config.num_steps == 0 and not second.history.get("loss")
    assert second.num_simulations == CHECK + 60 + 50 * len(second.candidates)
    for key, value in trainer._neural_net.state_dict().items():
        assert torch.equal(value, weights[key])
