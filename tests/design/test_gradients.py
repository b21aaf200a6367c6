"""Policy gradients under the true likelihood, against exact derivatives."""

import pytest
import torch

from sbi_boed_plugin import TruncatedNormalPolicy
from sbi_boed_plugin.design.gradients import (
    leave_one_out_baseline,
    partial_loss,
    score_loss,
)
from sbi_boed_plugin.objectives.info_nce import (
    contrastive_bound,
    in_batch_contrast,
    log_likelihood_matrix,
)
from tests.oracles import LinearGaussian as Model

LOW, HIGH = -10.0, 10.0


def policy_at(loc, scale):
    return TruncatedNormalPolicy(
        torch.tensor([LOW]), torch.tensor([HIGH]), loc=torch.tensor([loc]), scale=scale
    )


def information(designs, num_contrastive):
    """Terms of the bound at simulations from the true model, data held fixed."""
    theta = Model.prior.sample(designs.shape[:1])
    x = Model.simulate(theta, designs.detach())
    contrast = torch.cat(
        [theta.unsqueeze(0), in_batch_contrast(theta, num_contrastive)]
    )
    conditions = torch.cat([contrast, designs.expand(*contrast.shape)], dim=-1)
    return contrastive_bound(log_likelihood_matrix(Model.log_prob, x, conditions))


def gradient_per_location(
    method, loc, scale, num_batches, num_designs, num_contrastive
):
    """Mean and standard error of the gradient in the location, in nats per unit."""
    policy = policy_at(loc, scale)
    gradients = []
    for _ in range(num_batches):
        if method == "score":
            designs = policy.sample(torch.Size((num_designs,)))
            with torch.no_grad():
                terms = information(designs, num_contrastive)
            loss = score_loss(terms, policy.log_prob(designs))
        else:
            designs = policy.rsample(torch.Size((num_designs,)))
            loss = partial_loss(
                information(designs, num_contrastive), policy.log_prob(designs.detach())
            )
        (gradient,) = torch.autograd.grad(loss, list(policy.parameters()))
        gradients.append(-gradient.item() / (HIGH - LOW))
    gradients = torch.tensor(gradients)
    return gradients.mean().item(), gradients.std().item() / num_batches**0.5


def finite_difference(loc, scale, step=1e-2):
    """Derivative of the exact information, averaged over the policy by quadrature."""

    def average(loc):
        policy = policy_at(loc, scale).double()
        grid = torch.linspace(LOW, HIGH, 20_001, dtype=torch.float64).unsqueeze(1)
        density = policy.log_prob(grid).exp().detach()
        return torch.trapezoid(density * Model.eig(grid), grid.squeeze(1)).item()

    return (average(loc + step) - average(loc - step)) / (2 * step)


@pytest.mark.parametrize("loc", [1.0, 3.0, 9.5])
def test_score_agrees_with_finite_differences_of_the_exact_information(loc):
    scale = 0.02
    # With so many contrastive samples the bound's own slope differs by less than 0.003.
    value, error = gradient_per_location("score", loc, scale, 80, 1_000, 500)
    exact = finite_difference(loc, scale)
    print(f"score at {loc}: {value:.3f} ± {error:.3f}, finite difference {exact:.3f}")
    assert error < 0.01
    assert abs(value - exact) < 3 * error


@pytest.mark.parametrize("loc", [1.0, 3.0])
def test_partial_is_zero_where_the_likelihood_is_true(loc):
    value, error = gradient_per_location("partial", loc, 0.001, 20, 2_000, 100)
    print(f"partial at {loc}: {value:.3f} ± {error:.3f}")
    assert error < 0.01
    assert abs(value) < 3 * error
    assert Model.eig_gradient(torch.tensor(loc)) > 20 * error


def test_baseline_leaves_the_expectation_and_lowers_the_variance():
    values = torch.tensor([1.0, 2.0, 6.0])
    expected = torch.tensor([(2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2])
    torch.testing.assert_close(leave_one_out_baseline(values), expected)

    policy = policy_at(1.0, 0.05)
    with_baseline, without = [], []
    for _ in range(300):
        designs = policy.sample(torch.Size((50,)))
        with torch.no_grad():
            terms = Model.eig(designs) + 3.0
        log_prob = policy.log_prob(designs)
        losses = score_loss(terms, log_prob), -(terms * log_prob).mean()
        for loss, gradients in zip(losses, (with_baseline, without), strict=True):
            gradients.append(
                torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)[
                    0
                ].item()
            )
    with_baseline, without = torch.tensor(with_baseline), torch.tensor(without)
    assert with_baseline.std() < 0.2 * without.std()
    error = without.std().item() / 300**0.5
    assert abs(with_baseline.mean() - without.mean()) < 4 * error


def test_score_does_not_differentiate_the_information():
    designs = torch.rand(8, 1, requires_grad=True)
    log_prob = torch.randn(8, requires_grad=True)
    score_loss(designs.squeeze(1) ** 2, log_prob).backward()
    assert designs.grad is None
    assert log_prob.grad is not None
