"""Posteriors: every way of sampling, several observations and designs, analysis."""

import pytest
import torch
from sbi.inference.posteriors.base_posterior import NeuralPosterior

from tests.contract_cases import (
    DIM_THETA,
    QUIET,
    draw,
    for_cases,
    for_each_case,
    for_each_sampler,
    seed_everything,
    trained,
    trained_estimator,
)

with_designs = for_cases(lambda case: case.has_designs and not case.like_npe)


def log_potential(case, theta, x_o, design=None):
    """Log-prior plus one term per observation, at its own design or at the only one."""
    total = case.prior().log_prob(theta)
    for index, x in enumerate(x_o):
        parameters = theta
        if design is not None:
            own = design[index if len(design) > 1 else 0]
            parameters = torch.cat([theta, own.expand(len(theta), -1)], dim=-1)
        rows = x.expand(len(theta), -1)
        total = total + case.log_term(trained_estimator(case), parameters, rows)
    return total


@for_each_sampler
def test_samples_are_parameters_and_the_default_x_is_used_where_none_is_given(
    case, sampler
):
    x_o = case.observe()
    posterior = case.build_posterior(trained(case), sampler)
    assert isinstance(posterior, NeuralPosterior)
    with pytest.raises(ValueError, match="default"):
        posterior.sample((2,), **QUIET)
    assert posterior.set_default_x(x_o) is posterior
    seed_everything()
    samples = draw(posterior, 8)
    assert samples.shape == (8, DIM_THETA)
    assert case.prior().log_prob(samples).isfinite().all()
    again = case.build_posterior(trained(case), sampler)
    seed_everything()
    assert torch.equal(samples, draw(again, 8, x=x_o))


@for_each_sampler
@pytest.mark.filterwarnings("ignore:.*unnormalized", "ignore:.*log_prob")
def test_densities_can_be_evaluated_and_maximised(case, sampler):
    posterior = case.build_posterior(trained(case), sampler)
    posterior.set_default_x(case.observe())
    if sampler == "vi":
        draw(posterior)
    theta = case.prior().sample((200,))
    potential = posterior.potential(theta)
    assert potential.shape == posterior.log_prob(theta[:5]).repeat(40).shape == (200,)
    expected = log_potential(case, theta, case.observe(), case.designs())
    assert torch.allclose(potential, expected, atol=1e-4)
    assert posterior.potential(torch.full((1, DIM_THETA), 9.0)).item() == -torch.inf
    few = {"num_iter": 10, "num_to_optimize": 10, "num_init_samples": 50}
    mode = posterior.map(**few, **QUIET)
    assert mode.shape == (1, DIM_THETA)
    assert posterior.potential(mode) >= potential.quantile(0.9)


@for_each_case
def test_the_posterior_does_not_follow_later_training(case):
    trainer = case.trainer_of(60)
    posterior = case.build_posterior(trainer).set_default_x(case.observe())
    theta = case.prior().sample((5,))
    before = posterior.potential(theta)
    case.train(trainer)
    assert torch.equal(posterior.potential(theta), before)
    later = case.build_posterior(trainer).set_default_x(case.observe())
    assert not torch.equal(later.potential(theta), before)


@for_each_case
def test_an_estimator_and_a_prior_can_be_handed_over(case):
    # One design may come without its batch dimension.
    kwargs = {"design": case.designs()[0]} if case.has_designs else {}
    posterior = case.make(prior=None).build_posterior(
        trained_estimator(case), case.prior(), "rejection", **kwargs
    )
    theta, x_o = case.prior().sample((5,)), case.observe()
    potential = posterior.set_default_x(x_o).potential(theta)
    expected = log_potential(case, theta, x_o, case.designs())
    assert torch.allclose(potential, expected, atol=1e-4)


@for_cases(lambda case: not case.like_npe)
def test_repeated_observations_add_up(case):
    theta, x_o = case.prior().sample((6,)), case.observe(4)
    posterior = case.build_posterior(trained(case)).set_default_x(x_o)
    expected = log_potential(case, theta, x_o, case.designs())
    assert torch.allclose(posterior.potential(theta), expected, atol=1e-4)
    assert draw(posterior, 3).shape == (3, DIM_THETA)


@with_designs
def test_each_observation_has_its_own_design(case):
    theta, x_o, designs = case.prior().sample((6,)), case.observe(3), case.designs(3)
    posterior = case.build_posterior(trained(case), num_designs=3).set_default_x(x_o)
    expected = log_potential(case, theta, x_o, designs)
    assert torch.allclose(posterior.potential(theta), expected, atol=1e-4)
    # Exchanging designs changes the answer: each belongs to one row.
    other = log_potential(case, theta, x_o, designs.flip(0))
    assert not torch.allclose(other, expected, atol=1e-2)
    for num_rows in (1, 2, 4):
        with pytest.raises(ValueError, match=f"has {num_rows} rows.*3 designs"):
            draw(posterior, x=case.observe(num_rows))


@for_each_case
def test_batches_pair_parameters_with_observations(case):
    posterior = case.build_posterior(trained(case), "mcmc")
    samples = posterior.sample_batched((3,), x=case.observe(2), **QUIET)
    assert samples.shape == (3, 2, DIM_THETA)
    assert case.prior().log_prob(samples).isfinite().all()
    theta, x_o = case.prior().sample((3,)), case.observe(3)
    potential = posterior.potential_fn
    potential.set_x(x_o, x_is_iid=False)
    pairs = [(theta[i : i + 1], x_o[i : i + 1]) for i in range(3)]
    expected = [log_potential(case, *pair, case.designs()) for pair in pairs]
    assert torch.allclose(potential(theta).flatten(), torch.cat(expected), atol=1e-4)
