"""What users get wrong on the way to a posterior.

Messages name the argument, its value and what to do.
"""

import math

import pytest
import torch

from tests.trainers.cases import QUIET, make, message, simulations

NO_POLICY = {"design_policy": None}


@pytest.fixture
def stored():
    return simulations()


@pytest.fixture(scope="module")
def trainers():
    """Trainers with and without designs, trained for two epochs; not to be changed."""
    torch.manual_seed(0)
    stored = simulations()
    with_designs, without = make(), make(**NO_POLICY)
    with_designs.append_simulations(**stored).train(max_num_epochs=1)
    without.append_simulations(stored["theta"], stored["x"]).train(max_num_epochs=1)
    return {"with designs": with_designs, "without designs": without}


# --- Simulations that are stored ------------------------------------------------------


def fill(name, value):
    """Change one value of the seventh row."""

    def change(stored):
        stored[name][7, -1] = value

    return change


def drop_row(name):
    def change(stored):
        stored[name] = stored[name][:59]

    return change


def widen_design(stored):
    stored["design"] = stored["design"].expand(60, 2)


@pytest.mark.parametrize(
    "change, parts",
    [
        (fill("x", torch.nan), ("1 NaN", "NLE_INCE does not allow")),
        (fill("x", torch.inf), ("1 Inf", "NLE_INCE does not allow")),
        (drop_row("theta"), ("theta", "(59, 2)", "(60, 1)")),
        (drop_row("design"), ("theta", "(60, 2)", "(59, 1)")),
        (drop_row("x"), ("theta has 60 rows and x 59",)),
        (widen_design, ("design", "(60, 2)", "1)")),
        (fill("design", 0.4), ("design=[0.4", "support", "Use a policy")),
        (fill("design", 2.5), ("design=[2.5]", "support", "0.5", "2.", "Use a")),
        (fill("design", -torch.inf), ("design", "infinite")),
        (fill("design", torch.inf), ("design", "infinite")),
        (fill("design", torch.nan), ("design=[nan] in row 7", "Leave such")),
    ],
)
def test_simulations_that_are_wrong_are_refused(stored, change, parts):
    change(stored)
    trainer = make()
    with pytest.raises(ValueError, match=message(*parts)):
        trainer.append_simulations(**stored)
    # They leave nothing behind, not even that there are designs.
    right = simulations()
    trainer.append_simulations(right["theta"], right["x"])
    assert [len(tensor) for tensor in trainer.get_simulations()] == [60] * 3


def test_later_simulations_have_designs_like_the_first(stored):
    trainer = make(**NO_POLICY).append_simulations(**stored)
    with pytest.raises(ValueError, match=message("design=None", "1 values", "Pass")):
        trainer.append_simulations(stored["theta"], stored["x"])
    without = make().append_simulations(stored["theta"], stored["x"])
    with pytest.raises(ValueError, match=message("design was given", "Leave it out")):
        without.append_simulations(**stored)
    widen_design(stored)
    with pytest.raises(ValueError, match=message("design", "(60, 2)", "1)")):
        trainer.append_simulations(**stored)


def test_wrong_designs_and_parameters_are_refused_without_a_policy(stored):
    trainer = make(**NO_POLICY)
    with pytest.raises(TypeError, match=message("theta", "Tensor")):
        trainer.append_simulations(**{**stored, "theta": stored["theta"].numpy()})
    fill("design", torch.nan)(stored)
    with pytest.raises(ValueError, match=message("design=[nan] in row 7", "Leave")):
        trainer.append_simulations(**stored)


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_designs_may_be_any_array(stored, convert):
    expected = torch.cat([stored["theta"], stored["design"]], dim=1)
    stored["design"] = convert(stored["design"])
    trainer = make().append_simulations(**stored)
    assert torch.equal(trainer.get_simulations()[0], expected)


# --- Training -------------------------------------------------------------------------


def test_one_less_than_the_batch_is_the_most_contrast_there_is(stored):
    trainer = make().append_simulations(**stored)
    with pytest.raises(ValueError, match=message("num_contrastive=50", "50", "Use")):
        trainer.train(training_batch_size=50, num_contrastive=50)
    with pytest.raises(ValueError, match=message("=0", "=0", "nothing to train")):
        trainer.train(num_contrastive=0, regularization_strength=0)
    trainer.train(training_batch_size=50, num_contrastive=49, max_num_epochs=1)
    assert max(trainer.summary["eig_lower_bound"]) <= math.log(50)


# --- Posteriors -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "design, parts",
    [
        (None, ("design=None", "designs of 1 values", "Pass design=")),
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


def test_a_superfluous_design_is_refused(trainers):
    expected = message("design was given", "no designs", "Leave it out")
    with pytest.raises(ValueError, match=expected):
        trainers["without designs"].build_posterior(design=torch.ones(1))


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
