"""sbi's methods and ours on the tasks of the benchmark sbibm.

sbibm is not a dependency: it pins an sbi of three years ago. `get_task` says how to
install it.
"""

from typing import Any

from sbi_boed_plugin.sbibm._run import RunOutcome as RunOutcome
from sbi_boed_plugin.sbibm.methods import METHODS as METHODS
from sbi_boed_plugin.sbibm.methods import check_hyper as check_hyper
from sbi_boed_plugin.sbibm.methods import nle as nle
from sbi_boed_plugin.sbibm.methods import nle_ince as nle_ince
from sbi_boed_plugin.sbibm.methods import npe as npe
from sbi_boed_plugin.sbibm.methods import npe_gkl as npe_gkl
from sbi_boed_plugin.sbibm.methods import nre as nre
from sbi_boed_plugin.sbibm.methods import nre_gkl as nre_gkl
from sbi_boed_plugin.sbibm.methods import run_method as run_method
from sbi_boed_plugin.sbibm.repairs import repair_sbibm

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

INSTALL = 'pip install "sbi_boed_plugin[sbibm]" && pip install --no-deps sbibm==1.1.0'


def get_task(name: str, **settings: Any) -> Any:
    """Return a task of sbibm, all of which run without Julia.

    Args:
        name: One of `TASKS`.
        settings: Arguments of the task.

    Returns:
        The task.

    Raises:
        ImportError: If sbibm or something that it needs is not installed.
        ValueError: If there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"there is no task '{name}'. Available: {', '.join(TASKS)}.")
    try:
        repair_sbibm()
        import sbibm
    except ImportError as error:
        raise ImportError(
            f"tasks of sbibm need {error.name or 'a package'}, which is missing. "
            f"Run `{INSTALL}`."
        ) from error
    return sbibm.get_task(name, **settings)
