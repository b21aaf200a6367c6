"""What users get wrong on the way to a posterior.

Messages name the argument, its value and what to do.
"""

import numpy as np
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


def with_value(name, row, value):
    """Change one value of the simulations."""

    def change(stored):
        stored[name][row, -1] = value

    return change


def with_rows(name, num_rows):
    def change(stored):
        stored[name] = stored[name][:num_rows]

    return change


def with_two_values(stored):
    stored["design"] = stored["design"].expand(60, 2)


@pytest.mark.parametrize(
    "change, parts",
    [
        (with_value("x", 5, torch.nan), ("1 NaN", "NLE_INCE does not allow")),
        (with_value("x", 5, torch.inf), ("1 Inf", "NLE_INCE does not allow")),
        (with_rows("theta", 59), ("theta", "(59, 2)", "(60, 1)")),
        (with_rows("design", 59), ("theta", "(60, 2)", "(59, 1)")),
        (with_rows("x", 59), ("theta has 60 rows and x 59",)),
        (with_two_values, ("design", "(60, 2)", "1)")),
        (with_value("design", 7, 0.4), ("design=[0.4", "support", "Use a policy")),
        (
            with_value("design", 7, 2.5),
            ("design=[2.5]", "support", "0.5", "2.", "Use a policy"),
        ),
        (with_value("design", 7, -torch.inf), ("design", "infinite")),
        (with_value("design", 7, torch.inf), ("design", "infinite")),
        (with_value("design", 7, torch.nan), ("design=[nan] in row 7", "Leave such")),
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


def test_parameters_must_be_tensors_as_in_sbi(stored):
    stored["theta"] = stored["theta"].numpy()
    with pytest.raises(
        (AssertionError, TypeError, ValueError), match=message("theta", "Tensor")
    ):
        make().append_simulations(**stored)


def test_later_simulations_have_designs_like_the_first(stored):
    trainer = make(**NO_POLICY).append_simulations(**stored)
    with pytest.raises(ValueError, match=message("design=None", "1 values", "Pass")):
        trainer.append_simulations(stored["theta"], stored["x"])
    without = make().append_simulations(stored["theta"], stored["x"])
    with pytest.raises(ValueError, match=message("design was given", "Leave it out")):
        without.append_simulations(**stored)
    with_two_values(stored)
    with pytest.raises(ValueError, match=message("design", "(60, 2)", "1)")):
        trainer.append_simulations(**stored)


def test_designs_that_are_nan_are_refused_without_a_policy(stored):
    stored["design"][7] = torch.nan
    with pytest.raises(ValueError, match=message("design=[nan] in row 7", "Leave")):
        make(**NO_POLICY).append_simulations(**stored)


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy])
def test_designs_may_be_any_array(stored, convert):
    expected = torch.cat([stored["theta"], stored["design"]], dim=1)
    stored["design"] = convert(stored["design"])
    trainer = make().append_simulations(**stored)
    assert torch.equal(trainer.get_simulations()[0], expected)


# --- Training -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, parts",
    [
        ({"num_contrastive": -1}, ("num_contrastive=-1", "at least 0")),
        ({"num_contrastive": 50}, ("num_contrastive=50", "50", "Use fewer")),
        ({"num_contrastive": 54}, ("num_contrastive=54", "50", "Use fewer")),
        ({"num_contrastive": 2.5}, ("num_contrastive=2.5",)),
        ({"regularization_strength": -0.1}, ("strength=-0.1", "between 0 and")),
        ({"regularization_strength": np.nan}, ("regularization_strength=nan", "must")),
        ({"regularization_strength": np.inf}, ("regularization_strength=inf", "must")),
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


def test_one_less_than_the_batch_is_the_most_contrast_there_is(stored):
    trainer = make().append_simulations(**stored)
    trainer.train(training_batch_size=50, num_contrastive=49, max_num_epochs=1)
    assert max(trainer.summary["eig_lower_bound"]) <= np.log(50)


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
