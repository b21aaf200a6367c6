"""Every tutorial runs as the script that it is, and keeps what its text promises."""

import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

from sbi_boed_plugin import PointPolicy
from sbi_boed_plugin.design.information import POLICY_OBJECTIVES

# sbi passes torch tensors to numpy functions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)

TUTORIALS = sorted((Path(__file__).parents[1] / "tutorials").glob("*.py"))


def check_first_experiment(names):
    """A design near the best one, and a narrower posterior than at a poor one."""
    best = max(estimate.value for estimate in names["exact"])
    found = names["estimate_eig"](
        names["log_likelihood"],
        names["simulator"],
        prior=names["prior"],
        design=names["result"].design,
        bound="exact",
        seed=1,
    )
    # The best of the grid is the largest of 13 values with errors of about 0.05 nats.
    assert found.value > best - 0.15
    assert names["samples"][:, 1].std() < 0.8 * names["poor_samples"][:, 1].std()
    # Two bounds of the same information, each lower by what its network misses.
    eig, contrastive = names["eig"], names["contrastive"]
    assert eig.bound == "barber_agakov" and eig.cap is None
    assert contrastive.value < contrastive.cap - 3.0
    assert abs(contrastive.value - eig.value) < 0.15


def check_choosing_experiments(names):
    """Networks agree with brute force, and chosen designs are worth their search."""
    check_first_search(names)
    check_sequence(names)
    check_posteriors(names)
    check_comparison(names)
    check_failures(names)
    assert torch.equal(names["x_one"], names["x_two"])


def check_first_search(names):
    exact = names["exact"]
    gaps = [
        value - bound.value
        for value, bound in zip(exact, names["learned"], strict=True)
    ]
    errors = [bound.standard_error for bound in names["learned"]]
    # Lower bounds, up to their errors; "about a tenth of a nat".
    assert all(gap > -4 * error for gap, error in zip(gaps, errors, strict=True))
    assert 0.0 < np.mean(gaps) < 0.2
    first = names["exact_information"](
        names["first"].design.numpy(), names["weights"][0]
    )
    assert first > max(exact) - 0.1
    # "Most of the range is about equally good": from 1 mM upwards.
    assert min(exact[6:]) > max(exact) - 0.1


def check_sequence(names):
    second, later = names["second"], names["later"]
    # The new trainer repeated nothing, and knows what was observed before.
    assert len(second.records) == 1 and len(later.records) == 2
    assert torch.equal(second.records[0].design, later.records[0].design)
    assert torch.equal(
        second.records[0].posterior_samples, later.records[0].posterior_samples
    )
    assert len(names["inference"].observations) == 3
    # Networks are in single precision, the simulator in double.
    kept = names["inference"].observations[0].x.item()
    assert kept == pytest.approx(names["x_first"].item(), rel=1e-6)
    for record, known in zip(later.records, names["weights"][1:], strict=False):
        exact = names["exact_information"](record.design.item(), known)
        # "A few hundredths": the errors of the estimate and of a learned belief.
        assert abs(record.eig.value - exact) < 0.15
        # Chosen designs are good ones, by the same information.
        grid = names["designs"].tolist()
        best = max(names["exact_information"](design, known) for design in grid)
        assert exact > best - 0.2
        # Nothing is trained in later rounds.
        assert record.num_simulations < 0.05 * names["first"].num_simulations


def check_posteriors(names):
    rows = names["posteriors"]
    for name, other, mean_error, spread_error in (
        # The same density: what is left are errors of a thousand correlated draws.
        ("after three: particles", "after three: MCMC", 0.3, 0.2),
        # Learned against exact: 128,000 simulations, spread over all designs.
        ("after three: particles", "after three: exact", 0.6, 0.35),
        ("after one: particles", "after one: exact", 0.3, 0.2),
        ("after one: direct", "after one: exact", 0.3, 0.4),
    ):
        (mean, spread), (other_mean, other_spread) = rows[name], rows[other]
        assert (np.abs(mean - other_mean) < mean_error * other_spread).all(), name
        assert (np.abs(spread / other_spread - 1.0) < spread_error).all(), name
    before, after = (rows[f"after {n}: exact"][1] for n in ("one", "three"))
    assert after[0] < before[0] and after[1] < 0.5 * before[1]
    # A calibrated share is uniform: outside of this in one experiment of fifty.
    for x, draws in zip(
        names["observed"], names["predict"](names["mcmc"]), strict=True
    ):
        assert 0.01 < (draws < x).double().mean() < 0.99


def check_comparison(names):
    chosen, random = (np.array(names["gained"][name]) for name in ("chosen", "random"))
    error = math.hypot(*(v.std() / math.sqrt(len(v)) for v in (chosen, random)))
    assert chosen.mean() - random.mean() > 4 * error


def check_failures(names):
    fragile = names["fragile"]
    # 2 % bubbles, and Km above 4.95 in 1.04 % of the prior; six standard deviations.
    share = fragile.num_invalid_simulations / fragile.num_simulations
    expected = 0.02 + 0.98 * 0.05 / 4.8
    deviation = math.sqrt(expected / fragile.num_simulations)
    assert abs(share - expected) < 6 * deviation
    messages = [str(warning.message) for warning in names["caught"]]
    assert any("FloatingPointError" in message for message in messages)


def check_gradients_and_bounds(names):
    """The numbers of the text, and what its tables say of the package."""
    check_gradients(names)
    check_caps(names)
    check_tables()
    first, second = (names["hills"][name].design for name in ("one Normal", "mixture"))
    # Hills of width 0.7; policies of scale 0.5 end near their tops.
    assert abs(first.item() - 2.0) < 0.5 and abs(second.item() - 8.0) < 0.5
    assert names["exact_two_hills"](first) < 0.5 * names["exact_two_hills"](second)
    chosen = [names["chosen"][strength] for strength in (0.0, 0.1, 1.0, 10.0)]
    assert chosen == sorted(chosen, reverse=True)
    assert (chosen[0], chosen[-1]) == (300, 0) and chosen[2] < 100


