"""What users get wrong on the way to a posterior."""

import math

import pytest
import torch

from tests.trainers.cases import make, message, simulations

NO_POLICY = {"design_policy": None}


@pytest.fixture
def stored():
    return simulations()


@pytest.fixture(scope="module")
def trainer():
    """A trainer that is trained for two epochs; not to be changed."""
    trainer = make().append_simulations(**simulations())
    trainer.train(max_num_epochs=1)
    return trainer


def changed(stored, name, value):
    """Simulations of which one value, or everything of this name, is another."""
    if isinstance(value, float):
        values = stored[name].clone()
        values[7, -1] = value
        return {**stored, name: values}
    return {**stored, name: value(stored[name])}


def without_a_row(values):
    return values[:59]


def widened(values):
    return values.expand(60, 2)


@pytest.mark.parametrize(
    "name, value, parts",
    [
        ("x", torch.nan, ("1 NaN", "NLE_INCE does not allow")),
        ("x", torch.inf, ("1 Inf", "NLE_INCE does not allow")),
        ("theta", without_a_row, ("theta", "(59, 2)", "(60, 1)")),
        ("design", without_a_row, ("theta", "(60, 2)", "(59, 1)")),
        ("x", without_a_row, ("theta has 60 rows and x 59",)),
        ("design", widened, ("design", "(60, 2)", "1)")),
        ("design", 0.4, ("design=[0.4", "support", "Use a policy")),
        ("design", torch.inf, ("design", "infinite")),
        ("design", torch.nan, ("design=[nan] in row 7", "Leave such")),
    ],
)
def test_simulations_that_are_wrong_are_refused(stored, name, value, parts):
    trainer = make()
    with pytest.raises(ValueError, match=message(*parts)):
        trainer.append_simulations(**changed(stored, name, value))
    # They leave nothing behind, not even that there are designs.
    trainer.append_simulations(stored["theta"], stored["x"])
    assert [len(tensor) for tensor in trainer.get_simulations()] == [60] * 3


def test_later_simulations_have_designs_like_the_first(stored):
    trainer = make(**NO_POLICY).append_simulations(**stored)
    with pytest.raises(ValueError, match=message("design=None", "1 values", "Pass")):
        trainer.append_simulations(stored["theta"], stored["x"])
    without = make().append_simulations(stored["theta"], stored["x"])
    with pytest.raises(ValueError, match=message("design was given", "Leave it out")):
        without.append_simulations(**stored)
    with pytest.raises(ValueError, match=message("design", "(60, 2)", "1)")):
        trainer.append_simulations(**changed(stored, "design", widened))


def test_wrong_designs_and_parameters_are_refused_without_a_policy(stored):
    trainer = make(**NO_POLICY)
    lists = changed(stored, "design", torch.Tensor.tolist)
    assert make().append_simulations(**lists).search.dim_design == 1
    with pytest.raises(TypeError, match=message("theta", "Tensor")):
        trainer.append_simulations(**changed(stored, "theta", torch.Tensor.numpy))
    with pytest.raises(ValueError, match=message("design=[nan] in row 7", "Leave")):
        trainer.append_simulations(**changed(stored, "design", torch.nan))


def test_one_less_than_the_batch_is_the_most_contrast_there_is(stored):
    trainer = make().append_simulations(**stored)
    with pytest.raises(ValueError, match=message("num_contrastive=50", "50", "Use")):
        trainer.train(training_batch_size=50, num_contrastive=50)
    with pytest.raises(ValueError, match=message("=0", "=0", "nothing to train")):
        trainer.train(num_contrastive=0, regularization_strength=0)
    trainer.train(training_batch_size=50, num_contrastive=49, max_num_epochs=1)
    assert max(trainer.summary["eig_lower_bound"]) <= math.log(50)


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
def test_a_design_that_cannot_be_is_refused(trainer, design, parts):
    with pytest.raises(ValueError, match=message(*parts)):
        trainer.build_posterior(design=design)


def test_a_superfluous_design_is_refused(stored):
    trainer = make().append_simulations(stored["theta"], stored["x"])
    with pytest.raises(ValueError, match=message("design was given", "Leave it out")):
        trainer.build_posterior(design=torch.ones(1))


@pytest.mark.parametrize("name", ["theta", "x"])
def test_a_list_is_refused_with_the_remedy(stored, name):
    values = {**stored, name: stored[name].tolist()}
    with pytest.raises(TypeError, match=message(name, "list", "torch.as_tensor")):
        make().append_simulations(**values)


def test_a_posterior_before_training_is_refused():
    with pytest.raises(RuntimeError, match=message("no likelihood yet", "train()")):
        make().build_posterior(design=torch.ones(1))
