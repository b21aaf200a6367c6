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

from collections.abc import Iterable

from sbi_boed_plugin.benchmark.jobs import Job

__all__ = [
    "BUDGETS",
    "CITATION",
    "PUBLISHED_C2ST",
    "PUBLISHED_METHODS",
    "URL",
    "published_beside",
    "published_c2st",
    "published_label",
]

CITATION = (
    "Lueckmann, Boelts, Greenberg, Gonçalves and Macke: Benchmarking simulation-based "
    "inference. AISTATS 2021"
)
URL = "https://arxiv.org/abs/2101.04653"

BUDGETS = (1_000, 10_000, 100_000)
PUBLISHED_METHODS = ("NLE", "NPE", "NRE")

_NUM_SAMPLES = 10_000
_PREFIX_BY_ROUNDS = {1: "", 10: "S"}

# One value per budget.
PUBLISHED_C2ST: dict[str, dict[str, tuple[float, float, float]]] = {
    "two_moons": {
        "NLE": (0.773, 0.713, 0.668),
        "NPE": (0.725, 0.606, 0.542),
        "NRE": (0.822, 0.761, 0.629),
        "SNLE": (0.657, 0.571, 0.582),
        "SNPE": (0.643, 0.554, 0.530),
        "SNRE": (0.651, 0.582, 0.563),
    },
    "slcp": {
        "NLE": (0.946, 0.771, 0.699),
        "NPE": (0.975, 0.901, 0.831),
        "NRE": (0.972, 0.947, 0.919),
        "SNLE": (0.921, 0.713, 0.578),
        "SNPE": (0.965, 0.845, 0.666),
        "SNRE": (0.968, 0.917, 0.721),
    },
    "slcp_distractors": {
        "NLE": (0.987, 0.961, 0.905),
        "NPE": (0.982, 0.970, 0.863),
        "NRE": (0.980, 0.968, 0.953),
        "SNLE": (0.992, 0.949, 0.883),
        "SNPE": (0.978, 0.931, 0.778),
        "SNRE": (0.981, 0.974, 0.766),
    },
    "gaussian_linear": {
        "NLE": (0.650, 0.555, 0.515),
        "NPE": (0.694, 0.552, 0.506),
        "NRE": (0.672, 0.560, 0.536),
        "SNLE": (0.628, 0.548, 0.519),
        "SNPE": (0.652, 0.544, 0.507),
        "SNRE": (0.670, 0.536, 0.515),
    },
    "gaussian_linear_uniform": {
        "NLE": (0.723, 0.548, 0.506),
        "NPE": (0.696, 0.553, 0.509),
        "NRE": (0.788, 0.706, 0.631),
        "SNLE": (0.657, 0.552, 0.509),
        "SNPE": (0.631, 0.527, 0.507),
        "SNRE": (0.681, 0.606, 0.536),
    },
    "gaussian_mixture": {
        "NLE": (0.740, 0.723, 0.690),
        "NPE": (0.716, 0.615, 0.548),
        "NRE": (0.777, 0.748, 0.735),
        "SNLE": (0.706, 0.685, 0.646),
        "SNPE": (0.669, 0.551, 0.536),
        "SNRE": (0.673, 0.578, 0.531),
    },
    "bernoulli_glm": {
        "NLE": (0.740, 0.605, 0.545),
        "NPE": (0.863, 0.678, 0.559),
        "NRE": (0.899, 0.812, 0.751),
        "SNLE": (0.634, 0.553, 0.522),
        "SNPE": (0.855, 0.614, 0.525),
        "SNRE": (0.718, 0.584, 0.529),
    },
    "bernoulli_glm_raw": {
        "NLE": (0.870, 0.939, 0.951),
        "NPE": (0.900, 0.765, 0.607),
        "NRE": (0.915, 0.834, 0.777),
        "SNLE": (0.990, 0.973, 0.987),
        "SNPE": (0.906, 0.658, 0.607),
        "SNRE": (0.880, 0.675, 0.552),
    },
    "sir": {
        "NLE": (0.761, 0.748, 0.730),
        "NPE": (0.815, 0.680, 0.585),
        "NRE": (0.841, 0.770, 0.690),
        "SNLE": (0.745, 0.745, 0.650),
        "SNPE": (0.638, 0.561, 0.575),
        "SNRE": (0.637, 0.646, 0.547),
    },
    "lotka_volterra": {
        "NLE": (0.994, 0.956, 0.952),
        "NPE": (0.999, 0.997, 0.981),
        "NRE": (1.000, 0.998, 0.996),
        "SNLE": (0.909, 0.738, 0.695),
        "SNPE": (0.990, 0.953, 0.928),
        "SNRE": (0.971, 0.848, 0.831),
    },
}


def published_beside(jobs: Iterable[Job]) -> list[str]:
    """Return the published methods whose values mean something beside those of jobs.

    A classifier finds more in more samples, and other numbers of rounds are other
    methods.

    Args:
        jobs: Jobs, whatever their methods.

    Returns:
        Names of methods in the paper, perhaps none.

    Example:
        >>> published_beside([Job("sir", "npe", 1_000, 0, 1)])
        ['NLE', 'NPE', 'NRE']
        >>> published_beside([Job("sir", "npe", 1_000, 0, 1, num_samples=100)])
        []
    """
    rounds = {job.num_rounds for job in jobs if job.num_samples == _NUM_SAMPLES}
    return [
        prefix + method
        for number, prefix in _PREFIX_BY_ROUNDS.items()
        if number in rounds
        for method in PUBLISHED_METHODS
    ]


def published_label(method: str) -> str:
    """Return how a published method is called.

    Example:
        >>> published_label("NPE"), published_label("SNPE")
        ('NPE', 'SNPE, ten rounds')
    """
    return f"{method}, ten rounds" if method.startswith("S") else method


def published_c2st(task: str, method: str, num_simulations: int) -> float | None:
    """Return the published mean C2ST, or `None` if there is none.

    Args:
        task: Name of a task of sbibm.
        method: Name of a method in the paper, such as `"NPE"` or `"SNPE"`.
        num_simulations: Budget.

    Returns:
        C2ST, from 0.5 (no difference found) to 1.

    Example:
        >>> published_c2st("two_moons", "NPE", 1_000)
        0.725
        >>> published_c2st("two_moons", "NPE", 2_000) is None
        True
    """
    values = PUBLISHED_C2ST.get(task, {}).get(method)
    if values is None or num_simulations not in BUDGETS:
        return None
    return values[BUDGETS.index(num_simulations)]
