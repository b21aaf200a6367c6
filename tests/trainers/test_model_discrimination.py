"""Which of several models is right, against quadrature."""

import math
import pickle

import pytest
import torch
from torch.distributions import MultivariateNormal

from sbi_boed_plugin import (
    ModelDiscrimination,
    TruncatedNormalPolicy,
    run_experiments,
)
from tests.trainers.cases import message

PRIOR = MultivariateNormal(torch.zeros(1), torch.eye(1))
NOISE = 0.3


def line(theta, design):
    return theta * design + NOISE * torch.randn_like(design)


def shifted_parabola(theta, design):
    return 1.0 + theta * design**2 + NOISE * torch.randn_like(design)


def make(**kwargs):
    return ModelDiscrimination(
        [(PRIOR, line), (PRIOR, shifted_parabola)],
        design_policy=TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 3.0)),
        show_progress_bars=False,
        **kwargs,
    )


def exact(design, share=0.5):
    """Information about the model, by quadrature."""
    widths = [math.hypot(design, NOISE), math.hypot(design**2, NOISE)]
    x = torch.linspace(-12.0, 12.0, 20_001).double() * max(widths)
    both = [
        torch.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
        for mean, sd in zip((0.0, 1.0), widths, strict=True)
    ]
    weights = (share, 1.0 - share)
    mixed = sum(w * p for w, p in zip(weights, both, strict=True))
    terms = [
        w * p * (p.clamp_min(1e-300) / mixed.clamp_min(1e-300)).log()
        for w, p in zip(weights, both, strict=True)
    ]
    return float(sum(terms).sum() * (x[1] - x[0]))


@pytest.mark.slow
def test_policies_tell_models_apart():
    torch.manual_seed(0)
    settings = {"num_steps": 400, "training_batch_size": 64, "num_rounds": 2}
    inference = make()
    result = inference.optimize_policy(
        num_experiments=2, max_num_simulations=4_000, **settings
    )
    # Two measurements tell more than one, and at most which model it is.
    best = max(exact(design) for design in torch.linspace(0.0, 3.0, 61).tolist())
    error = result.eig.standard_error
    assert 0.5 * best < result.eig.value < math.log(2.0) + 3 * error
    assert result.eig.bound == "barber_agakov" and set(result.bounds) == {
        "barber_agakov"
    }


@pytest.fixture(scope="module")
def searched():
    torch.manual_seed(0)
    inference = make()
    result = inference.optimize_design(method="multi_start", num_steps=300)
    return inference, result


def test_the_design_tells_models_apart(searched):
    _, result = searched
    best = max(exact(d / 50) for d in range(151))
    found, eig = exact(result.design.item()), result.eig
    assert found > 0.95 * best
    assert found - 0.05 < eig.value < found + 3 * eig.standard_error + 0.01
    assert eig.value <= math.log(2.0) and eig.bound == "barber_agakov"


def test_probabilities_and_parameters_after_data(searched):
    inference = pickle.loads(pickle.dumps(searched[0]))
    designs, x = torch.tensor([[0.5], [0.5]]), torch.tensor([[0.6], [0.8]])
    inference.observe(designs, x)
    evidences, posteriors = [], []
    for slope, shift in ((designs[:, 0], 0.0), (designs[:, 0] ** 2, 1.0)):
        residual = x[:, 0] - shift
        covariance = torch.outer(slope, slope) + NOISE**2 * torch.eye(2)
        normal = MultivariateNormal(torch.zeros(2), covariance)
        evidences.append(normal.log_prob(residual))
        variance = 1.0 / (1.0 + slope.square().sum() / NOISE**2)
        posteriors.append((variance * (slope * residual).sum() / NOISE**2, variance))
    exact_probabilities = torch.stack(evidences).softmax(dim=0)
    torch.testing.assert_close(
        inference.probabilities, exact_probabilities, atol=0.1, rtol=0.0
    )
    for model, (mean, variance) in enumerate(posteriors):
        draws = inference.parameters_of(model)
        assert draws.mean().item() == pytest.approx(mean.item(), abs=0.3)
        assert draws.std().item() == pytest.approx(variance.sqrt().item(), rel=0.3)
    inference.forget(2)
    assert inference.probabilities.tolist() == [0.5, 0.5]
    assert inference.parameters_of(0).shape == (4_096, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_sequence_ends_with_the_question(tmp_path):
    """Two models that one datum tells apart."""

    def shifted(theta, design):
        return 50.0 + line(theta, design)

    inference = ModelDiscrimination(
        [(PRIOR, line), (PRIOR, shifted)],
        design_policy=TruncatedNormalPolicy(torch.zeros(1), torch.ones(1)),
        show_progress_bars=False,
    )
    settings = {"method": "multi_start", "num_steps": 40, "num_eig_samples": 50}
    result = run_experiments(
        inference,
        inference.simulator,
        lambda design: line(torch.zeros(1, 1), design[None]),
        3,
        seed=1,
        checkpoint=tmp_path / "models.pt",
        show_progress_bar=False,
        **settings,
    )
    assert inference.probabilities.tolist() == [1.0, 0.0] and inference.is_settled
    assert len(result.records) < 3
    with pytest.raises(ValueError, match="nothing to tell apart"):
        inference.optimize_design(num_steps=1)
    with pytest.raises(NotImplementedError, match="parameters_of"):
        inference.build_posterior()


def test_models_of_different_sizes_and_probabilities():
    wide = MultivariateNormal(torch.zeros(3), torch.eye(3))
    inference = ModelDiscrimination(
        [(PRIOR, line), (wide, lambda t, d: t.sum(dim=1, keepdim=True) + d)],
        probabilities=[0.8, 0.2],
        design_policy=TruncatedNormalPolicy(torch.zeros(1), torch.ones(1)),
        show_progress_bars=False,
    )
    theta = inference.search.prior.sample((20_000,))
    assert theta.shape == (20_000, 5)
    assert theta[:, 0].mean().item() == pytest.approx(0.2, abs=0.02)
    known = math.log(0.8) + PRIOR.log_prob(theta[:, 1:2]) + wide.log_prob(theta[:, 2:])
    rows = theta[:, 0] == 0.0
    torch.testing.assert_close(
        inference.search.prior.log_prob(theta)[rows], known[rows]
    )
    theta[:, 0] = 0.5
    assert (inference.search.prior.log_prob(theta) == -torch.inf).all()
    settings = {"num_steps": 5, "num_eig_samples": 50, "method": "joint"}
    result = inference.optimize_design(**settings)
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert result.eig.value < entropy + 3 * result.eig.standard_error


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"probabilities": [0.5, 0.6]}, "sum to one"),
        ({"probabilities": [1.0]}, "2 positive numbers"),
        ({"probabilities": [0.0, 1.0]}, "2 positive numbers"),
    ],
)
def test_bad_probabilities_are_refused(settings, said):
    with pytest.raises(ValueError, match=message(said)):
        make(**settings)


def test_bad_models_are_named():
    with pytest.raises(ValueError, match="two are the least"):
        ModelDiscrimination([(PRIOR, line)])
    with pytest.raises(ValueError, match="density_estimator=None: models are"):
        ModelDiscrimination([(PRIOR, line), (PRIOR, line)], None)
    inference = make()
    with pytest.raises(ValueError, match="model=2 must be from 0 to 1"):
        inference.parameters_of(2)
    inference.simulator.simulators[1] = lambda theta, design: theta[:, 0]
    with pytest.raises(ValueError, match="simulator returned x of shape"):
        inference.optimize_design(num_steps=1)
