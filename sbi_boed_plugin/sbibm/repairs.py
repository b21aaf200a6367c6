"""What is repaired of sbibm up to 1.1.0, its last release, and why.

Nothing is edited on the disk, and later releases are left as they are.

- `sbibm.algorithms` imports functions from `sbi.utils.get_nn_models`, a module that sbi
  had until 0.22. While `sbibm.algorithms` is imported, a module of that name has them.
- The tasks `sir` and `lotka_volterra` solve their equations in Julia, through
  `diffeqtorch`, which is not imported: they get simulators without Julia.
- The task `slcp_distractors` loads a distribution with `torch.load`, which since torch
  2.6 refuses classes that are not declared safe. They are, while it simulates.
"""

import functools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

import torch
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn

from sbi_boed_plugin.sbibm.julia_free import lotka_volterra_simulator, sir_simulator

__all__ = ["repair_sbibm"]


class _NoJulia:
    """Takes the place of `diffeqtorch.DiffEq`."""

    def __init__(self, *_: Any, **__: Any) -> NoReturn:
        raise ImportError(
            "task.de is a solver in Julia, which is not used. The simulators of sir "
            "and lotka_volterra work without: use task.get_simulator()."
        )


_STAND_INS: dict[str, dict[str, Any]] = {
    "sbi.utils.get_nn_models": {
        "classifier_nn": classifier_nn,
        "likelihood_nn": likelihood_nn,
        "posterior_nn": posterior_nn,
    },
    "diffeqtorch": {"DiffEq": _NoJulia},
}


def repair_sbibm() -> None:
    """Import and repair the parts of sbibm that do not run here, unless it was done.

    An `ImportError` tells that sbibm or something that it needs is not installed.
    """
    version = re.findall(r"\d+", import_module("sbibm").__version__)
    if tuple(int(number) for number in version[:3]) > (1, 1, 0):
        return
    with _stand_ins():
        import_module("sbibm.algorithms")
        sir = import_module("sbibm.tasks.sir.task")
        lotka_volterra = import_module("sbibm.tasks.lotka_volterra.task")
        slcp = import_module("sbibm.tasks.slcp.task")
    _replace_simulator(sir.SIR, sir_simulator)
    _replace_simulator(lotka_volterra.LotkaVolterra, lotka_volterra_simulator)
    # Older versions of torch trust every class.
    if hasattr(torch.serialization, "safe_globals"):
        simulator = functools.partial(_slcp_simulator, slcp.SLCP.get_simulator)
        _replace_simulator(slcp.SLCP, simulator)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put modules in the place of missing ones while sbibm is imported, no longer."""
    missing = [name for name in _STAND_INS if name not in sys.modules]
    for name in missing:
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(_STAND_INS[name])
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _replace_simulator(task_class: Any, make: Callable[..., Any]) -> None:
    """Let `get_simulator` of a class return what `make(task, max_calls)` does."""
    original = task_class.get_simulator
    if hasattr(original, "__wrapped__"):
        return  # It was replaced before.

    @functools.wraps(original)
    def get_simulator(self: Any, max_calls: int | None = None) -> Any:
        return make(self, max_calls)

    task_class.get_simulator = get_simulator


def _slcp_simulator(
    get_simulator: Callable[..., Any], task: Any, max_calls: int | None
) -> Any:
    """Return the simulator of SLCP, which may load the distribution of distractors."""
    from pyro import distributions

    names = ("MixtureSameFamily", "Categorical", "Independent", "MultivariateStudentT")
    classes = [getattr(distributions, name) for name in (*names, "Chi2")]
    made = get_simulator(task, max_calls)
    simulate = made.simulator

    @functools.wraps(simulate)
    def simulate_safely(parameters: Any, **settings: Any) -> Any:
        with torch.serialization.safe_globals([*classes, torch.distributions.Chi2]):
            return simulate(parameters, **settings)

    if task.distractors:
        made.simulator = simulate_safely
    return made
