"""In which coordinates the networks of a search work."""

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch.distributions import (
    Dirichlet,
    Independent,
    LogNormal,
    MultivariateNormal,
)
from torch.distributions.transforms import AffineTransform, ExpTransform

from sbi_boed_plugin import transformed_likelihood_nn
from sbi_boed_plugin.estimators.hybrid import HybridEstimator
from sbi_boed_plugin.estimators.transformed import (
    TransformedEstimator,
)
from sbi_boed_plugin.search.estimators import DesignEstimators, NetworkModels
from tests.oracles import LinearGaussian as Model
from tests.trainers.cases import make_trainer

LOG = ExpTransform().inv
LOW, HIGH = torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 5.0])
BOX = BoxUniform(LOW, HIGH)
POSITIVE = Independent(LogNormal(torch.zeros(2), 1.0), 1)
NORMAL = MultivariateNormal(torch.zeros(2), torch.eye(2))


def built(prior, needs, likelihood=None, **models):
    """Networks of a search, and what they were built from."""
    rows = prior.sample((300,)), torch.randn(300, 1).exp(), torch.rand(300, 1) + 0.5
    models = {"posterior": "mdn", "marginal": "mdn", **models}
    models = NetworkModels(likelihood or likelihood_nn("mdn"), **models)

    def complete(networks, needs):
        return models.complete(networks, needs, prior, rows, "cpu")

    return complete, complete(None, needs), rows


@pytest.mark.parametrize("model", ["mdn", "maf", "nsf"])
@pytest.mark.parametrize("prior", [BOX, POSITIVE], ids=["box", "positive"])
def test_posteriors_have_no_mass_outside_the_support(prior, model):
    _, networks, (theta, x, design) = built(prior, "posterior", posterior=model)
    data = torch.cat([x, design], dim=1)[:20]
    samples = networks.posterior.sample(torch.Size((500,)), data)
    closed = prior.support.check(samples.flatten(0, 1))
    # Only rounding to the end of a box is outside an open interval.
    assert closed.float().mean() > 0.999
    log_prob = networks.posterior.log_prob(theta[:20].unsqueeze(0), data)
    assert log_prob.isfinite().all()


# An untrained maf is so wide that most of its mass is at the rounded ends.
@pytest.mark.parametrize("model", ["mdn", "zuko_nsf"])
def test_densities_over_a_box_integrate_to_one(model):
    _, networks, (_, x, design) = built(BOX, "posterior", posterior=model)
    data = torch.cat([x, design], dim=1)[:1]
    # The midpoints of 400 cells in each direction.
    unit = (torch.arange(400) + 0.5) / 400
    cells = torch.cartesian_prod(unit, unit) * (HIGH - LOW) + LOW
    with torch.no_grad():
        log_prob = networks.posterior.log_prob(cells.unsqueeze(1), data)
    total = log_prob.exp().mean().item() * (HIGH - LOW).prod().item()
    assert total == pytest.approx(1.0, abs=0.02)


def test_one_dimensional_posteriors_integrate_to_one():
    prior = BoxUniform(torch.zeros(1), torch.ones(1))
    _, networks, (_, x, design) = built(prior, "posterior", posterior="nsf")
    grid = (torch.arange(20_000) + 0.5) / 20_000
    data = torch.cat([x, design], dim=1)[:1]
    with torch.no_grad():
        log_prob = networks.posterior.log_prob(grid.reshape(-1, 1, 1), data)
    assert log_prob.exp().mean().item() == pytest.approx(1.0, abs=0.01)


def test_all_networks_share_the_coordinates_of_the_likelihood():
    likelihood = transformed_likelihood_nn(
        "mdn",
        dim_design=1,
        x_transform=LOG,
        theta_transform=LOG,
        design_transform=AffineTransform(1.0, 2.0),
    )
    _, networks, (theta, x, design) = built(POSITIVE, "posterior", likelihood)
    posterior = networks.posterior
    inner = torch.cat([x.log(), 1.0 + 2.0 * design], dim=1)
    expected = posterior.net.log_prob(theta.log().unsqueeze(0), inner)
    expected = expected - theta.log().sum(dim=1)
    data = torch.cat([x, design], dim=1)
    torch.testing.assert_close(posterior.log_prob(theta.unsqueeze(0), data), expected)

    _, networks, (theta, x, design) = built(POSITIVE, "marginal", likelihood)
    marginal = networks.marginal
    expected = marginal.net.log_prob(x.log().unsqueeze(0), 1.0 + 2.0 * design)
    torch.testing.assert_close(
        marginal.log_prob(x.unsqueeze(0), design), expected - x.log().sum(dim=1)
    )


class Nameless:
    """A prior that names no support."""

    sample = staticmethod(lambda shape: torch.randn(*shape, 2))


# A simplex has fewer free values than parameters.
@pytest.mark.parametrize("prior", [NORMAL, Dirichlet(torch.ones(3)), Nameless()])
def test_parameters_without_bounds_or_a_transform_stay_as_they_are(prior):
    _, networks, (theta, *_) = built(prior, "posterior")
    assert torch.equal(networks.posterior.input_transform(theta), theta)


def test_builders_of_the_user_are_used_as_they_are():
    calls = []

    def build(first, second):
        calls.append((first.shape, second.shape))
        return likelihood_nn("mdn")(first, second)

    for needs in ("posterior", "marginal"):
        _, networks, _ = built(BOX, needs, **{needs: build})
        assert not isinstance(getattr(networks, needs), TransformedEstimator)
    # Of parameters and data with designs, and of designs and data.
    assert calls == [((300, 2), (300, 2)), ((300, 1), (300, 1))]


def test_only_what_is_missing_is_built():
    complete, networks, _ = built(BOX, None)
    assert networks.posterior is None and networks.marginal is None
    more = complete(networks, "posterior")
    assert networks.posterior is None  # a failed step keeps what there was.
    assert more.likelihood is networks.likelihood
    hybrid = complete(more, "hybrid")
    assert isinstance(hybrid.posterior, HybridEstimator)
    assert hybrid.posterior.base is more.posterior
    again = complete(hybrid, "posterior")
    assert again.posterior is hybrid.posterior
    both = complete(again, "marginal")
    assert both.posterior is hybrid.posterior and both.marginal is not None
    assert isinstance(both, DesignEstimators) and len(both.all()) == 3


@pytest.mark.parametrize("by_search", [False, True])
def test_a_saved_likelihood_is_built_as_it_was(by_search):
    """That of a search starts from a regression, that of `train` does not."""
    first, second = make_trainer(), make_trainer()
    if by_search:
        first.optimize_design(Model.simulate, num_steps=3, num_eig_samples=20)
    else:
        theta, design = Model.prior.sample((60,)), torch.rand(60, 1) + 0.5
        data = Model.simulate(theta, design)
        first.append_simulations(theta, data, design=design)
        first.train(max_num_epochs=2)
    state = first.search.state_dict()
    assert by_search == any("regression." in k for k in state["networks"]["likelihood"])
    second.search.load_state_dict(state)
    rows = torch.randn(5, 1), torch.randn(5, 1), torch.ones(5, 1)
    found = [t.search.networks.log_likelihood(*rows) for t in (first, second)]
    torch.testing.assert_close(*found)
