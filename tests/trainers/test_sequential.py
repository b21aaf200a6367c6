"""Experiments one after another: beliefs, bad input and posteriors."""

import copy
import pickle
import warnings

import pytest
import torch
from torch.distributions import Independent, Normal

from sbi_boed_plugin import estimate_eig
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import message, on_box

DESIGN, X = torch.tensor([2.0]), torch.tensor([[2.4]])
FEW = {"num_steps": 5, "num_eig_samples": 50, "num_eig_contrastive": 31}


def make():
    return on_box(0.5, 3.0, policy={"scale": (1.0, 0.5)})


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    inference = make()
    inference.optimize_design(Model.simulate, num_steps=300)
    return inference


@pytest.fixture
def inference(trained):
    torch.manual_seed(0)
    return copy.deepcopy(trained)


def assert_posterior(samples, *observations, mean_error=0.1, std_error=0.15):
    """Mean and standard deviation in closed form, of experiments `(design, x)`.

    The learned likelihood is off by a few hundredths.
    """
    precision = 1.0 + sum(d**2 for d, _ in observations)
    mean = sum(d * x for d, x in observations) / precision
    assert samples.mean().item() == pytest.approx(mean, abs=mean_error)
    assert samples.std().item() == pytest.approx(precision**-0.5, rel=std_error)


def test_the_belief_is_the_posterior_and_counts_no_datum_twice(inference):
    inference.observe(DESIGN, X)
    assert_posterior(inference.belief.particles, (2.0, 2.4))
    # What a second measurement would tell, given the first: by the closed form.
    eig = inference.estimate_eig(Model.simulate, DESIGN, seed=0)
    expected = 0.5 * torch.log(torch.tensor(9.0 / 5.0)).item()
    assert eig.value == pytest.approx(expected, abs=0.08)

    inference.observe(torch.tensor([1.0]), torch.tensor([1.5]))
    # Without a design, the posterior is that of all observations.
    samples = inference.build_posterior().sample((1_000,), show_progress_bars=False)
    particles = inference.belief.particles
    for found in (samples, particles):
        assert_posterior(found, (2.0, 2.4), (1.0, 1.5))
    assert particles.mean().item() == pytest.approx(samples.mean().item(), abs=0.06)


def test_each_observation_keeps_its_likelihood(inference):
    # In one call or one after another, the same likelihood is kept once.
    inference.observe(DESIGN.repeat(2, 1), X.repeat(2, 1)).observe(DESIGN, X)
    first, *_, last = inference.observations
    assert first.likelihood_estimator is last.likelihood_estimator
    theta = torch.linspace(-1.0, 2.0, 5).unsqueeze(1)
    before = first.log_likelihood(theta)
    inference.optimize_design(Model.simulate, **FEW)
    inference.observe(DESIGN, X)
    last = inference.observations[-1]
    assert last.likelihood_estimator is not first.likelihood_estimator
    assert torch.equal(first.log_likelihood(theta), before)
    # One likelihood per observation, in one posterior.
    expected = Model.prior.log_prob(theta) + sum(
        o.log_likelihood(theta) for o in inference.observations
    )
    found = inference.build_posterior().potential(theta)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_amortised_posterior_is_there_at_once(inference):
    posterior = inference.build_posterior(design=DESIGN, sample_with="direct")
    torch.manual_seed(0)
    samples = posterior.sample((4_000,), x=X, show_progress_bars=False)
    # Trained for a few seconds over all designs.
    assert_posterior(samples, (2.0, 2.4), mean_error=0.15, std_error=0.25)
    mean, std = torch.tensor(0.96), 0.2**0.5
    log_prob = posterior.log_prob(mean.reshape(1, 1), x=X)
    expected = Normal(mean, std).log_prob(mean).item()
    assert log_prob.item() == pytest.approx(expected, abs=0.3)
    batch = posterior.sample_batched((7,), x=X.repeat(3, 1), show_progress_bars=False)
    assert batch.shape == (7, 3, 1)
    last = inference.observe(DESIGN, X).build_posterior(sample_with="direct")
    assert torch.equal(last.default_x, X)
    samples = pickle.loads(pickle.dumps(last)).sample((2,), show_progress_bars=False)
    assert samples.shape == (2, 1)


