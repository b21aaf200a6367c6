"""Every tutorial runs as the script that it is, and keeps what its text promises."""

import runpy
from pathlib import Path

import pytest

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


CHECKS = {"00_first_experiment": check_first_experiment}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path):
    names = runpy.run_path(str(path), run_name="__main__")
    if path.stem in CHECKS:
        CHECKS[path.stem](names)


def test_every_check_has_its_tutorial():
    assert set(CHECKS) <= {path.stem for path in TUTORIALS}
