import pytest
import torch

from sbi_boed_plugin import CategoricalPolicy
from tests.policies.expectations import by_score, simulated, smooth

CANDIDATES = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, -0.5], [1e-9, 1e6]])
LOGITS = torch.tensor([0.5, -1.0, 1.0, 0.0])


def policy():
    this = CategoricalPolicy(CANDIDATES)
    this.logits.data = LOGITS.clone()
    return this


def test_probabilities_mode_and_samples_are_those_of_the_weights():
    this, probabilities = policy(), LOGITS.softmax(dim=0)
    torch.testing.assert_close(this.log_prob(CANDIDATES).exp(), probabilities)
    torch.testing.assert_close(this.describe()["probabilities"], probabilities)
    assert this.mode.tolist() == [0.0, -0.5]
    assert CategoricalPolicy(CANDIDATES).probabilities.tolist() == [0.25] * 4
    samples = this.sample((20_000,))
    for candidate, p in zip(CANDIDATES, probabilities.tolist(), strict=True):
        share = (samples == candidate).all(dim=1).float().mean().item()
        assert share == pytest.approx(p, abs=4 * (p * (1 - p) / 20_000) ** 0.5)


def test_score_gradient_is_that_of_the_expectation():
    candidates = CANDIDATES[:3].double()
    this = CategoricalPolicy(candidates)
    mean, error = simulated(this, by_score)
    expected = (this.probabilities * smooth(candidates)).sum()
    (exact,) = torch.autograd.grad(expected, this.logits)
    assert error.max() < 0.01
    assert ((mean - exact).abs() < 4.5 * error).all()


def test_support_is_the_list_of_candidates():
    this = policy()
    others = torch.tensor([[0.0, 1.001], [2.0, -0.5], [2e-9, 1e6], [torch.nan, 1.0]])
    assert this.support.is_discrete and this.support.event_dim == 1
    assert "1000000.0" in str(this.support)
    mixed = torch.cat([CANDIDATES, others]).reshape(2, 4, 2)
    expected = [[True] * 4, [False] * 4]
    assert this.support.check(mixed).tolist() == expected
    log_prob = this.log_prob(mixed)
    assert log_prob.isfinite().tolist() == expected
    # The gradient is finite beside designs that agree with none.
    total = log_prob.clamp_min(-1e3).sum()
    expected = this.log_prob(CANDIDATES).sum()
    gradients = [torch.autograd.grad(each, this.logits) for each in (total, expected)]
    torch.testing.assert_close(*gradients)


def test_designs_may_pass_through_single_precision():
    candidates = torch.rand(20, 3, dtype=torch.float64) * 1e3
    this = CategoricalPolicy(candidates)
    assert this.support.check(candidates.float().double()).all()
    assert this.log_prob(candidates.float()).isfinite().all()
