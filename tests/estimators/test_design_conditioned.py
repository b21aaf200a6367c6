import pickle

import pytest
import torch
from sbi.inference import NLE
from sbi.neural_nets import likelihood_nn

from sbi_boed_plugin import DesignConditionedEstimator
from tests.conftest import NoOpTracker


@pytest.fixture(params=["mdn", "made", "maf", "nsf", "zuko_nsf"])
def estimator(request):
    return likelihood_nn(request.param)(torch.randn(100, 3), torch.randn(100, 2)).eval()


def test_each_observation_has_its_design(estimator):
    designs = torch.tensor([[-1.0], [0.0], [2.0]])
    fixed = DesignConditionedEstimator(estimator, designs)
    assert fixed.condition_shape == (2,) and fixed.input_shape == (2,)
    x, theta = torch.randn(3, 1, 2).expand(3, 4, 2), torch.randn(4, 2)
    values = fixed.log_prob(x, theta)
    for i, design in enumerate(designs):
        rows = torch.cat([theta, design.expand(4, 1)], dim=-1)
        expected = estimator.log_prob(x[i : i + 1], rows)[0]
        torch.testing.assert_close(values[i], expected, atol=1e-5, rtol=1e-4)


def test_one_design_serves_all_observations(estimator):
    fixed = DesignConditionedEstimator(estimator, torch.tensor([0.5]))
    x, theta = torch.randn(5, 4, 2), torch.randn(4, 2)
    values = fixed.log_prob(x, theta)
    assert values.shape == (5, 4)
    rows = torch.cat([theta, torch.full((4, 1), 0.5)], dim=-1)
    for i in range(5):
        expected = estimator.log_prob(x[i : i + 1], rows)[0]
        torch.testing.assert_close(values[i], expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        fixed.loss(x[0], theta), -values[0], atol=1e-5, rtol=1e-4
    )


def test_samples_follow_their_designs():
    condition = torch.rand(4_000, 2) * 4
    x = condition.sum(dim=1, keepdim=True) + 0.1 * torch.randn(4_000, 1)
    inference = NLE(
        density_estimator="mdn", tracker=NoOpTracker(), show_progress_bars=False
    )
    network = inference.append_simulations(condition, x).train(
        max_num_epochs=40, learning_rate=5e-3
    )
    designs = torch.tensor([[0.5], [3.0]])
    fixed = DesignConditionedEstimator(network, designs)
    theta = torch.tensor([[1.0], [2.0], [3.0]])
    samples = fixed.sample(torch.Size((500, 2)), theta)
    assert samples.shape == (500, 2, 3, 1)
    expected = designs.unsqueeze(1) + theta.unsqueeze(0)
    torch.testing.assert_close(samples.mean(dim=0), expected, atol=0.15, rtol=0)
    with pytest.raises(ValueError, match="must end with 2"):
        fixed.sample(torch.Size((5,)), theta)
    single = DesignConditionedEstimator(network, designs[0])
    assert single.sample(torch.Size((7,)), theta).shape == (7, 3, 1)


def test_wrong_numbers_are_named(estimator):
    fixed = DesignConditionedEstimator(estimator, torch.zeros(3, 1))
    with pytest.raises(ValueError, match="2 rows.*3 designs"):
        fixed.log_prob(torch.randn(2, 4, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"design has shape \(1, 3\)"):
        DesignConditionedEstimator(estimator, torch.zeros(3))
    with pytest.raises(ValueError, match="must be finite"):
        DesignConditionedEstimator(estimator, torch.tensor([torch.nan]))
    with pytest.raises(ValueError):
        fixed.log_prob(torch.randn(3, 4, 5), torch.randn(4, 2))


def test_pickle_and_device(estimator):
    fixed = DesignConditionedEstimator(estimator, torch.zeros(3, 1))
    copy = pickle.loads(pickle.dumps(fixed))
    x, theta = torch.randn(3, 1, 2), torch.randn(1, 2)
    assert torch.equal(copy.log_prob(x, theta), fixed.log_prob(x, theta))
    assert "design" in dict(fixed.named_buffers())
    assert fixed.double().design.dtype == torch.float64
