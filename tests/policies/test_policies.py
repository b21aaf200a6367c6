import pickle

import pytest
import torch
from scipy.stats import truncnorm

from sbi_boed_plugin import ScaleSchedule, TruncatedNormalPolicy


def policy(low=0.0, high=100.0, loc=30.0, scale=0.1):
    low, high, loc = (torch.tensor([value]) for value in (low, high, loc))
    return TruncatedNormalPolicy(low, high, loc=loc, scale=scale)


@pytest.mark.parametrize("loc", [0.0, 2.0, 50.0, 99.9, 100.0])
@pytest.mark.parametrize("scale", [0.01, 0.3, 5.0])
def test_density_is_scipys_and_integrates_to_one(loc, scale):
    this = policy(loc=loc, scale=scale)
    width = 100.0 * scale
    reference = truncnorm(-loc / width, (100.0 - loc) / width, loc, width)
    grid = torch.linspace(0.0, 100.0, 20_001)
    density = this.log_prob(grid.unsqueeze(1)).exp().detach()
    torch.testing.assert_close(
        density.double(), torch.from_numpy(reference.pdf(grid.double().numpy())),
        atol=1e-5, rtol=1e-3,
    )  # fmt: skip
    assert torch.trapezoid(density, grid).item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("loc", [0.0, 50.0, 100.0])
def test_samples_follow_the_density(loc):
    this = policy(loc=loc, scale=0.2)
    samples = this.sample(torch.Size((20_000,)))
    assert this.support.check(samples).all()
    assert not samples.requires_grad
    reference = truncnorm(-loc / 20, (100 - loc) / 20, loc, 20)
    # Four standard errors of mean and quantile of 20,000 draws.
    assert samples.mean().item() == pytest.approx(reference.mean(), abs=4 * 20 / 141)
    for level in (0.1, 0.5, 0.9):
        below = (samples <= reference.ppf(level)).float().mean().item()
        assert below == pytest.approx(level, abs=4 * 0.5 / 141)


def test_gradient_of_log_prob_against_finite_differences():
    this = TruncatedNormalPolicy(
        torch.tensor([0.0, -1.0], dtype=torch.float64),
        torch.tensor([2.0, 5.0], dtype=torch.float64),
        loc=torch.tensor([0.1, 4.0], dtype=torch.float64),
        scale=0.3,
    )
    design = this.sample(torch.Size((4,)))
    (parameter,) = this.parameters()
    (gradient,) = torch.autograd.grad(this.log_prob(design).sum(), parameter)
    for j in range(2):
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter[j] += step
                values.append(this.log_prob(design).sum().item())
                parameter[j] -= step
        finite = (values[0] - values[1]) / 2e-6
        assert gradient[j].item() == pytest.approx(finite, rel=1e-5)


def test_score_has_mean_zero_because_the_normalizer_is_part_of_it():
    # Near the edge the truncation moves with the location: without its normalizer
    # the mean score would be about phi(0)/Phi(0)/width = 4 per unit of the box.
    this = policy(loc=100.0, scale=0.2)
    samples = this.sample(torch.Size((100_000,)))
    (parameter,) = this.parameters()
    (gradient,) = torch.autograd.grad(this.log_prob(samples).mean(), parameter)
    # A score has standard deviation 0.6 / 0.2 = 3 here.
    assert abs(gradient.item()) < 4 * 3 / 316


def test_reparameterised_gradient_is_that_of_the_mean():
    this = policy(loc=90.0, scale=0.2)
    (parameter,) = this.parameters()
    (gradient,) = torch.autograd.grad(
        this.rsample(torch.Size((50_000,))).mean(), parameter
    )

    def mean(loc):
        return truncnorm(-loc / 20, (100 - loc) / 20, loc, 20).mean()

    finite = (mean(90.01) - mean(89.99)) / 0.02 * 100.0
    assert gradient.item() == pytest.approx(finite, rel=0.02)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-24])
@pytest.mark.parametrize("loc", [0.0, 50.0, 87.0, 100.0])
def test_gradient_is_finite_at_the_ends_of_the_random_numbers(
    uniform, loc, monkeypatch
):
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, uniform))
    this = policy(loc=loc, scale=0.1)
    design = this.rsample(torch.Size((3,)))
    assert this.support.check(design).all()
    (gradient,) = torch.autograd.grad(design.sum(), list(this.parameters()))
    assert gradient.isfinite().all()


def test_outside_the_box_the_density_is_zero():
    assert (policy().log_prob(torch.tensor([[-1.0], [100.1]])) == -torch.inf).all()
    with pytest.raises(ValueError, match="dim_design=1"):
        policy().log_prob(torch.zeros(3, 2))


def test_mode_is_the_location_and_the_most_likely_design():
    this = policy(loc=97.0)
    grid = torch.linspace(0, 100, 1_001).unsqueeze(1)
    best = grid[this.log_prob(grid).argmax()]
    assert best.item() == pytest.approx(97.0, abs=0.1)
    assert this.mode.item() == pytest.approx(97.0, abs=1e-4)


def test_annealing_and_projection():
    this = policy(scale=(0.3, 0.1))
    assert this.scale.item() == pytest.approx(30.0)
    this.anneal(0.5)
    assert this.scale.item() == pytest.approx(100 * 0.3**0.5 * 0.1**0.5)
    this.anneal(1.0)
    assert this.scale.item() == pytest.approx(10.0)
    with torch.no_grad():
        next(this.parameters()).fill_(1.5)
    this.project()
    assert this.mode.item() == 100.0
    assert ScaleSchedule(3.0, 3.0)(0.2) == 3.0


def test_default_locations_differ_between_interchangeable_measurements():
    this = TruncatedNormalPolicy(torch.full((4,), -10.0), torch.full((4,), 10.0))
    assert len(set(this.mode.tolist())) == 4
    assert policy().dim_design == 1
    single = TruncatedNormalPolicy(torch.zeros(1), torch.ones(1))
    assert single.mode.item() == 0.5


def test_pickle_state_dict_and_dtype():
    this = policy()
    this.anneal(0.7)
    copy = pickle.loads(pickle.dumps(this))
    design = torch.rand(5, 1)
    assert torch.equal(copy.log_prob(design), this.log_prob(design))
    other = policy(loc=1.0)
    other.load_state_dict(this.state_dict())
    assert torch.equal(other.log_prob(design), this.log_prob(design))
    assert this.double().sample().dtype == torch.float64
    assert this.to("meta").rsample(torch.Size((3,))).device.type == "meta"


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"low": torch.zeros(2)}, "same shape"),
        ({"low": torch.ones(1)}, "must be less than"),
        ({"high": torch.tensor([torch.inf])}, "finite"),
        ({"loc": torch.tensor([2.0])}, "lie in the box"),
        ({"loc": torch.zeros(3)}, "must have shape"),
        ({"scale": 0.0}, "must be positive"),
        ({"scale": (0.3, -1.0)}, "end=-1.0"),
    ],
)
def test_bad_arguments_are_named(kwargs, match):
    kwargs = {"low": torch.zeros(1), "high": torch.ones(1), **kwargs}
    with pytest.raises(ValueError, match=match):
        TruncatedNormalPolicy(**kwargs)


def test_numbers_are_corners_of_a_box_of_one_value():
    this = TruncatedNormalPolicy(0.0, 2.0, loc=0.5)
    assert this.dim_design == 1 and this.mode.tolist() == [0.5]
    assert this.sample(torch.Size((3,))).shape == (3, 1)
