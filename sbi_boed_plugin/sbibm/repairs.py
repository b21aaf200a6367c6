"""What sbibm 1.1.0 needs to run beside a current sbi and without Julia.

Nothing of sbibm is edited on the disk, and nothing happens before somebody imports it:
the repairs are import hooks.

- Its algorithms import `sbi.utils.get_nn_models`, which sbi no longer has: a module of
  that name gives out the functions that it held.
- `sir` and `lotka_volterra` solve their equations in Julia through `diffeqtorch`. Where
  that is installed, it is left alone; where not, the tasks get simulators of ours.
- `slcp_distractors` loads a distribution with `torch.load`, which by now refuses the
  classes of pyro unless they are declared safe.
"""

import functools
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

import torch
from sbi.neural_nets import classifier_nn, likelihood_nn, posterior_nn

from sbi_boed_plugin._import_hooks import ImportHook, add_hook, remove_hook
from sbi_boed_plugin.sbibm.julia_free import lotka_volterra_simulator, sir_simulator

__all__ = ["add_repairs", "remove_repairs"]

_OLD_MODULE = "sbi.utils.get_nn_models"
_JULIA_MODULE = "diffeqtorch"


class _NoJulia:
    """Takes the place of `diffeqtorch.DiffEq` while it is missing."""

    def __init__(self, *_: Any, **__: Any) -> NoReturn:
        raise ImportError(
            "task.de is a solver in Julia, which needs diffeqtorch. The simulators of "
            "sir and lotka_volterra work without: use task.get_simulator()."
        )


# Our stand-ins, to be told from modules of the same name that somebody installed.
_STAND_IN = ModuleType(_JULIA_MODULE, "Stands in for diffeqtorch, without Julia.")
_STAND_IN.__spec__ = ModuleSpec(_JULIA_MODULE, None)
_STAND_IN.DiffEq = _NoJulia  # type: ignore[attr-defined]

_OLD_NAMES = ModuleType(_OLD_MODULE, "Functions that sbi 0.22 had here.")
_OLD_NAMES.__spec__ = ModuleSpec(_OLD_MODULE, None)
for _function in (classifier_nn, likelihood_nn, posterior_nn):
    setattr(_OLD_NAMES, _function.__name__, _function)


def add_repairs() -> None:
    """Let sbibm run here, from its next import on or, if it is imported, from now on.

    Calling it again changes nothing.
    """
    # Not where sbi has a module of that name.
    if _OLD_MODULE not in sys.modules and find_spec(_OLD_MODULE) is None:
        sys.modules[_OLD_MODULE] = _OLD_NAMES
    for hook in _HOOKS:
        add_hook(hook)


def remove_repairs() -> None:
    """Let later imports of sbibm be what they were; what was repaired stays so."""
    if sys.modules.get(_OLD_MODULE) is _OLD_NAMES:
        del sys.modules[_OLD_MODULE]
    for hook in _HOOKS:
        remove_hook(hook)


@contextmanager
def _julia_or_stand_in() -> Iterator[None]:
    """Let a module import `diffeqtorch`, with a stand-in where it is not working."""
    if _has_julia():
        yield
        return
    sys.modules[_JULIA_MODULE] = _STAND_IN
    try:
        yield
    finally:
        # Whoever looks for diffeqtorch elsewhere is to find that it is missing.
        del sys.modules[_JULIA_MODULE]


def _has_julia() -> bool:
    if _JULIA_MODULE in sys.modules:
        return True
    if find_spec(_JULIA_MODULE) is None:
        return False
    try:
        __import__(_JULIA_MODULE)
    except Exception as error:  # Julia fails in ways of its own.
        warnings.warn(
            f"diffeqtorch is installed but cannot be imported "
            f"({type(error).__name__}: {error}); sbibm's sir and lotka_volterra are "
            "solved without Julia.",
            stacklevel=2,
        )
        return False
    return True


def _replace_simulator(
    name: str, simulator: Callable[..., Any]
) -> Callable[[ModuleType], None]:
    def change(module: ModuleType) -> None:
        if module.DiffEq is not _NoJulia:
            return
        task = getattr(module, name)
        if hasattr(task.get_simulator, "__wrapped__"):
            return  # It is ours already: hooks run again for loaded modules.

        @functools.wraps(task.get_simulator)
        def get_simulator(self: Any, max_calls: int | None = None) -> Any:
            return simulator(self, max_calls)

        task.get_simulator = get_simulator

    return change


def _declare_distributions_safe(module: ModuleType) -> None:
    """Let the simulator of SLCP, and it alone, load the distribution of distractors."""
    original = module.SLCP.get_simulator
    repaired = hasattr(original, "__wrapped__")
    # Older versions of torch trust every class.
    if repaired or not hasattr(torch.serialization, "safe_globals"):
        return

    @functools.wraps(original)
    def get_simulator(self: Any, max_calls: int | None = None) -> Any:
        made = original(self, max_calls)
        if self.distractors:
            made.simulator = _load_safely(made.simulator)
        return made

    module.SLCP.get_simulator = get_simulator


def _load_safely(simulate: Callable[..., Any]) -> Callable[..., Any]:
    from pyro import distributions
    from torch.distributions import Chi2

    classes = [
        distributions.MixtureSameFamily,
        distributions.Categorical,
        distributions.Independent,
        distributions.MultivariateStudentT,
        distributions.Chi2,
        Chi2,
    ]

    @functools.wraps(simulate)
    def simulate_safely(parameters: Any, **settings: Any) -> Any:
        with torch.serialization.safe_globals(classes):
            return simulate(parameters, **settings)

    return simulate_safely


_HOOKS = (
    ImportHook(
        "sbibm.tasks.sir.task",
        _replace_simulator("SIR", sir_simulator),
        _julia_or_stand_in,
    ),
    ImportHook(
        "sbibm.tasks.lotka_volterra.task",
        _replace_simulator("LotkaVolterra", lotka_volterra_simulator),
        _julia_or_stand_in,
    ),
    ImportHook("sbibm.tasks.slcp.task", _declare_distributions_safe),
)
