"""Samples move with their condition as at fixed noise."""

import warnings

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from torch.distributions.transforms import ExpTransform
from torch.nn.functional import logsigmoid

from benchmarks.exact_estimators import exact_estimators, straight_line
from sbi_boed_plugin.estimators import TransformedEstimator
from sbi_boed_plugin.estimators.noise import reparameterize, to_noise

MODELS = ["maf", "nsf", "zuko_maf", "zuko_nsf", "mdn"]
NUM = 20


@pytest.fixture(autouse=True)
def _double():
    """Flows of nflows make tensors of the default type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(model, dim, *, seed=0):
    """An estimator in double precision that depends on its condition visibly."""
    torch.manual_seed(seed)
    condition, input = torch.randn(200, 2), 2.0 * torch.randn(200, dim) + 1.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "In one-dimensional output space")
        estimator = likelihood_nn(model)(condition, input).double().eval()
    for parameter in estimator.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
        parameter.requires_grad_(False)
    return estimator


def draw(estimator, num=NUM):
    condition = torch.randn(num, 2).double()
    with torch.no_grad():
        return estimator.sample(torch.Size((1,)), condition)[0].double(), condition


def jacobian(values, argument):
    """Derivatives of every row, of shape (batch, dim, dim of the argument)."""
    columns = [
        torch.autograd.grad(values[:, j].sum(), argument, retain_graph=True)[0]
        for j in range(values.shape[1])
    ]
    return torch.stack(columns, dim=1)


def jacobian_in_input(estimator, input, condition):
    input = input.detach().requires_grad_()
    return jacobian(to_noise(estimator, input, condition), input)


def at_noise(estimator, noise, start, condition):
    """Solve T(x; c) = z for x by Newton's method."""
    x = start
    for _ in range(8):
        step = (to_noise(estimator, x, condition) - noise).unsqueeze(-1)
        slope = jacobian_in_input(estimator, x, condition)
        x = (x - torch.linalg.solve(slope, step).squeeze(-1)).detach()
    assert (to_noise(estimator, x, condition) - noise).abs().max() < 1e-11
    return x


def assert_moves_at_fixed_noise(estimator, input, condition, rtol=1e-4):
    """The derivative in every value of the condition is the finite difference."""
    noise = to_noise(estimator, input, condition).detach()
    condition = condition.requires_grad_()
    moving = reparameterize(estimator, input, condition)
    torch.testing.assert_close(moving.detach(), input)
    slope = jacobian(moving, condition)
    step = 1e-6  # small, since networks of rectifiers have kinks.
    for k in range(condition.shape[1]):
        change = torch.zeros_like(condition)
        change[:, k] = step
        above, below = (
            at_noise(estimator, noise, input, (condition + s * change).detach())
            for s in (1.0, -1.0)
        )
        difference = (above - below) / (2 * step)
        # What is left of Newton's method and rounding, 1e-11, over the step.
        torch.testing.assert_close(slope[:, :, k], difference, rtol=rtol, atol=1e-4)
    assert slope.abs().max() > 1e-2  # there is something to follow.


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_samples_follow_the_condition_at_fixed_noise(model, dim):
    estimator = build(model, dim)
    assert_moves_at_fixed_noise(estimator, *draw(estimator))


