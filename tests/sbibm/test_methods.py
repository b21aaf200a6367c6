"""Every method answers as sbibm's algorithms do, within its budget, from its seed."""

import pickle

import pytest
import torch
from torch.distributions import Independent, LogNormal, Normal, biject_to

from sbi_boed_plugin import EnergyConfig
from sbi_boed_plugin.sbibm import METHODS, check_hyper, get_task, run_method
from sbi_boed_plugin.sbibm.methods import _log_prob
from sbi_boed_plugin.sbibm.settings import RECIPES

FAST = {"max_num_epochs": 2, "training_batch_size": 50, "hidden_features": 10}
CHAINS = {"num_chains": 10, "warmup_steps": 2, "thin": 1, "init_strategy": "proposal"}
NORMALIZED = ("npe", "npe_gkl")


def fast(name, **more):
    # Mixtures are many times faster than flows.
    network = {} if name.startswith("nre") else {"neural_net": "mdn"}
    chains = {} if name in NORMALIZED else {"mcmc_parameters": CHAINS}
    return FAST | network | chains | more


@pytest.mark.parametrize("num_rounds", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", METHODS)
def test_a_method_answers_as_sbibm_expects(two_moons, name, num_rounds):
    torch.manual_seed(0)
    observation = {"num_observation": 3}
    if num_rounds == 2:
        # Without a number, the true parameters are not known.
        observation = {"observation": two_moons.get_observation(1)}
    settings = fast(name, num_rounds=num_rounds)
    result = METHODS[name](
        task=two_moons, num_samples=20, num_simulations=103, **observation, **settings
    )
    assert type(result) is tuple
    assert pickle.loads(pickle.dumps(METHODS[name])) is METHODS[name]
    samples, num_simulations, log_prob = result
    assert samples.shape == (20, 2)
    assert torch.all(samples.abs() <= 1.0)
    assert num_simulations == 103
    if name in NORMALIZED and num_rounds == 1:
        assert log_prob.shape == (1,)
        assert log_prob.isfinite()
    else:
        assert log_prob is None


@pytest.mark.parametrize("name", ["nle", "npe"])
def test_parameters_with_transforms_come_back_in_their_own_units(name):
    torch.manual_seed(0)
    task = get_task("sir")
    outcome = run_method(
        name, task, 50, 300, 1, **fast(name, automatic_transforms_enabled=True)
    )
    assert torch.all(outcome.samples > 0.0)
    # Medians of the prior are 0.4 and 0.125; a few epochs leave the scale alone.
    ratio = outcome.samples.median(0).values / torch.tensor([0.4, 0.125])
    assert torch.all((ratio > 0.1) & (ratio < 10.0))


def test_log_densities_of_transformed_parameters_are_those_of_parameters():
    class StandardNormal:
        def log_prob(self, theta, x):
            return Normal(0.0, 1.0).log_prob(theta).sum(-1)

    prior = Independent(LogNormal(torch.zeros(2), torch.ones(2)), 1)
    truth = torch.tensor([[0.3, 2.0]])
    transform = biject_to(prior.support).inv
    density = _log_prob(StandardNormal(), truth, torch.zeros(1, 1), transform)
    torch.testing.assert_close(density, prior.log_prob(truth))


def run_npe(task, number=1, **more):
    return run_method("npe", task, 5, 60, number, **fast("npe", **more))


def test_a_seed_decides_what_is_drawn_and_nothing_else_does(two_moons):
    torch.manual_seed(1)
    first, other = run_npe(two_moons, seed=7), run_npe(two_moons)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = run_npe(two_moons, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.samples, second.samples)
    assert not torch.equal(run_npe(two_moons).samples, other.samples)


def test_observations_share_a_training_in_a_folder(two_moons, tmp_path):
    settings = {"seed": 0, "cache": tmp_path}
    first, other = (run_npe(two_moons, number, **settings) for number in (1, 2))
    assert not first.from_cache
    assert other.from_cache
    assert other.training_seconds == first.training_seconds
    assert not torch.equal(first.samples, other.samples)
    # Whether an observation comes first or second makes no difference to it.
    assert torch.equal(run_npe(two_moons, 2, seed=0).samples, other.samples)
    for number in (1, 2):
        assert not run_npe(two_moons, number, num_rounds=2, **settings).from_cache


def test_hybrids_are_kept_in_a_folder(two_moons, tmp_path):
    settings = fast("npe_gkl", seed=0, cache=tmp_path)
    first, second = (
        run_method("npe_gkl", two_moons, 20, 100, 1, **settings) for _ in range(2)
    )
    assert second.from_cache
    assert torch.equal(first.samples, second.samples)
    assert set(second.diagnostics) >= {"acceptance_rate", "truncated_mass"}


class Stop(Exception):
    """Ends a run where a test has seen enough of it."""


def test_methods_with_the_same_seed_see_the_same_simulations(monkeypatch):
    # Positive parameters, which some methods see as logarithms.
    task = get_task("sir")
    seen = []

    def simulate(theta):
        seen.append(theta)
        raise Stop

    monkeypatch.setattr(task, "get_simulator", lambda max_calls=None: simulate)
    for name in METHODS:
        with pytest.raises(Stop):
            run_method(name, task, 5, 60, 1, **fast(name, seed=3))
    for theta in seen[1:]:
        torch.testing.assert_close(theta, seen[0])


def test_the_energy_may_be_given_as_a_dictionary():
    settings = check_hyper("npe_gkl", energy={"max_num_epochs": 7})
    assert settings["energy"] == EnergyConfig(max_num_epochs=7)
    with pytest.raises(TypeError, match="max_epochs"):
        check_hyper("npe_gkl", energy={"max_epochs": 7})


@pytest.mark.parametrize(
    "name, hyper",
    [
        ("nle_ince", {"num_contrastive": 5, "regularization_strength": 0.1}),
        ("npe", {"num_atoms": 7}),
        ("npe_gkl", {"num_atoms": 7, "training": "joint", "schedule": "averaged"}),
        ("nre", {"num_atoms": 7}),
        ("nre_gkl", {"num_atoms": 7, "schedule": "averaged"}),
    ],
)
def test_hyperparameters_reach_the_training(two_moons, monkeypatch, name, hyper):
    given = {}

    def train(self, **kwargs):
        given.update(kwargs)
        raise Stop

    monkeypatch.setattr(RECIPES[name].trainer, "train", train)
    shared = {"training_batch_size": 30, "max_num_epochs": 3}
    with pytest.raises(Stop):
        run_method(name, two_moons, 5, 50, 1, **hyper, **shared)
    assert given.items() >= {**hyper, **shared}.items()


@pytest.mark.parametrize(
    "name, hyper, message",
    [
        ("npe_gkl", {"training": "three_stage"}, "'three_stage'.*joint"),
        ("npe_gkl", {"energy": {"max_num_epochs": -1}}, "max_num_epochs"),
        ("nre", {"neural_net": "maf"}, "'maf'.*resnet"),
        ("nle_ince", {"num_contrastive": 0}, "at least 1"),
        ("nle_ince", {"schedule": "one_cycle"}, "'one_cycle'.*averaged"),
        ("nle", {"mcmc_method": "slice"}, "slice_np_vectorized"),
        ("npe", {"automatic_transforms_enabled": "no"}, "'no' is unknown.*True, False"),
        ("npe", {"num_rounds": 0}, "num_rounds=0"),
        ("npe", {"simulation_batch_size": 0}, "size=0"),
        ("npe", {"hidden_features": "50"}, "'50' must be an integer"),
        ("npe", {"max_num_epochs": 1.5}, "1.5 must be an integer"),
        ("npe", {"num_atoms": 1}, "at least 2"),
        ("npe", {"neural_net": "nsff"}, "'nsff'.*maf"),
        ("npe", {"z_score_x": "no"}, "'no'.*independent"),
    ],
)
def test_hyperparameters_are_checked_before_anything_is_simulated(name, hyper, message):
    with pytest.raises(ValueError, match=message):
        check_hyper(name, **hyper)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({}, "num_observation=None and observation=None"),
        ({"num_observation": 1, "observation": torch.zeros(1, 2)}, "either"),
        ({"num_observation": 11}, "num_observation=11 .* at most 10"),
        ({"observation": torch.zeros(1, 3)}, r"\(1, 3\).*\(1, 2\)"),
        ({"num_observation": 1, "num_rounds": 60}, "num_simulations=50"),
        ({"num_observation": 1, "cache": "folder"}, "needs a seed"),
        ({"num_layers": 3}, r"npe has no .*'num_layers'.*hidden_features"),
        ({"name": "npx"}, r"'npx'.*npe_gkl"),
    ],
)
def test_wrong_arguments_are_refused(two_moons, arguments, message):
    name = arguments.pop("name", "npe")
    with pytest.raises((ValueError, TypeError), match=message):
        run_method(name, two_moons, 5, 50, **arguments)


# sbibm uses old names, of which sbi warns.
@pytest.mark.filterwarnings("ignore:.*is deprecated since sbi:FutureWarning")
@pytest.mark.slow
def test_the_runs_of_sbibm_itself_work_on_two_moons(two_moons, tmp_path, monkeypatch):
    import sbibm.algorithms as algorithms

    monkeypatch.chdir(tmp_path)  # sbi keeps logs where it runs.

    few = {"num_samples": 100, "num_simulations": 200, "num_observation": 1}
    for run in (algorithms.snpe, algorithms.snle, algorithms.snre):
        torch.manual_seed(0)
        samples, num_simulations, _ = run(
            two_moons, num_rounds=2, max_num_epochs=5, **few
        )
        assert samples.shape == (100, 2)
        assert num_simulations == 200
        assert torch.all(samples.abs() <= 1.0)
    for run in (algorithms.mcabc, algorithms.smcabc):
        samples, num_simulations, _ = run(two_moons, **few | {"num_simulations": 1_000})
        assert samples.shape == (100, 2)
        assert num_simulations == 1_000
