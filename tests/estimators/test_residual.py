"""Networks of what a linear regression leaves of the first simulations."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_boed_plugin import transformed_likelihood_nn, transformed_posterior_nn
from sbi_boed_plugin.estimators.noise import reparameterize, to_noise
from sbi_boed_plugin.estimators.residual import LinearRegression, ResidualEstimator


def measured(num, num_measurements=3):
    """Return `(theta, design)` and data of a straight line, with shared noise."""
    theta, design = torch.randn(num, 2), 4.0 * torch.rand(num, num_measurements) - 2.0
    shared = torch.randn(num, 1)
    noise = 0.1 * shared + 0.1 * torch.randn(num, num_measurements)
    mean = 3.0 + theta[:, :1] + theta[:, 1:] * design
    return torch.cat([theta, design], dim=-1), mean + noise


def test_residuals_of_what_is_linear_are_the_noise():
    torch.manual_seed(0)
    condition, x = measured(2_000)
    regression = LinearRegression(x, condition, dim_design=3)
    condition, x = measured(2_000)
    left = regression.residuals(x, condition)
    torch.testing.assert_close(left.T.cov(), torch.eye(3), atol=0.1, rtol=0.0)
    covariance = regression.factor @ regression.factor.T
    expected = 0.01 * (1.0 + torch.eye(3))
    torch.testing.assert_close(covariance, expected, atol=3e-3, rtol=0.0)


@pytest.mark.parametrize("num", [1, 2, 20, 26])
def test_few_simulations_give_no_slope_that_is_luck(num):
    torch.manual_seed(1)
    condition, x = torch.randn(num, 4), torch.randn(num, 3)
    regression = LinearRegression(x, condition, dim_design=1)
    # 8 features with the products, 5 without.
    fitted = regression.weight.abs().sum(dim=1) > 0.0
    assert int(fitted.sum()) == (5 if num == 26 else 0)
    condition, x = measured(200)
    assert torch.isfinite(regression(condition[:, :4])).all()


def test_columns_that_repeat_or_never_vary_do_no_harm():
    condition, x = measured(400)
    # The mean of 0.3 is another number in single precision.
    condition = torch.cat([condition, condition[:, :1], torch.full((400, 1), 0.3)], 1)
    x = torch.cat([x, x[:, :1], torch.full((400, 1), 0.7)], dim=-1)
    x[7, 0], condition[8, 1] = torch.nan, torch.inf
    regression = LinearRegression(x, condition)
    condition[:, -1] = 0.31
    left = regression.residuals(x[10:], condition[10:])
    assert torch.isfinite(left).all() and left.abs().max() < 1e3


def test_data_and_parameters_may_be_far_from_zero():
    torch.manual_seed(4)
    condition, x = measured(1_000)
    condition[:, 2:] += 100.0  # of which products have a mean of their own.
    near = LinearRegression(x, condition, dim_design=3)
    far = LinearRegression(x + 1e4, condition, dim_design=3)
    torch.testing.assert_close(near.factor, far.factor, rtol=0.05, atol=1e-3)
    difference = far(condition) - near(condition)
    torch.testing.assert_close(difference, torch.full_like(x, 1e4), rtol=1e-5, atol=0.1)


def test_a_step_is_small_in_units_of_the_noise():
    """Of precise data, a step in units of the data would be thousands of deviations."""
    torch.manual_seed(5)
    theta = torch.randn(1_000, 2)
    x = theta @ torch.randn(2, 3) + 1e-3 * torch.randn(1_000, 3)
    estimator = transformed_likelihood_nn("mdn", linear_start=True)(theta, x)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=5e-3)
    losses = []
    for _ in range(2):
        loss = estimator.loss(x, theta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0] + 0.1


@pytest.mark.parametrize("model", ["maf", "nsf", "mdn", "zuko_nsf"])
def test_density_of_draws_is_that_of_the_network_in_other_coordinates(model):
    condition, x = measured(500)
    outer = transformed_likelihood_nn(model, dim_design=3, linear_start=True)(
        condition, x
    ).eval()
    estimator = outer.net.net
    assert isinstance(estimator, ResidualEstimator)
    with torch.no_grad():
        draws = estimator.sample(torch.Size((5, 2)), condition[:7]).reshape(10, 7, 3)
        found = estimator.log_prob(draws, condition[:7])
        inner = estimator.input_of_net(draws, condition[:7])
        expected = estimator.net.log_prob(inner, condition[:7])
        factor = estimator.regression.factor
        torch.testing.assert_close(found, expected - factor.diagonal().log().sum())
        losses = estimator.loss(draws[0], condition[:7])
        torch.testing.assert_close(losses, -found[0])
        noise = to_noise(estimator, draws, condition[:7])
        torch.testing.assert_close(noise, to_noise(estimator.net, inner, condition[:7]))


def test_samples_at_fixed_noise_move_with_the_regression():
    torch.manual_seed(2)
    condition, x = measured(2_000)
    estimator = transformed_likelihood_nn("mdn", dim_design=3, linear_start=True)(
        condition, x
    ).eval()
    given = condition[:50].clone().requires_grad_()
    moved = reparameterize(estimator, x[:50], given)
    slope = torch.autograd.grad(moved[:, 0].sum(), given)[0]
    # An untrained network adds its own slope, a part of the noise, to that of the line.
    torch.testing.assert_close(slope[:, 0], torch.ones(50), atol=0.3, rtol=0.0)
    torch.testing.assert_close(slope[:, 1], condition[:50, 2], atol=0.3, rtol=0.0)


def test_a_linear_posterior_is_nearly_known_before_training():
    torch.manual_seed(3)
    prior, matrix = MultivariateNormal(torch.zeros(2), torch.eye(2)), torch.randn(2, 5)
    theta = prior.sample((3_000,))
    x = theta @ matrix + 0.1 * torch.randn(3_000, 5)
    precision = torch.eye(2) + matrix @ matrix.T / 0.01
    mean = (x @ matrix.T / 0.01) @ precision.inverse()
    exact = MultivariateNormal(mean, precision_matrix=precision).log_prob(theta).mean()
    estimator = transformed_posterior_nn("mdn", linear_start=True)(theta, x).eval()
    with torch.no_grad():
        found = estimator.log_prob(theta.unsqueeze(0), x).mean()
    # By a flow, whose layers begin with any scales, it is missed by nats.
    assert float(exact - found) < 0.05


def test_what_a_user_standardizes_or_embeds_keeps_its_own_coordinates():
    condition, x = measured(300)
    for kwargs in ({"z_score_theta": "none"}, {"embedding_net": torch.nn.Identity()}):
        build = transformed_likelihood_nn(
            "maf", dim_design=3, linear_start=True, **kwargs
        )
        parts = build(condition, x).modules()
        assert not any(isinstance(part, ResidualEstimator) for part in parts)


def test_a_mixture_has_features_of_its_condition_that_follow_from_a_linear_start():
    condition, x = measured(300)
    for linear_start in (False, True):
        build = transformed_likelihood_nn(
            "mdn", dim_design=3, linear_start=linear_start
        )
        parts = build(condition, x).modules()
        assert any(isinstance(part, torch.nn.SiLU) for part in parts) == linear_start
