"""Densities and samples of estimators in other coordinates."""

import pickle

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    ExpTransform,
)

from sbi_boed_plugin import transformed_likelihood_nn
from sbi_boed_plugin.estimators import TransformedEstimator

LOG = ExpTransform().inv


@pytest.mark.parametrize("model", ["nsf", "zuko_nsf", "mdn", "made"])
def test_density_in_natural_units_integrates_to_one(model):
    theta, x = torch.rand(500, 2) + 0.5, torch.randn(500, 1).exp()
    build = transformed_likelihood_nn(
        model, dim_design=1, x_transform=LOG, theta_transform=LOG
    )
    estimator = build(theta, x).eval()
    grid = torch.linspace(-12, 12, 20_001).exp()
    density = estimator.log_prob(grid.reshape(-1, 1, 1), theta[:1]).exp().detach()
    total = torch.trapezoid(density.squeeze(1), grid).item()
    assert total == pytest.approx(1.0, abs=0.01)


def test_log_prob_is_the_change_of_variables():
    theta, x = torch.randn(200, 2), torch.randn(200, 3).exp()
    inner = likelihood_nn("maf")(theta, x.log())
    outer = TransformedEstimator(inner, LOG)
    expected = inner.log_prob(x.log().unsqueeze(0), theta) - x.log().sum(-1)
    torch.testing.assert_close(outer.log_prob(x.unsqueeze(0), theta), expected)
    torch.testing.assert_close(outer.loss(x, theta), -expected[0])


def test_only_the_transformed_part_of_the_condition_changes():
    theta, design, x = torch.rand(300, 1) + 1, torch.rand(300, 1), torch.randn(300, 1)
    condition = torch.cat([theta, design], dim=-1)
    transforms = {"theta_transform": LOG, "design_transform": AffineTransform(1.0, 2.0)}
    build = transformed_likelihood_nn("mdn", dim_design=1, **transforms)
    estimator = build(condition, x)
    inner_condition = torch.cat([theta.log(), 1 + 2 * design], dim=-1)
    expected = estimator.net.log_prob(x.unsqueeze(0), inner_condition)
    found = estimator.log_prob(x.unsqueeze(0), condition)
    torch.testing.assert_close(found, expected)


def test_samples_are_in_natural_units_and_it_pickles():
    theta, x = torch.randn(300, 1), torch.randn(300, 1).exp()
    build = transformed_likelihood_nn(likelihood_nn_mdn, x_transform=LOG)
    estimator = pickle.loads(pickle.dumps(build))(theta, x)
    samples = estimator.sample(torch.Size((100,)), theta[:2])
    assert samples.shape == (100, 2, 1) and (samples > 0).all()
    copy, pairs = pickle.loads(pickle.dumps(estimator)), (x.unsqueeze(0), theta)
    assert torch.equal(copy.log_prob(*pairs), estimator.log_prob(*pairs))


def test_no_sample_is_rounded_onto_the_edge_of_its_space():
    # In single precision exp(y) - 1 is -1 below y = -17, where its logarithm is not.
    from_above_minus_one = ComposeTransform([AffineTransform(1.0, 1.0), LOG])
    torch.manual_seed(0)
    theta, y = torch.randn(300, 1), -10.0 + 4.0 * torch.randn(300, 2)
    estimator = transformed_likelihood_nn("mdn", x_transform=from_above_minus_one)(
        theta, y.double().exp().float() - 1.0 + 1e-6
    )
    inner = estimator.net.sample(torch.Size((500,)), theta)
    assert (from_above_minus_one.inv(inner) == -1.0).any()
    samples = estimator.sample(torch.Size((500,)), theta)
    assert samples.shape == (500, 300, 2)
    assert estimator.log_prob(samples, theta).isfinite().all()


def likelihood_nn_mdn(theta, x):
    return likelihood_nn("mdn")(theta, x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_values", [128, 129])
def test_matrices_of_a_huge_mixture_are_told(num_values):
    theta, x = torch.randn(20, 2), torch.randn(20, num_values)
    build = transformed_likelihood_nn("mdn", num_components=1)
    if num_values == 128:
        build(theta, x)
        return
    with pytest.raises(UserWarning, match="129 x 129.*density_estimator='maf'"):
        build(theta, x)
