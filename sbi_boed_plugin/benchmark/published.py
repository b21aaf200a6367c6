"""Published values of sbibm's paper, for orientation.

Means of C2ST over the ten observations of each task, one run each: 10,000 samples, a
multilayer perceptron, samples z-scored by the reference. Computed from the results
that the authors publish beside the paper (`results/main_paper.csv`, column `C2ST`).
Their networks and training are those of 2021: NPE is a neural spline flow, NLE a masked
autoregressive flow, NRE a residual network; S stands for ten rounds.

Those of `gaussian_mixture` are from the authors' second run, after sbibm 1.1.0 had
mended that task (`gaussian_mixture_rerun/results/gaussian_mixture_rerun.csv`): the
paper's are of another posterior.
"""

from functools import cache
from pathlib import Path

import pandas as pd

__all__ = ["CITATION", "URL", "published_beside"]

CITATION = (
    "Lueckmann, Boelts, Greenberg, Gonçalves and Macke: Benchmarking simulation-based "
    "inference. AISTATS 2021"
)
URL = "https://arxiv.org/abs/2101.04653"

_NUM_SAMPLES = 10_000
_PREFIX_BY_ROUNDS = {1: "", 10: "S"}


def published_beside(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the published values that are comparable with some of our runs.

    A classifier finds more in more samples, and other numbers of rounds are other
    methods.

    Args:
        cells: Rows with `task`, `num_rounds` and `num_samples`.

    Returns:
        Rows with `task`, `method`, `num_simulations` and `c2st`, from 0.5 (no
        difference found) to 1.
    """
    like = cells.loc[cells["num_samples"] == _NUM_SAMPLES]
    wanted = {
        (task, _PREFIX_BY_ROUNDS[rounds] + method)
        for task, rounds in zip(like["task"], like["num_rounds"], strict=True)
        if rounds in _PREFIX_BY_ROUNDS
        for method in ("NLE", "NPE", "NRE")
    }
    rows = _values()
    pairs = zip(rows["task"], rows["method"], strict=True)
    return rows.loc[[pair in wanted for pair in pairs]]


@cache
def _values() -> pd.DataFrame:
    return pd.read_csv(Path(__file__).with_name("published_c2st.csv"))
