"""sbi's methods and ours on the tasks of the benchmark sbibm.

sbibm is not a dependency: it pins an sbi of three years ago. `get_task` says how to
install it.
"""

from typing import Any

from sbi_boed_plugin.sbibm.methods import (
    METHODS,
    RunOutcome,
    nle,
    nle_ince,
    npe,
    npe_gkl,
    nre,
    nre_gkl,
    run_method,
)
from sbi_boed_plugin.sbibm.repairs import repair_sbibm
from sbi_boed_plugin.sbibm.settings import check_hyper

__all__ = [
    "METHODS",
    "TASKS",
    "RunOutcome",
    "check_hyper",
    "get_task",
    "nle",
    "nle_ince",
    "npe",
    "npe_gkl",
    "nre",
    "nre_gkl",
    "run_method",
]

TASKS = (
    "two_moons",
    "slcp",
    "slcp_distractors",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "bernoulli_glm",
    "bernoulli_glm_raw",
    "sir",
    "lotka_volterra",
)


def get_task(name: str, **settings: Any) -> Any:
    """Return one of sbibm's `TASKS`, which run without Julia, with its own settings.

    An `ImportError` says what to install if sbibm is missing.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task '{name}'. Available: {', '.join(TASKS)}.")
    try:
        repair_sbibm()
        import sbibm
    except ImportError as error:
        raise ImportError(
            f"tasks of sbibm need {error.name or 'a package'}, which is missing. Run "
            '`pip install "sbi_boed_plugin[sbibm]" && pip install --no-deps '
            "sbibm==1.1.0`."
        ) from error
    return sbibm.get_task(name, **settings)
