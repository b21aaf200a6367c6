"""Published values: all of them, in range, and the ones that are known by heart."""

from sbi_boed_plugin.benchmark.published import (
    BUDGETS,
    PUBLISHED_C2ST,
    URL,
    published_c2st,
)
from sbi_boed_plugin.sbibm import TASKS

METHODS = {"NLE", "NPE", "NRE", "SNLE", "SNPE", "SNRE"}


def test_every_task_has_all_methods_and_budgets():
    assert set(PUBLISHED_C2ST) == set(TASKS)
    for values in PUBLISHED_C2ST.values():
        assert set(values) == METHODS
        for triple in values.values():
            assert len(triple) == len(BUDGETS)
            assert all(0.5 <= value <= 1.0 for value in triple)


def test_values_of_two_moons():
    found = [
        [published_c2st("two_moons", method, budget) for budget in BUDGETS]
        for method in ("NLE", "NPE")
    ]
    assert found == [[0.773, 0.713, 0.668], [0.725, 0.606, 0.542]]


def test_what_was_not_published_is_none():
    assert published_c2st("two_moons", "NPE", 2_000) is None
    assert published_c2st("two_moons", "npe_gkl", 1_000) is None
    assert published_c2st("mine", "NPE", 1_000) is None
    assert URL.endswith("2101.04653")
