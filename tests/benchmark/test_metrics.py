"""Metrics: those of sbibm on samples of equal number, the forest apart from them."""

import pytest
import sbi.utils.metrics
import sbibm.metrics
import torch

from sbi_boed_plugin.benchmark.metrics import METRICS
from sbi_boed_plugin.sbibm import get_task


@pytest.fixture(scope="module")
def task():
    return get_task("two_moons")


@pytest.fixture(scope="module")
def reference(task):
    return task.get_reference_posterior_samples(1)


@pytest.fixture
def given(monkeypatch):
    """What the classifiers of sbibm and of sbi are given."""
    calls = []

    def c2st(X, Y, **settings):
        calls.append((X, Y, settings))
        return torch.tensor([0.7])

    for module in (sbibm.metrics, sbi.utils.metrics):
        monkeypatch.setattr(module, "c2st", c2st)
    return calls


def places(part, whole):
    """Return where rows of a part are in the whole, each once."""
    rows = {tuple(row): place for place, row in enumerate(whole.tolist())}
    found = {rows[tuple(row)] for row in part.tolist()}
    assert len(found) == len(part)
    return torch.tensor(sorted(found))


def test_c2st_is_that_of_sbibm_on_z_scored_samples_of_equal_number(
    task, reference, given
):
    for num_samples, num_compared in ((10_000, 10_000), (300, 300), (12_000, 10_000)):
        samples = torch.randn(num_samples, 2)
        assert METRICS["c2st"](task, samples, 1) == pytest.approx(0.7)
        X, Y, settings = given.pop()
        assert len(X) == len(Y) == num_compared
        for part, whole in ((X, reference), (Y, samples)):
            if len(whole) == num_compared:
                assert torch.equal(part, whole)
            else:
                assert places(part, whole).max() > 1.1 * num_compared
        assert settings == {"z_score": True}


def test_the_forest_sees_a_thousand_samples_at_most(task, reference, given):
    for _ in range(2):
        torch.manual_seed(1)
        METRICS["c2st_forest"](task, reference, 1)
    (X, Y, settings), (_, again, _) = given
    assert settings == {"classifier": "rf", "z_score": True}
    assert len(X) == len(Y) == 1_000
    assert torch.equal(Y, again)
    # MCMC orders samples chain by chain: each tenth of them must be represented. There
    # are a hundred expected of each, with a standard deviation of nine.
    assert torch.histc(places(Y, reference).float(), 10, 0, 10_000).min() > 50


@pytest.mark.slow
def test_good_samples_are_told_from_bad_ones(task, reference):
    good, bad = reference[-100:], task.get_prior()(100)
    for name, metric in METRICS.items():
        better, worse = metric(task, good, 1), metric(task, bad, 1)
        assert better < worse, name
        if name.startswith("c2st"):
            # 200 answers: a standard error of 0.035 about one half.
            assert better == pytest.approx(0.5, abs=0.15) and worse > 0.8


def test_the_median_distance_is_of_simulated_data(task, reference):
    samples = reference[:2_500]  # which are simulated in batches of a thousand.
    torch.manual_seed(0)
    value = METRICS["ppc"](task, samples, 1)
    torch.manual_seed(0)
    simulator = task.get_simulator()
    data = torch.cat([simulator(part) for part in samples.split(1_000)])
    distance = torch.linalg.norm(data - task.get_observation(1), dim=1)
    assert value == pytest.approx(distance.quantile(0.5).item(), rel=1e-5)
