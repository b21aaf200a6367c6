"""Networks that do not know of the last observation are not used as if they did."""

import pytest
import torch
from sbi.utils import BoxUniform

from sbi_boed_plugin import MultiStartConfig, TruncatedNormalPolicy
from sbi_boed_plugin._prior import draw_parameters
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import make_trainer, on_box

DESIGN, X = torch.tensor([2.0]), torch.tensor([[2.4]])
FEW = {"num_steps": 5, "num_eig_samples": 50, "num_eig_contrastive": 31}
SEARCH = MultiStartConfig(num_starts=16, num_climb_steps=3, num_candidate_samples=50)
MANY = {**FEW, "method": "multi_start", "multi_start": SEARCH}


def make():
    return on_box(0.5, 3.0)


def test_a_multi_start_search_trains_again_where_networks_are_stale():
    inference = make()
    inference.optimize_design(Model.simulate, **MANY)
    again = inference.optimize_design(Model.simulate, **{**MANY, "num_steps": None})
    assert again.config.num_steps == 0
    inference.observe(DESIGN, X)
    # The likelihood serves after an observation, the posterior does not.
    after = inference.optimize_design(
        Model.simulate, **{**MANY, "num_steps": None}, max_num_simulations=400
    )
    assert after.config.objective == "info_nce" and after.config.num_steps == 0
    assert inference.search.serves_all_designs("info_nce")
    assert not inference.search.serves_all_designs("barber_agakov")
    with pytest.raises(RuntimeError, match="trained before the last observation"):
        inference.estimate_eig(Model.simulate, DESIGN, objective="barber_agakov")


def test_direct_takes_one_observation_into_account_and_says_so():
    inference = make()
    inference.optimize_design(Model.simulate, **FEW)
    inference.observe(DESIGN, X)
    before = inference.build_posterior(sample_with="direct")
    theta = torch.zeros(1, 1)
    value = before.log_prob(theta)
    inference.optimize_design(Model.simulate, **FEW)
    assert torch.equal(before.log_prob(theta), value), "a later search changed it"
    inference.observe(DESIGN, X)
    inference.observe(DESIGN, X)
    with pytest.raises(ValueError, match="3 observations.*trained after 1"):
        inference.build_posterior(sample_with="direct")


def test_a_budget_too_small_for_a_step_is_an_error_every_time():
    inference = make()
    inference.optimize_design(Model.simulate, **FEW)
    # Nor do networks of a policy that has become narrow serve all designs.
    assert not inference.search.serves_all_designs("barber_agakov")
    for objective in ("barber_agakov", "info_nce"):
        with pytest.raises(ValueError, match="max_num_simulations=60 is too few"):
            inference.optimize_design(
                Model.simulate, **FEW, objective=objective, max_num_simulations=60
            )


def test_draws_on_the_edge_of_a_prior_are_drawn_again():
    """In single precision some uniform draws are rounded to where the density is 0."""
    prior = BoxUniform(torch.tensor([1_000.0]), torch.tensor([1_001.0]))
    torch.manual_seed(0)
    plain = prior.sample((400_000,))
    same = torch.isfinite(prior.log_prob(plain))
    assert not same.all(), "the trap is gone"
    torch.manual_seed(0)
    theta = draw_parameters(prior, 400_000)
    assert torch.isfinite(prior.log_prob(theta)).all()
    assert torch.equal(theta[same], plain[same])


@pytest.mark.slow
def test_failures_do_not_bend_the_likelihood():
    """x itself says nothing of theta, but half of the thetas mostly fail."""

    def simulate(theta, design):
        x = torch.randn_like(theta)
        fails = (theta < 0.0) & (torch.rand_like(theta) < 0.9)
        return torch.where(fails, torch.nan, x)

    torch.manual_seed(0)
    inference = make()
    with pytest.warns(UserWarning, match="NaN or infinite"):
        inference.optimize_design(simulate, num_steps=300, num_eig_samples=500)
    likelihood = inference._neural_net.eval()
    condition = torch.tensor([[-1.0, 2.0], [1.0, 2.0]])
    density = likelihood.net.log_prob(torch.zeros(1, 2, 1), condition).exp()
    # Under the parameters that fail there are few data, hence the width.
    assert density[0].tolist() == pytest.approx([0.399, 0.399], abs=0.08)
    success = likelihood.log_success(condition).exp()
    assert success.tolist() == pytest.approx([0.1, 1.0], abs=0.04)
    spread = likelihood.sample(torch.Size((2_000,)), condition).std(dim=0)
    assert spread.flatten().tolist() == pytest.approx([1.0, 1.0], abs=0.3)


@pytest.mark.slow
def test_a_multi_start_search_stays_inside_the_box():
    inference = on_box(0.1, 0.7)
    for num_steps in (5, 0, 0, 0, 0):
        settings = {**MANY, "num_steps": num_steps or None}
        result = inference.optimize_design(Model.simulate, **settings)
        support = inference.design_policy.support
        assert all(support.check(design) for design, _ in result.candidates)


def test_a_policy_without_parameters_is_for_multi_start_alone():
    policy = TruncatedNormalPolicy(torch.tensor([0.5]), torch.tensor([3.0]))
    policy.requires_grad_(False)
    inference = make_trainer(Model.prior, policy)
    with pytest.raises(ValueError, match="without parameters.*multi_start"):
        inference.optimize_design(Model.simulate, **FEW)
    result = inference.optimize_design(Model.simulate, **MANY)
    assert policy.support.check(result.design)


def test_a_search_that_was_interrupted_left_no_networks_for_all_designs():
    inference = make()
    calls = iter(range(100))

    def interrupted(theta, design):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return Model.simulate(theta, design)

    with pytest.raises(KeyboardInterrupt):
        inference.optimize_design(interrupted, **MANY)
    assert not inference.search.serves_all_designs()
    inference.optimize_design(Model.simulate, **MANY, resume_training=True)
    assert inference.search.serves_all_designs()
