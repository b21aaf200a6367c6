"""Units that networks of a name measure on the first simulations."""

import pickle
import warnings

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from scipy.stats import t as student_t
from torch.distributions import Cauchy, HalfCauchy, LogNormal

from sbi_boed_plugin import transformed_likelihood_nn, transformed_posterior_nn
from sbi_boed_plugin.estimators.coordinates import Units
from sbi_boed_plugin.estimators.energy import EnergyRatio
from sbi_boed_plugin.estimators.noise import reparameterize, to_noise


def columns(num=256):
    """Columns, and whether they are skewed."""
    torch.manual_seed(0)
    uniform = torch.rand(num)
    decades = 10.0 ** (6.0 * uniform - 2.0)
    spread = (torch.arange(num) + 0.5) / num
    return {
        "normal": (torch.randn(num), False),
        "far from zero": (1e4 + torch.randn(num), False),
        "exponential": (-uniform.log(), False),
        "student": (torch.from_numpy(student_t(3.0).ppf(spread)).float(), False),
        "counts with zeros": (torch.poisson(100.0 * uniform), False),
        "yes or no": ((uniform > 0.5).float(), False),
        "clipped decades": (decades.clamp(max=1e3), False),
        "constant": (torch.full((num,), 0.1), False),
        "zero": (torch.zeros(num), False),
        "decades": (decades, True),
        "negative decades": (-decades, True),
        "decades of counts": (torch.poisson(decades), True),
        # Quantiles: the largest of some draws is a matter of luck.
        "half-Cauchy": (HalfCauchy(1.0).icdf(spread), True),
        "Cauchy": (Cauchy(5.0, 1.0).icdf(spread), True),
        "log-normal": (LogNormal(0.0, 3.0).icdf(spread), True),
    }


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e-20, 1e12, 1e25])
@pytest.mark.parametrize("name", list(columns()))
def test_units_of_every_scale_are_inverted_and_have_exact_log_determinants(name, scale):
    values, skewed = columns()[name]
    values = scale * values.unsqueeze(1)
    units = Units(values)
    assert units.skewed.tolist() == [skewed]
    # Far outside of what was measured, on both sides, there are coordinates too.
    values = torch.cat([values, -values, 1e4 * values])
    in_double = pickle.loads(pickle.dumps(units)).double()
    exact = values.double().requires_grad_()
    expected = in_double(exact)
    (slope,) = torch.autograd.grad(expected.sum(), exact)
    coordinates = units(values)
    torch.testing.assert_close(coordinates, expected.float(), rtol=1e-5, atol=1e-6)
    # Where the centre is far larger than the value, digits of it are lost.
    error = 1e-6 * (values.abs() + units.centre.abs())
    largest = coordinates.abs().clamp_min(1.0)
    assert ((units.inv(coordinates) - values).abs() <= 4 * largest * error).all()
    torch.testing.assert_close(
        units.log_abs_det_jacobian(values, coordinates),
        slope.log().float(),
        rtol=1e-5,
        atol=1e-5,
    )


def test_ordinary_columns_lose_no_bit():
    values = torch.randn(500, 2) * torch.tensor([3e-13, 7e11])
    units = Units(values)
    coordinates = units(values)
    assert ((coordinates.std(dim=0) > 0.5) & (coordinates.std(dim=0) < 2.0)).all()
    assert torch.equal(units.inv(coordinates), values)
    assert torch.equal(units.scale.log2(), units.scale.log2().round())
    # Rows that are not finite do not count.
    spoiled = torch.cat([values, torch.tensor([[torch.nan, 1.0], [1.0, torch.inf]])])
    assert torch.equal(Units(spoiled).scale, units.scale)
    # Nothing to measure: as they are.
    assert torch.equal(Units(values[:1])(values), values)


