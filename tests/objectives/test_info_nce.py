import math

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from torch.distributions import Normal

from sbi_boed_plugin.objectives.info_nce import (
    contrastive_bound,
    in_batch_contrast,
    info_nce_loss,
    log_likelihood_matrix,
)


def test_in_batch_contrast_draws_every_other_row_equally_often_and_once():
    theta = torch.arange(10.0).unsqueeze(1)
    together = torch.cat([theta.unsqueeze(0), in_batch_contrast(theta, 9)]).squeeze(-1)
    assert torch.equal(together.sort(dim=0).values, theta.expand(10, 10))
    counts = torch.zeros(5)
    for _ in range(2_000):
        drawn = in_batch_contrast(theta[:5], 1)[0, 0].long()
        counts += torch.bincount(drawn, minlength=5)
    assert counts[0] == 0
    # Binomial(2000, 1/4) has standard deviation 19; allow four.
    assert (counts[1:] - 500).abs().max() < 4 * 19.4


@pytest.mark.parametrize("num_contrastive", [-1, 4, 7])
def test_in_batch_contrast_needs_more_rows_than_contrasts(num_contrastive):
    with pytest.raises(ValueError, match=f"num_contrastive={num_contrastive}"):
        in_batch_contrast(torch.zeros(4, 2), num_contrastive)


@pytest.mark.parametrize("model", ["mdn", "made", "maf", "nsf", "zuko_nsf"])
def test_chunks_agree_with_a_loop_in_values_and_gradients(model):
    theta, x = torch.randn(64, 3), torch.randn(64, 2)
    estimator = likelihood_nn(model)(theta, x)
    x, conditions, sizes = x[:6], torch.randn(5, 6, 3), []

    def log_prob(input, condition):
        sizes.append(len(condition))
        return estimator.log_prob(input, condition)

    def gradients(matrix):
        loss = info_nce_loss(matrix, 0.1).mean()
        return torch.autograd.grad(loss, list(estimator.parameters()))

    loop = torch.stack([estimator.log_prob(x[None], c)[0] for c in conditions])
    expected = gradients(loop)
    for size in (30, 13, 1):
        sizes.clear()
        matrix = log_likelihood_matrix(log_prob, x, conditions, max_pairs=size)
        torch.testing.assert_close(matrix, loop, atol=1e-4, rtol=1e-4)
        found = gradients(matrix)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert max(sizes) <= size


def test_sampled_pairs_have_the_values_and_in_expectation_the_gradient_of_all():
    theta = torch.randn(64, 2)
    slope = torch.eye(2).requires_grad_()
    x = theta @ slope.detach() + torch.randn(64, 2)
    conditions = torch.cat([theta[None], in_batch_contrast(theta, 31)])
    sizes = []

    def log_prob(input, condition):
        if torch.is_grad_enabled():
            sizes.append(condition.shape[0])
        return Normal(condition @ slope, 1.0).log_prob(input).sum(-1)

    def evaluate(sampled):
        sizes.clear()
        matrix = log_likelihood_matrix(log_prob, x, conditions, sampled=sampled)
        loss = info_nce_loss(matrix, 1.0).mean()
        return matrix, torch.autograd.grad(loss, slope)[0]

    dense, expected = evaluate(False)
    assert sizes == [32 * 64]
    found = []
    for _ in range(400):
        matrix, gradient = evaluate(True)
        found.append(gradient)
        torch.testing.assert_close(matrix, dense, atol=1e-4, rtol=1e-5)
        assert sum(sizes) < 4 * 64
    gradients = torch.stack(found)
    error = gradients.std(dim=0) / 400**0.5
    assert ((gradients.mean(dim=0) - expected).abs() < 4.0 * error).all()


@pytest.mark.parametrize("options", [{"use_batch_norm": True}, {}])
def test_densities_that_depend_on_the_batch_are_taken_from_one_pass(options):
    theta = torch.randn(256, 2)
    x = 5 * theta + torch.randn(256, 2)
    estimator = likelihood_nn("maf", **options)(theta, x).train()
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        estimator.loss(x, theta).mean().backward()
        optimizer.step()
    conditions = torch.cat([theta[None], in_batch_contrast(theta, 15)])
    dense = log_likelihood_matrix(estimator.log_prob, x, conditions)
    sampled = log_likelihood_matrix(estimator.log_prob, x, conditions, sampled=True)
    torch.testing.assert_close(sampled, dense, atol=5e-3, rtol=5e-3)


def test_bound_is_capped_and_zero_without_contrast():
    first = torch.tensor([[100.0, -100.0]], dtype=torch.float64)
    bound = contrastive_bound(torch.cat([first, -first.expand(7, 2)]))
    assert bound[0] == pytest.approx(math.log(8))
    assert bound[1] < 0
    assert torch.equal(contrastive_bound(torch.randn(1, 5)), torch.zeros(5))


def test_loss_is_the_formula_and_its_bound_blind_to_the_data_alone():
    matrix, factor = torch.randn(4, 10, dtype=torch.float64), torch.randn(10).double()
    expected = -1.3 * matrix[0] + torch.log(matrix.exp().sum(dim=0) / 4)
    torch.testing.assert_close(info_nce_loss(matrix, 0.3), expected)
    torch.testing.assert_close(
        contrastive_bound(matrix + factor), contrastive_bound(matrix)
    )
    difference = info_nce_loss(matrix, 0.5) - info_nce_loss(matrix + factor, 0.5)
    torch.testing.assert_close(difference, 0.5 * factor)
