"""Designs found from scratch, scored by what is known exactly or by brute force.

Run with `make test-slow ARGS="-s -k found_designs"` to see the figures.
"""

import pytest

from benchmarks.design_recovery import run
from benchmarks.sir_check import check

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["gaussian_linear", "noisy_linear"])
def test_one_measurement_reaches_98_percent_of_the_optimum(name, seed):
    row = run({"task": name, "dim_design": 1, "seed": seed}, quick=False)
    print(row)
    assert row["share_of_optimum"] >= 0.98
    assert row["reported_lower_bound"] <= row["exact_eig"] + 0.08


@pytest.mark.parametrize("seed", range(2))
def test_ten_measurements_reach_4_9_nats(seed):
    row = run({"task": "noisy_linear", "dim_design": 10, "seed": seed}, quick=False)
    print(row)
    assert row["exact_eig"] - 3 * row["standard_error"] >= 4.9


def test_sir_agrees_with_brute_force_and_its_posterior_is_calibrated():
    row = check(seed=0)
    print(row)
    assert abs(row["reported_eig"] - row["brute_force_eig"]) <= 0.1
    assert row["best_eig_on_grid"] - row["brute_force_eig"] <= 0.05
    # Rejected by chance once in a thousand runs each.
    assert row["sbc_ks_p_beta"] > 0.001
    assert row["sbc_ks_p_gamma"] > 0.001
    assert abs(row["sbc_c2st_ranks"] - 0.5) < 0.1
    assert row["lc2st_p"] > 0.001
