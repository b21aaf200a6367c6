"""Searches in other units, over decades, and with priors of heavy tails."""

import math
import warnings

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch.distributions import (
    Cauchy,
    HalfCauchy,
    Independent,
    LogNormal,
    Normal,
)
from torch.distributions.transforms import ExpTransform

from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    NRE_GKL,
    estimate_eig,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin.search.multi_start import MultiStartConfig
from tests.conftest import NoOpTracker
from tests.trainers.cases import on_box

LOG = ExpTransform().inv
FEW = MultiStartConfig(
    num_starts=16, num_climb_steps=9, num_candidates=2, num_candidate_samples=100
)


UNIT = BoxUniform(torch.zeros(1), torch.ones(1))


def make(prior, low, high, *args, **kwargs):
    return on_box(low, high, prior, *args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, search",
    [
        ("line", {"method": "multi_start", "multi_start": FEW}),
        ("line", {"objective": "gkl", "gradient": "implicit"}),
        ("label", {}),
        ("failures", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default",
)
@pytest.mark.filterwarnings("ignore:.*contain NaN or infinite")
def test_searches_find_the_same_in_other_units(kind, search):
    found = []
    # Powers of two, so that all numbers are the same up to rounding.
    for theta_scale, x_scale, width in ((0, 0, 0), (-40, -66, -40), (40, 50, 40)):
        s, c, w = (2.0**power for power in (theta_scale, x_scale, width))
        prior = BoxUniform(torch.zeros(1), s * torch.ones(1))
        if kind == "label":
            prior = Independent(torch.distributions.Bernoulli(0.5 * torch.ones(1)), 1)
            s = 1.0

        def simulator(theta, design, s=s, c=c, w=w):
            x = theta / s * design / w + 0.1 * torch.randn_like(theta)
            if kind == "failures":
                fails = torch.rand_like(theta) < theta / s
                x = torch.where(fails, torch.nan, x)
            return c * x

        torch.manual_seed(0)
        trainer = make(prior, 0.0, w)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Column")
            result = trainer.optimize_design(
                simulator,
                num_steps=30,
                training_batch_size=128,
                num_eig_samples=200,
                **search,
            )
        trainer.observe(result.design, torch.tensor([0.5 * c]), num_particles=500)
        particles = trainer.belief.particles / s
        numbers = [result.design / w, torch.tensor([result.eig.value])]
        numbers += [particles.mean(0), particles.std(0)]
        found.append(torch.cat(numbers))
    assert found[0][1] > 0.2
    # Rounding is enough for a particle to take another way.
    for numbers in found[1:]:
        torch.testing.assert_close(numbers, found[0], rtol=0.03, atol=0.03)


def growth(theta, time):
    """Size of a culture that grows from about 0.1 to 10,000, with its noise."""
    line = theta[..., :1] + theta[..., 1:] * time
    limited = line - torch.nn.functional.softplus(line - math.log(1e4))
    return LogNormal(limited, 0.2 + torch.exp(-0.5 * time))


GROWTH_PRIOR = BoxUniform(
    torch.tensor([math.log(1e-2), 0.2]), torch.tensor([math.log(1e1), 2.0])
)


def grow(theta, time):
    return growth(theta, time).sample()


def exact_growth(design):
    def log_likelihood(x, theta, time):
        return growth(theta, time).log_prob(x).sum(dim=-1)

    kwargs = {"prior": GROWTH_PRIOR, "design": design, "bound": "exact"}
    return estimate_eig(log_likelihood, grow, num_samples=1_000, **kwargs).value


@pytest.mark.slow
def test_data_over_decades_show_their_design():
    torch.manual_seed(1)
    trainer = make(GROWTH_PRIOR, 0.0, 10.0)
    with pytest.warns(UserWarning, match="x_transform=None") as told:
        result = trainer.optimize_design(grow, num_steps=200, num_eig_samples=1_000)
        trainer.optimize_design(grow, num_steps=1, num_eig_samples=10)
    assert sum("Column" in str(warning.message) for warning in told) == 1
    # Best is 2.39 at 6.0. In natural units searches end above 8, where 2.1 is right and
    # at most 1.4 is reported: the limits lie in the middle.
    exact = exact_growth(result.design)
    assert exact > 2.25
    assert 1.7 < result.eig.value < exact + 0.1


@pytest.mark.filterwarnings("ignore:Column")
def test_networks_over_decades_are_restored_in_their_coordinates():
    trainer, other = (make(GROWTH_PRIOR, 0.0, 10.0) for _ in range(2))
    trainer.optimize_design(grow, num_steps=3, num_eig_samples=40, objective="gkl")
    other.search.load_state_dict(trainer.search.state_dict())
    for name, network in trainer.search.networks.named().items():
        state = other.search.networks.named()[name].state_dict()
        for key, value in network.state_dict().items():
            assert torch.equal(state[key], value)
    # The data are skewed, not those that the network was rebuilt from.
    skewed = other.search.networks.posterior.base.net.condition_transform.skewed
    assert skewed.tolist() == [True, False]


def saturation(theta, design):
    return theta / (theta.abs() + design)


def exact_saturation(prior, design):
    """Information by quadrature over quantiles of the prior."""
    levels = (torch.arange(4_000) + 0.5) / 4_000
    theta = prior.icdf(levels.double()).unsqueeze(1)
    noise = Normal(saturation(theta, design.double()), 0.1)
    x = torch.linspace(-2.0, 2.0, 2_001, dtype=torch.float64)
    density = noise.log_prob(x).exp().mean(dim=0)
    entropy = -torch.trapezoid(torch.xlogy(density, density), x)
    return float(entropy) - 0.5 * math.log(2 * math.pi * math.e * 0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "prior",
    [HalfCauchy(1.0), Cauchy(0.0, 1.0), LogNormal(0.0, 3.0)],
    ids=["half-Cauchy", "Cauchy", "log-normal"],
)
def test_heavy_tails_leave_a_tight_lower_bound(prior):
    torch.manual_seed(0)
    trainer = make(Independent(prior.expand((1,)), 1), 0.1, 3.0)
    result = trainer.optimize_design(
        lambda theta, design: saturation(theta, design) + 0.1 * torch.randn_like(theta),
        num_steps=150,
        num_eig_samples=2_000,
    )
    exact = exact_saturation(prior, result.design)
    error = result.eig.standard_error
    assert exact - 0.25 < result.eig.value < exact + 4 * error
    # At the design found nothing but the ratio to it matters.
    trainer.observe(result.design, torch.tensor([0.5]), num_particles=1_000)
    median = trainer.belief.particles.median() / result.design
    assert 0.7 < median < 1.4


def stored(num=400):
    theta, design = torch.rand(num, 1), torch.rand(num, 1) + 0.5
    return theta, (10.0 ** (6.0 * theta * design)) * (1 + torch.rand(num, 1)), design


@pytest.mark.parametrize("trainer", [NLE_INCE, NPE_GKL, NRE_GKL])
@pytest.mark.parametrize("scale", [1e-12, 1e20])
def test_scales_out_of_reach_are_told_with_the_remedy(trainer, scale):
    theta, x = torch.rand(50, 2), torch.randn(50, 2)
    with pytest.warns(UserWarning, match=r"Column\(s\) 0, 1 of theta.*other units"):
        trainer().append_simulations(scale * theta, x)
    x[:, 1] *= scale
    with pytest.warns(UserWarning, match=r"Column\(s\) 1 of x"):
        trainer().append_simulations(theta, x)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Column")
        constant = torch.full_like(x, scale)
        trainer().append_simulations(theta, constant)
        if trainer is NLE_INCE:
            trainer(None, transformed_likelihood_nn("mdn")).append_simulations(theta, x)
        if trainer is NPE_GKL:
            trainer(None, transformed_posterior_nn("mdn")).append_simulations(theta, x)


def test_a_search_with_a_network_of_sbi_is_told_too():
    trainer = make(UNIT, 0.0, 1.0, likelihood_nn("mdn"))
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 of x .*transformed_like"):
        trainer.optimize_design(
            lambda theta, design: 1e-12 * (theta + design + torch.rand_like(theta)),
            num_steps=2,
            num_eig_samples=10,
        )


def test_the_transform_of_the_data_can_be_chosen():
    theta, x, design = stored()
    for given, expected in ((LOG, x.log()), (None, x)):
        trainer = make(UNIT, 0.5, 1.5, x_transform=given)
        trainer.append_simulations(theta, x, design=design)
        network = trainer.train(max_num_epochs=1)
        assert torch.equal(network.input_transform(x), expected)
        assert not network.net.input_transform.skewed.any()
    with pytest.raises(ValueError, match="x_transform='logs'"):
        make(UNIT, 0.5, 1.5, x_transform="logs")
    with pytest.raises(ValueError, match="x_transform=None is for networks"):
        make(UNIT, 0.5, 1.5, likelihood_nn("mdn"), x_transform=None)


@pytest.mark.parametrize("with_design", [False, True])
def test_flows_of_one_value_are_told_to_be_gaussian(with_design):
    theta = torch.randn(60, 2)
    design = torch.rand(60, 1) if with_design else None
    inference = NLE_INCE(
        Independent(Normal(torch.zeros(2), 1.0), 1), "maf", tracker=NoOpTracker()
    )
    with pytest.warns(UserWarning, match="Use 'nsf' or 'mdn'"):
        inference.append_simulations(theta, theta[:, :1], design=design)
        inference.train(max_num_epochs=1, num_contrastive=1)