@pytest.mark.parametrize("model", ["mdn", "maf", "nsf", "zuko_nsf"])
@pytest.mark.parametrize("theta_scale, x_scale", [(1e-12, 1e-20), (1e12, 1e15)])
@pytest.mark.parametrize("linear", [False, True])
def test_densities_and_their_gradients_do_not_depend_on_the_scale(
    model, theta_scale, x_scale, linear
):
    torch.manual_seed(0)
    theta, x = torch.randn(300, 1), torch.randn(300, 2)
    values, samples, slopes = [], [], []
    # Powers of two: the numbers of both are the same to the last bit.
    scales = 2.0 ** torch.tensor([theta_scale, x_scale]).log2().round()
    torch.manual_seed(1)
    plain = likelihood_nn(model)(theta, x).eval().log_prob(x.unsqueeze(0), theta)
    for s, c in ((1.0, 1.0), scales.tolist()):
        torch.manual_seed(1)
        network = transformed_likelihood_nn(model, linear_start=linear)(
            s * theta, c * x
        ).eval()
        log_prob = network.log_prob((c * x).unsqueeze(0), s * theta)
        values.append(log_prob + 2 * torch.tensor(c).log())
        samples.append(network.sample(torch.Size((5,)), s * theta) / c)
        condition = (s * theta[:20]).requires_grad_()
        moved = reparameterize(network, c * x[:20], condition)
        slopes.append(torch.autograd.grad(moved.sum() / c, condition)[0] * s)
    # A power of two changes no bit of what the network of sbi sees.
    if not linear:
        torch.testing.assert_close(values[0], plain)
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Column")
def test_a_skewed_density_integrates_to_one_and_has_noise():
    torch.manual_seed(0)
    theta = torch.randn(500, 1)
    x = LogNormal(3.0 * theta, 0.5).sample()
    network = transformed_likelihood_nn("mdn")(theta, x).eval()
    grid = torch.linspace(-30.0, 30.0, 40_001).double().sinh().float()
    with torch.no_grad():
        density = network.log_prob(grid.reshape(-1, 1, 1), theta[:1]).exp()
    assert torch.trapezoid(density[:, 0], grid).item() == pytest.approx(1.0, abs=0.01)
    noise = to_noise(network, x, theta)
    # The order of samples is the order of their noise.
    rows = x[:, 0].argsort()
    same = to_noise(network, x[rows], theta[:1].expand_as(theta))
    assert (same.diff(dim=0) >= 0).all() and noise.isfinite().all()
    # What the first simulations did not promise has a density.
    assert network.log_prob(-x.unsqueeze(0), theta).isfinite().all()


def test_skewed_data_are_told_once_and_can_stay_as_they_are():
    theta, x = torch.randn(300, 1), columns(300)["decades"][0].unsqueeze(1)
    with pytest.warns(UserWarning, match=r"Column\(s\) 0 of x .*x_transform=None"):
        network = transformed_likelihood_nn("mdn")(theta, x)
    assert network.net.input_transform.skewed.all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network = transformed_likelihood_nn("mdn", x_transform=None)(theta, x)
        # Of the data alone: told with the likelihood.
        transformed_likelihood_nn("mdn", dim_design=1)(theta, x)
        posterior = transformed_posterior_nn("mdn", x_transform=None)(theta, x)
    assert not network.net.input_transform.skewed.any()
    # As a condition no density is changed.
    assert posterior.net.condition_transform.skewed.all()
    with pytest.raises(ValueError, match="x_transform='log'"):
        transformed_likelihood_nn("mdn", x_transform="log")


def test_what_the_user_standardizes_or_embeds_stays_as_it_is():
    theta, x = 1e3 * torch.randn(300, 2), 1e3 * torch.randn(300, 2)
    seen = []

    class Embedding(torch.nn.Linear):
        def standardize(self, rows):
            seen.append(rows)

    build = transformed_likelihood_nn("mdn", embedding_net=Embedding(2, 2))
    build(theta, x)
    assert torch.equal(seen[0], theta)
    labels = torch.stack([x[:, 0], (x[:, 1] > 0).float()], dim=1)
    for model, data, kwargs in (
        ("maf", x, {"z_score_x": "structured"}),
        ("mnle", labels, {}),
    ):
        network = transformed_likelihood_nn(model, **kwargs)(theta, data)
        assert torch.equal(network.net.input_transform(data), data)


@pytest.mark.parametrize("scale", [1e-20, 1e-12, 1e12])
def test_energies_see_the_same_at_every_scale(scale):
    torch.manual_seed(0)
    theta, data = torch.randn(200, 2), torch.randn(200, 3)
    scale = 2.0 ** round(torch.tensor(scale).log2().item())
    ratios = []
    for factor in (1.0, scale):
        torch.manual_seed(1)
        energy = EnergyRatio(factor * theta, factor * data)
        torch.nn.init.normal_(energy.last.weight)
        ratios.append(energy(factor * theta, factor * data))
    torch.testing.assert_close(*ratios)