@pytest.mark.parametrize("model", ["maf", "mdn", "zuko_nsf"])
def test_in_other_coordinates_too(model):
    log = ExpTransform().inv
    inner = build(model, 2)
    estimator = TransformedEstimator(inner, log, log)
    input, condition = (values.exp() for values in draw(inner, 500))
    # Far out in units of the data, rounding counts. Of maf a twentieth is near.
    inside = (input.log().abs() < 4).all(dim=1).nonzero()[:NUM, 0]
    assert len(inside) > 2
    assert_moves_at_fixed_noise(estimator, input[inside], condition[inside], rtol=1e-3)


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_noise_is_what_the_density_is_made_of(model, dim):
    """The change of variables from Normal noise, or logistic noise of a mixture."""
    estimator = build(model, dim)
    input, condition = draw(estimator)
    log_prob = estimator.log_prob(input.unsqueeze(0), condition)[0]
    noise = to_noise(estimator, input, condition)
    if model == "mdn":
        expected = (logsigmoid(noise) + logsigmoid(-noise)).sum(dim=-1)
    else:
        expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(dim=-1)
    slope = jacobian_in_input(estimator, input, condition)
    expected = expected + torch.linalg.slogdet(slope)[1]
    # sbi adds a small number to the diagonal of a mixture's precisions.
    rtol = 2e-4 if model == "mdn" else 1e-6
    torch.testing.assert_close(log_prob, expected, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("model", ["mdn", "maf"])
def test_noise_does_not_depend_on_the_condition(model):
    estimator = build(model, 2)
    condition = torch.randn(4_000, 2).double()
    with torch.no_grad():
        input = estimator.sample(torch.Size((1,)), condition)[0].double()
        noise = to_noise(estimator, input, condition)
    noise = torch.sigmoid(noise) if model == "mdn" else torch.special.ndtr(noise)
    both = torch.cat([noise, condition], dim=1).T
    correlation = torch.corrcoef(both)[:2] - torch.eye(4)[:2]
    # Four standard errors of a correlation of 4,000 pairs, and of a uniform mean.
    assert correlation.abs().max() < 4 / 4_000**0.5
    assert (noise.mean(dim=0) - 0.5).abs().max() < 4 / (12 * 4_000) ** 0.5
    assert (noise.var(dim=0) - 1 / 12).abs().max() < 0.005


def test_mixtures_keep_a_gradient_in_the_tails():
    """Also in single precision, in which a simulator's data may be far out."""
    estimator = build("mdn", 1).float()
    condition = torch.randn(4, 2, dtype=torch.float32, requires_grad=True)
    input = torch.tensor([[60.0], [-60.0], [1e4], [-1e4]], dtype=torch.float32)
    moving = reparameterize(estimator, input, condition)
    (gradient,) = torch.autograd.grad(moving.sum(), condition)
    assert torch.isfinite(gradient).all() and (gradient != 0).any(dim=1).all()


def test_estimators_may_bring_their_own_noise():
    estimators = exact_estimators(straight_line, dim_theta=2, dim_design=3)
    theta, design = torch.randn(NUM, 2).double(), torch.randn(NUM, 3).double()
    condition = torch.cat([theta, design], dim=1).requires_grad_()
    noise = torch.randn(NUM, 3).double()
    x = theta[:, :1] + theta[:, 1:] * design + noise
    torch.testing.assert_close(to_noise(estimators.likelihood, x, condition), noise)
    # Several samples of each condition are handed over as rows.
    several = to_noise(estimators.likelihood, torch.stack([x, x + 2.0]), condition)
    torch.testing.assert_close(several, torch.stack([noise, noise + 2.0]))
    moving = reparameterize(estimators.likelihood, x, condition)
    (gradient,) = torch.autograd.grad(moving.sum(), condition)
    of_theta = torch.full((NUM, 1), 3.0), design.sum(dim=1, keepdim=True)
    expected = torch.cat([*of_theta, theta[:, 1:].expand(-1, 3)], dim=1)
    torch.testing.assert_close(gradient, expected)
    data = torch.cat([x, design], dim=1)
    assert_moves_at_fixed_noise(estimators.posterior, theta, data)


def test_made_is_refused():
    estimator = build("made", 2)
    input, condition = torch.randn(5, 2).double(), torch.randn(5, 2).double()
    with pytest.raises(NotImplementedError, match="(?s)NFlowsFlow.*gradient='score'"):
        reparameterize(estimator, input, condition.requires_grad_())
    with pytest.raises(NotImplementedError, match="'maf', 'nsf', 'mdn'"):
        to_noise(TransformedEstimator(estimator), input, condition)
