"""Policy gradients with exact densities, against exact derivatives."""

import pytest
import torch

from benchmarks.exact_estimators import exact_estimators, slope
from benchmarks.gradient_table import (
    batch_gradients,
    finite_difference,
    gradient_row,
    policy_at,
)
from sbi_boed_plugin.search.batch import Batch
from sbi_boed_plugin.search.gradients import (
    DATA_PATHS,
    POLICY_GRADIENTS,
    score_loss,
)
from tests.oracles import LinearGaussian as Model

FULL = [method for method in POLICY_GRADIENTS if method != "partial"]


@pytest.mark.parametrize("loc", [1.0, 3.0])
def test_the_finite_difference_is_the_derivative_of_the_closed_form(loc):
    narrow = finite_difference(loc, scale=0.02)
    exact = Model.eig_gradient(torch.tensor(loc)).item()  # 0.5 and 0.3.
    # The curvature of the information over a policy of scale 0.02 is below 1e-3.
    assert narrow == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    ("objective", "num_batches", "precision"),
    [
        ("info_nce", 60, 0.03),
        ("barber_agakov", 60, 0.03),
        pytest.param("barber_agakov", 2_000, 0.005, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("loc", [1.0, 3.0, 9.5])
@pytest.mark.parametrize("method", POLICY_GRADIENTS)
def test_gradients_are_those_of_the_exact_information(
    method, loc, objective, num_batches, precision
):
    """Except for `partial`, which is zero."""
    row = gradient_row(method, objective, loc, num_batches=num_batches)
    error, exact = row["standard_error"], row["finite_difference"]
    # The bound of Barber and Agakov is tight with the exact posterior. The slope of the
    # contrastive one with 100 contrastive samples is lower by less than 0.012.
    bias = 0.012 if objective == "info_nce" else 0.0
    if method == "partial":
        assert error < 0.01
        assert exact > 15 * error or loc > 9.0
        exact = bias = 0.0
    assert error < precision
    assert abs(row["value"] - exact) < 3.5 * error + bias + 1e-4  # rows are rounded.


@pytest.mark.parametrize("objective", ["info_nce", "barber_agakov", "marginal"])
def test_implicit_is_pathwise_where_the_likelihood_is_true(objective):
    """With the same draws: dx/dξ at fixed noise is what the simulator does."""
    gradients = []
    for method in ("implicit", "pathwise"):
        torch.manual_seed(1)
        gradients.append(
            batch_gradients(method, objective, 2.0, num_batches=3, num_contrastive=20)
        )
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_gradients_through_the_data_have_less_variance_than_the_score():
    variances = {
        method: batch_gradients(method, "barber_agakov", 3.0, num_batches=60).var()
        for method in FULL
    }
    for method in ("surrogate", "implicit", "pathwise"):
        assert variances[method] < 0.1 * variances["score"], variances


def linear_batch(design):
    theta = Model.prior.sample((len(design),))
    noise = torch.randn_like(theta)
    x = theta * design + noise
    return Batch(theta, x, design, torch.ones(len(design), dtype=torch.bool))


@pytest.mark.parametrize("method", sorted(DATA_PATHS))
def test_paths_move_the_data_as_the_model_does(method):
    """x = θ ξ + ε at fixed ε: the derivative in ξ is θ, of `partial` it is zero."""
    estimators = exact_estimators(slope, dim_theta=1, dim_design=1)
    design = torch.linspace(-3.0, 3.0, 50).unsqueeze(1).requires_grad_()
    batch = linear_batch(design)
    x = DATA_PATHS[method](batch, estimators)
    if method == "partial":
        assert not x.requires_grad
        return
    if method != "surrogate":  # draws of its own.
        torch.testing.assert_close(x, batch.x)
    (derivative,) = torch.autograd.grad(x.sum(), design)
    torch.testing.assert_close(derivative, batch.theta)


def test_pathwise_needs_a_simulator_with_a_gradient():
    batch = linear_batch(torch.ones(5, 1))
    estimators = exact_estimators(slope, dim_theta=1, dim_design=1)
    with pytest.raises(ValueError, match="(?s)gradient='pathwise'.*gradient='score'"):
        DATA_PATHS["pathwise"](batch, estimators)


def test_baseline_leaves_the_expectation_and_lowers_the_variance():
    terms = torch.tensor([1.0, 2.0, 6.0], requires_grad=True)
    log_prob = torch.zeros(3, requires_grad=True)
    score_loss(terms, log_prob).backward()
    baseline = torch.tensor([(2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2])
    torch.testing.assert_close(log_prob.grad, (baseline - terms.detach()) / 3)
    assert terms.grad is None  # The information is a constant there.

    policy = policy_at(1.0, 1.0)
    parameters = list(policy.parameters())
    with_baseline, without = [], []
    for _ in range(300):
        designs = policy.sample(torch.Size((50,)))
        with torch.no_grad():
            terms = Model.eig(designs) + 3.0
        log_prob = policy.log_prob(designs)
        losses = score_loss(terms, log_prob), -(terms * log_prob).mean()
        for loss, gradients in zip(losses, (with_baseline, without), strict=True):
            (part,) = torch.autograd.grad(loss, parameters, retain_graph=True)
            gradients.append(part.item())
    with_baseline, without = torch.tensor(with_baseline), torch.tensor(without)
    assert with_baseline.std() < 0.2 * without.std()
    error = without.std().item() / 300**0.5
    assert abs(with_baseline.mean() - without.mean()) < 4 * error
