"""Put our methods where users of sbi and of sbibm look for them.

Once registered, `from sbi.inference import NLE_INCE` works, and so does sbi's simple
interface, `infer(simulator, prior, method="nle_ince", num_simulations=1_000)`, which
looks its method up in `sbi.inference`. `sbibm.algorithms.nle_ince` is there, too, from
the moment that somebody imports `sbibm.algorithms`, and sbibm itself runs beside a
current sbi and without Julia; until then, nothing of it is looked for.

Importing the package registers it. Set the environment variable
`SBI_BOED_PLUGIN_AUTOREGISTER=0` to prevent that, and call `register()` yourself. The
values `false`, `no`, `off` and an empty one mean the same, in capitals or not; all
others mean yes.
"""

import os
import sys
import warnings
from types import ModuleType

import sbi.inference

from sbi_boed_plugin._import_hooks import ImportHook, add_hook, has_hook, remove_hook
from sbi_boed_plugin.sbibm.methods import nle_ince as run_nle_ince
from sbi_boed_plugin.sbibm.methods import npe_gkl as run_npe_gkl
from sbi_boed_plugin.sbibm.methods import nre_gkl as run_nre_gkl
from sbi_boed_plugin.sbibm.repairs import add_repairs, remove_repairs
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL

__all__ = ["autoregister", "is_registered", "register", "unregister"]

_AUTOREGISTER_VARIABLE = "SBI_BOED_PLUGIN_AUTOREGISTER"
_NO = ("0", "false", "no", "off", "")

_TRAINERS: dict[str, object] = {
    "NLE_INCE": NLE_INCE,
    "NPE_GKL": NPE_GKL,
    "NRE_GKL": NRE_GKL,
}


_ALGORITHMS = "sbibm.algorithms"

_RUN_FUNCTIONS: dict[str, object] = {
    "nle_ince": run_nle_ince,
    "npe_gkl": run_npe_gkl,
    "nre_gkl": run_nre_gkl,
}


def _registries() -> list[tuple[ModuleType, dict[str, object]]]:
    """Each module that is there and receives names of ours, with those names."""
    there = [(sbi.inference, _TRAINERS)]
    if _ALGORITHMS in sys.modules:
        there.append((sys.modules[_ALGORITHMS], _RUN_FUNCTIONS))
    return there


def _is_ours(module: ModuleType, name: str, value: object) -> bool:
    # vars() rather than getattr(): sbi answers getattr() for its deprecated aliases.
    return vars(module).get(name) is value


def _add(module: ModuleType, names: dict[str, object]) -> None:
    for name, value in names.items():
        if name not in vars(module):
            setattr(module, name, value)
            _exported(module).append(name)


def _exported(module: ModuleType) -> list[str]:
    # sbibm declares no exports.
    return vars(module).get("__all__", [])


def _add_to_new_algorithms(module: ModuleType) -> None:
    """Add our run functions to `sbibm.algorithms` when it is imported."""
    taken = [
        name
        for name, value in _RUN_FUNCTIONS.items()
        if name in vars(module) and not _is_ours(module, name, value)
    ]
    # An error would take sbibm away from whoever imports it.
    if taken:
        warnings.warn(
            f"{_ALGORITHMS} has {', '.join(taken)} of its own, which are kept; ours "
            "are in sbi_boed_plugin.sbibm.",
            stacklevel=2,
        )
    _add(module, _RUN_FUNCTIONS)


_ALGORITHMS_HOOK = ImportHook(_ALGORITHMS, _add_to_new_algorithms)


def register() -> None:
    """Add our trainers to `sbi.inference` and our run functions to `sbibm.algorithms`.

    sbibm is not imported: what it needs is done when somebody imports it. Calling this
    function again changes nothing. If any name is taken, nothing is registered.

    Raises:
        ValueError: If a name is taken by something that is not ours.

    Example:
        >>> import sbi.inference
        >>> register()
        >>> sbi.inference.NLE_INCE.__module__
        'sbi_boed_plugin.trainers.nle_ince'
    """
    for module, names in _registries():
        for name, value in names.items():
            if name in vars(module) and not _is_ours(module, name, value):
                raise ValueError(
                    f"Cannot register `{module.__name__}.{name}`: the name is taken by "
                    f"{vars(module)[name]!r}. Remove that first, or set the "
                    f"environment variable {_AUTOREGISTER_VARIABLE}=0 to import "
                    "sbi_boed_plugin without registering it."
                )
    add_repairs()
    add_hook(_ALGORITHMS_HOOK)
    for module, names in _registries():
        _add(module, names)


def unregister() -> None:
    """Undo `register()`: remove what is ours, and only that.

    Tasks of sbibm that were imported meanwhile stay repaired. Calling this function
    again, or without a registration, changes nothing.
    """
    remove_hook(_ALGORITHMS_HOOK)
    remove_repairs()
    for module, names in _registries():
        for name, value in names.items():
            if _is_ours(module, name, value):
                delattr(module, name)
                if name in _exported(module):
                    _exported(module).remove(name)


def is_registered() -> bool:
    """Tell whether all our methods are where `register()` puts them.

    Returns:
        True after `register()`, False after `unregister()`.
    """
    return has_hook(_ALGORITHMS_HOOK) and all(
        _is_ours(module, name, value)
        for module, names in _registries()
        for name, value in names.items()
    )


def autoregister() -> None:
    """Register, unless the environment says `SBI_BOED_PLUGIN_AUTOREGISTER=0`.

    Or `false`, `no`, `off` or nothing. The package calls it when it is imported.

    Raises:
        ValueError: As `register()` does.
    """
    if os.environ.get(_AUTOREGISTER_VARIABLE, "1").strip().lower() not in _NO:
        register()