def check_gradients(names):
    for location, exact in names["exact_derivative"].items():
        rows = {
            name: value
            for (at, name), value in names["gradients"].items()
            if at == location
        }
        for name in ("partial, first term", "partial, second term", "partial"):
            assert abs(rows[name][0]) < 4 * rows[name][1], name
        # With 400 contrastive parameters the bound falls short of the information.
        for name, truth in (
            ("pathwise", exact),
            ("score", names["averaged_derivative"](location)),
        ):
            assert abs(rows[name][0] - truth) < 4 * rows[name][1] + 0.01, name
        spread = names["spread_of_rows"]
        assert spread[location, "score"] > 2 * spread[location, "pathwise"]
    # From 1 towards 3, not all the way in so few steps.
    assert all(design > 2.0 for design in names["found"].values())


def check_caps(names):
    exact, learned = names["exact"], names["learned"]
    values = [estimate.value for estimate in names["contrastive"]]
    caps = [estimate.cap for estimate in names["contrastive"]]
    assert all(value <= cap for value, cap in zip(values, caps, strict=True))
    assert values == sorted(values) and values[-1] < exact
    assert f"{values[0]:.2f} of the {caps[0]:.2f}" == "1.38 of the 1.39"
    with_exact = names["with_exact"]
    assert abs(with_exact.value - exact) < 4 * with_exact.standard_error
    assert math.log(32) < learned.eig.value < exact
    assert learned.eig.cap is None
    # The best design has two positions at each end.
    assert (learned.design.sort().values - names["best_design"]).abs().max() < 1.0
    history = np.array(learned.history["eig"])
    assert history[-50:].mean() > history[-100:-50].mean()
    assert history[-50:].mean() > learned.eig.value
    assert names["bound_inside"].value > learned.eig.value


def check_tables():
    rows = {
        "barber_agakov": ("posterior", "barber_agakov"),
        "gkl": ("hybrid", "gkl"),
        "info_nce": (None, "pce"),
        "marginal": ("marginal", "pce"),
    }
    known = {name: (o.needs, o.bound) for name, o in POLICY_OBJECTIVES.items()}
    assert known == rows
    assert not PointPolicy.has_log_prob


def check_hybrid_posterior(names):
    """What a correction gains, how it is reported, and what is left where it fails."""
    scores = names["scores"]
    # A thousand samples each tell shares to 0.02; networks of other seeds differ more.
    assert scores["NPE"] > 0.65
    assert 0.45 < scores["NPE, refined"] < scores["NPE"] - 0.1
    check_gains(names)
    check_diagnostics(names)
    # The base alone: the same numbers, to the last bit.
    (message,) = names["useless"]
    assert message.startswith("The energy does not improve")
    first, second = names["draws_of"].values()
    assert torch.equal(first, second)
    assert names["inference"].summary["energy_gain"] == [0.0]
    assert type(names["simple"]).__name__ == "HybridPosterior"


def check_gains(names):
    gained, missing = names["gained"], names["missing"]
    error = math.hypot(gained.std() / len(gained) ** 0.5, names["gain_error"])
    # Both are means of a few hundred simulations, others for each.
    assert abs(gained.mean() - names["gain"]) < 3 * error
    # "Most of it", and never more: the exact posterior has the largest mean.
    assert 0.6 * missing.mean() < gained.mean() < missing.mean()


def check_diagnostics(names):
    told, slower, usual = (names[name] for name in ("told", "told_slower", "usual"))
    share = usual.effective_share
    # The column of usual values holds for nine in ten simulations.
    for good in (
        usual.acceptance_rate > 0.02,
        share > 0.05,
        usual.log_partition.abs() < 0.3,
        usual.truncated_mass < 0.01,
    ):
        assert good.double().mean() > 0.85
    # "One of the 200 is a false alarm": a few in a hundred at most.
    assert (usual.log_partition.abs() > 2.0).sum() <= 2
    assert slower.acceptance_rate < told.acceptance_rate
    assert slower.truncated_mass < told.truncated_mass < 0.01
    near, *others = names["far"].values()
    assert abs(near[0]) < 1.0 and not near[1]
    for log_partition, messages in others:
        assert abs(log_partition) > 3.0 and len(messages) == 1
        assert "far from the simulations" in messages[0]


def check_sbibm(names):
    """The cache and the order of the methods that the text speaks of."""
    assert names["x"].shape == (3, 20)
    assert names["outcome"].from_cache and names["num_simulations"] == 1_000
    assert names["forest"] < 0.75
    assert names["num_failed"] == names["again"] == 0
    table = names["table"]
    # Differences of 0.2 and 0.15; a thousand samples tell 0.02 apart.
    assert table["npe_gkl"] < table["npe"] - 0.05
    assert table["npe"] < table["my_methods:nearest"] - 0.05
    assert {"index.html", "summary.csv"} <= {path.name for path in names["written"]}


CHECKS = {
    "00_first_experiment": check_first_experiment,
    "01_choosing_experiments": check_choosing_experiments,
    "02_gradients_and_bounds": check_gradients_and_bounds,
    "03_hybrid_posterior": check_hybrid_posterior,
    "04_sbibm": check_sbibm,
}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path):
    names = runpy.run_path(str(path), run_name="__main__")
    if path.stem in CHECKS:
        CHECKS[path.stem](names)


def test_every_check_has_its_tutorial():
    assert set(CHECKS) <= {path.stem for path in TUTORIALS}