def test_surprising_data_are_told_and_can_be_taken_back(inference):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inference.observe(DESIGN, X)
    assert inference.observations[0].predictive_p_value > 0.1
    before = inference.belief
    # The next search begins with the policy as it was at first.
    torch.testing.assert_close(inference.design_policy.mode, torch.tensor([1.75]))
    with pytest.raises(RuntimeError, match="no design optimization to resume"):
        inference.optimize_design(Model.simulate, resume_training=True)
    # 20 predictive standard deviations from anything simulated.
    with pytest.warns(UserWarning, match=message("x=[45", "design=[2", "forget()")):
        inference.observe(DESIGN, torch.tensor([[45.0]]))
    assert inference.observations[1].predictive_p_value < 0.001
    torch.manual_seed(1)
    inference.forget()
    assert len(inference.observations) == 1
    # Made anew from the observation that is left.
    assert not torch.equal(inference.belief.particles, before.particles)
    assert_posterior(inference.belief.particles, (2.0, 2.4))
    assert inference.forget().belief is None
    assert inference.observations == ()
    for number in (0, 1, -1):
        with pytest.raises(ValueError, match=f"num_observations={number} must be"):
            inference.forget(number)


def test_networks_that_learned_from_what_is_forgotten_go_too(inference):
    direct = {"design": DESIGN, "sample_with": "direct"}
    inference.observe(DESIGN, X).forget()
    inference.build_posterior(**direct)  # trained before the observation.
    inference.observe(DESIGN, X)
    inference.optimize_design(Model.simulate, **FEW)
    inference.forget().observe(DESIGN, -X)
    with pytest.raises(RuntimeError, match="needs the posterior that"):
        inference.build_posterior(**direct)
    with pytest.raises(RuntimeError, match="no estimators"):
        inference.estimate_eig(Model.simulate, DESIGN, objective="barber_agakov")
    inference.optimize_design(Model.simulate, **FEW)
    inference.build_posterior(**direct)


class Spike(torch.nn.Module):
    """A likelihood that a network might have learned: of very few parameters."""

    def __init__(self, net):
        super().__init__()
        self.net, self.input_shape, self.sample = net, net.input_shape, net.sample

    def log_prob(self, input, condition):
        return -1e9 * (condition[..., 0] - 0.3).abs().expand(input.shape[:2])


def test_an_update_that_would_collapse_changes_nothing(inference):
    inference.observe(DESIGN, X)
    belief, mode = inference.belief, inference.design_policy.mode.clone()
    inference._neural_net = Spike(inference._neural_net)
    with pytest.raises(ValueError, match="different particles"):
        inference.observe(torch.ones(2, 1), torch.ones(2, 1))
    assert inference.belief is belief and len(inference.observations) == 1
    assert torch.equal(inference.design_policy.mode, mode)


def test_what_is_missing_is_told():
    inference = make()
    with pytest.raises(RuntimeError, match="optimize_design"):
        inference.observe(DESIGN, X)
    inference.optimize_design(Model.simulate, objective="info_nce", **FEW)
    with pytest.raises(RuntimeError, match="objective='barber_agakov'"):
        inference.build_posterior(design=DESIGN, sample_with="direct")


@pytest.mark.parametrize(
    ("design", "x", "parts"),
    [
        (torch.ones(2), X, ("design", "(2,)")),
        (torch.tensor([9.0]), X, ("design=[9.0]", "support")),
        (torch.tensor([torch.nan]), X, ("design", "NaN")),
        (DESIGN, torch.ones(1, 2), ("x has shape (1, 2)", "(1, 1)")),
        (DESIGN, torch.ones(3, 1), ("x has shape (3, 1)", "one row per row")),
        (DESIGN, torch.tensor([torch.inf]), ("x=", "finite")),
    ],
)
def test_observations_that_do_not_fit_are_named_and_change_nothing(
    inference, design, x, parts
):
    with pytest.raises(ValueError, match=message(*parts)):
        inference.observe(design, x)
    assert inference.observations == ()
    assert inference.belief is None


def test_a_trainer_with_observations_pickles(inference):
    inference.observe(DESIGN, X)
    with pytest.warns(UserWarning, match="pickled"):
        loaded = pickle.loads(pickle.dumps(inference))
    theta = torch.zeros(1, 1)
    assert torch.equal(loaded.belief.particles, inference.belief.particles)
    assert torch.equal(loaded.belief.log_prob(theta), inference.belief.log_prob(theta))


@pytest.mark.slow
def test_information_after_an_observation_is_no_fit_to_particles():
    """Of data that tell nothing, networks must not report what they know by heart."""

    def noise(theta, design):
        return torch.randn(len(theta), 1)

    torch.manual_seed(0)
    prior = Independent(Normal(torch.zeros(2), 1.0), 1)
    inference = on_box(0.5, 3.0, prior)
    inference.optimize_design(noise, **FEW)
    inference.observe(DESIGN, X, num_particles=32)
    result = inference.optimize_design(noise, num_steps=300)
    # The posterior network has learned its 32 parameters by heart.
    by_heart = estimate_eig(
        result.posterior_estimator,
        noise,
        prior=inference.belief,
        design=result.design,
        bound="barber_agakov",
    )
    assert by_heart.value > 0.3
    assert result.eig.value < 0.1
