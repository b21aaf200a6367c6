"""Designs in conditions: estimators at fixed designs."""

import pickle

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn

from sbi_boed_plugin import DesignConditionedEstimator
from sbi_boed_plugin.estimators.design_conditioned import join, posterior_at_design
from sbi_boed_plugin.estimators.noise import sample_with_noise, to_noise


@pytest.fixture(params=["mdn", "made", "maf", "nsf", "zuko_nsf"])
def estimator(request):
    return likelihood_nn(request.param)(torch.randn(100, 3), torch.randn(100, 2)).eval()


def assert_each_row_is_that_of(estimator, fixed, x, theta, designs):
    values = fixed.log_prob(x, theta)
    assert values.shape == x.shape[:2]
    for value, row, design in zip(values, x.split(1), designs, strict=True):
        expected = estimator.log_prob(row, join(theta, design))[0]
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
    return values


def test_each_observation_has_its_design(estimator):
    designs = torch.tensor([[-1.0], [0.0], [2.0]])
    fixed = DesignConditionedEstimator(estimator, designs)
    assert fixed.condition_shape == (2,) and fixed.input_shape == (2,)
    x, theta = torch.randn(3, 1, 2).expand(3, 4, 2), torch.randn(4, 2)
    assert_each_row_is_that_of(estimator, fixed, x, theta, designs)
    copy = pickle.loads(pickle.dumps(fixed))
    assert torch.equal(copy.log_prob(x, theta), fixed.log_prob(x, theta))
    assert "design" in dict(fixed.named_buffers())
    assert fixed.double().design.dtype == torch.float64


def test_each_design_may_have_its_estimator():
    condition, x = torch.randn(100, 3), torch.randn(100, 2)
    one, other = (likelihood_nn("mdn")(condition, x).eval() for _ in range(2))
    designs = torch.tensor([[-1.0], [0.0], [2.0]])
    fixed = DesignConditionedEstimator([one, other, one], designs)
    theta = torch.randn(4, 2)
    values = fixed.log_prob(x[:3].unsqueeze(1), theta)
    for row, estimator in enumerate((one, other, one)):
        expected = estimator.log_prob(x[row].expand(1, 4, 2), join(theta, designs[row]))
        torch.testing.assert_close(values[row], expected[0])
    with pytest.raises(NotImplementedError, match="estimator each"):
        fixed.sample(torch.Size((3,)), theta)
    with pytest.raises(ValueError, match="2 estimators for 3 designs"):
        DesignConditionedEstimator([one, other], designs)


def test_one_design_serves_all_observations(estimator):
    fixed = DesignConditionedEstimator(estimator, torch.tensor([0.5]))
    x, theta = torch.randn(5, 4, 2), torch.randn(4, 2)
    designs = torch.full((5, 1), 0.5)
    values = assert_each_row_is_that_of(estimator, fixed, x, theta, designs)
    loss = fixed.loss(x[0], theta)
    torch.testing.assert_close(loss, -values[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("model", ["maf", "mdn"])
def test_a_posterior_at_one_design_knows_its_noise(model):
    theta, data = torch.randn(100, 2), torch.randn(100, 3)
    posterior = posterior_nn(model)(theta, data).eval()
    design = torch.tensor([0.5])
    fixed = posterior_at_design(posterior, design)
    x = data[:4, :2]
    given, inputs = join(x, design), theta[:8].reshape(2, 4, 2)
    noise = to_noise(posterior, inputs, given)
    assert torch.equal(to_noise(fixed, inputs, x), noise)
    torch.manual_seed(0)
    samples = fixed.sample(torch.Size((7,)), x)
    torch.manual_seed(0)
    drawn, noise = sample_with_noise(fixed, 7, x)
    assert torch.equal(drawn, samples)
    expected = to_noise(posterior, samples, given)
    torch.testing.assert_close(noise, expected, rtol=1e-3, atol=1e-3)
    log_prob = fixed.log_prob(inputs, x)
    torch.testing.assert_close(log_prob, posterior.log_prob(inputs, given))
    with pytest.raises(ValueError, match="has one design"):
        posterior_at_design(posterior, torch.zeros(2, 1))


def test_samples_follow_their_designs(estimator):
    designs = torch.tensor([[-1.0], [2.0]])
    fixed, theta = DesignConditionedEstimator(estimator, designs), torch.randn(3, 2)
    torch.manual_seed(0)
    samples = fixed.sample(torch.Size((5, 2)), theta)
    assert samples.shape == (5, 2, 3, 2)
    rows = torch.cat([join(theta, design) for design in designs])
    torch.manual_seed(0)
    expected = estimator.sample(torch.Size((5,)), rows)
    assert torch.equal(samples, expected.reshape(5, 2, 3, 2))
    with pytest.raises(ValueError, match="must end with 2"):
        fixed.sample(torch.Size((5,)), theta)
    single = DesignConditionedEstimator(estimator, designs[0])
    assert single.sample(torch.Size((7,)), theta).shape == (7, 3, 2)


def test_wrong_numbers_are_named(estimator):
    fixed = DesignConditionedEstimator(estimator, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="2 rows.*3 designs"):
        fixed.log_prob(torch.randn(2, 4, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="3 designs"):
        fixed.loss(torch.randn(4, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"design has shape \(1, 3\)"):
        DesignConditionedEstimator(estimator, torch.zeros(3))
    with pytest.raises(ValueError, match="must be finite"):
        DesignConditionedEstimator(estimator, torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match="Shape of input"):
        fixed.log_prob(torch.randn(3, 4, 5), torch.randn(4, 2))
