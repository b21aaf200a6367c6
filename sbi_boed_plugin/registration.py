"""Put our methods where users of sbi and of sbibm look for them.

Once registered, `from sbi.inference import NLE_INCE` works, and so does sbi's simple
interface, `infer(simulator, prior, method="nle_ince", num_simulations=1_000)`, which
looks its method up in `sbi.inference`. When somebody imports sbibm, it is repaired to
run beside a current sbi and without Julia, and `sbibm.algorithms` gets our methods.

Importing the package registers it, unless the environment variable
`SBI_BOED_PLUGIN_AUTOREGISTER` is `0`, `false`, `no`, `off` or empty.
"""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import sbi.inference

from sbi_boed_plugin.trainers.nle_ince import NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL

__all__ = ["AfterImport", "autoregister", "is_registered", "register", "unregister"]

_AUTOREGISTER_VARIABLE = "SBI_BOED_PLUGIN_AUTOREGISTER"
_NO = ("0", "false", "no", "off", "")

_TRAINERS = {"NLE_INCE": NLE_INCE, "NPE_GKL": NPE_GKL, "NRE_GKL": NRE_GKL}
_ALGORITHMS = "sbibm.algorithms"


class AfterImport(MetaPathFinder):
    """Calls a function after the next import of a module, and is gone afterwards."""

    def __init__(self, module: str, action: Callable[[], None]) -> None:
        self._module = module
        self._action = action

    def wait(self) -> None:
        """Wait for the next import of the module."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def cancel(self) -> None:
        """Wait no longer."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> ModuleSpec | None:
        """Find the module as the other finders do."""
        if fullname != self._module:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # which uncovers the method of its class.
            execute(module)
            if self in sys.meta_path:
                self.cancel()
                self._action()

        loader.exec_module = exec_module
        return spec


def _registries() -> list[tuple[ModuleType, dict[str, Any]]]:
    """Return each imported module that gets names of ours, with those names."""
    registries: list[tuple[ModuleType, dict[str, Any]]] = [(sbi.inference, _TRAINERS)]
    if _ALGORITHMS in sys.modules:
        ours = import_module("sbi_boed_plugin.sbibm")
        functions = {name.lower(): getattr(ours, name.lower()) for name in _TRAINERS}
        registries.append((sys.modules[_ALGORITHMS], functions))
    return registries


def _taken(module: ModuleType, names: dict[str, Any]) -> list[str]:
    """Return which names a module uses for something that is not ours."""
    # vars() rather than getattr(): sbi answers getattr() for its deprecated aliases.
    return [n for n, value in names.items() if vars(module).get(n, value) is not value]


def _add() -> None:
    """Add our names, where they are not taken, to the modules that are imported."""
    for module, names in _registries():
        for name in names.keys() - _taken(module, names):
            setattr(module, name, names[name])
        exported = vars(module).get("__all__", [])  # sbibm declares no exports.
        exported += [name for name in names if name not in exported]


def _prepare_sbibm() -> None:
    """Repair sbibm, which is imported, and add our run functions to it."""
    # An error would take sbibm away from whoever imports it.
    try:
        import_module("sbi_boed_plugin.sbibm.repairs").repair_sbibm()
        import_module(_ALGORITHMS)
    except ImportError as error:
        warnings.warn(f"sbibm cannot be repaired: {error}.", stacklevel=2)
        return
    if taken := _taken(*_registries()[1]):
        warnings.warn(
            f"{_ALGORITHMS} has {', '.join(taken)} of its own, which are kept; ours "
            "are in sbi_boed_plugin.sbibm.",
            stacklevel=2,
        )
    _add()


_AFTER_SBIBM = AfterImport("sbibm", _prepare_sbibm)


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
        for name in _taken(module, names):
            raise ValueError(
                f"Cannot register `{module.__name__}.{name}`: the name is taken by "
                f"{vars(module)[name]!r}. Remove that first, or set "
                f"{_AUTOREGISTER_VARIABLE}=0 to import without registering."
            )
    _add()
    if "sbibm" in sys.modules:
        _prepare_sbibm()
    else:
        _AFTER_SBIBM.wait()


def unregister() -> None:
    """Undo `register()`: remove what is ours, and only that.

    An sbibm that was imported meanwhile stays repaired. Calling this function again, or
    without a registration, changes nothing.
    """
    _AFTER_SBIBM.cancel()
    for module, names in _registries():
        for name in names.keys() - _taken(module, names):
            if name in vars(module):
                delattr(module, name)
                if name in vars(module).get("__all__", []):
                    module.__all__.remove(name)


def is_registered() -> bool:
    """Tell whether all our methods are where `register()` puts them."""
    return all(
        vars(module).get(name) is value
        for module, names in _registries()
        for name, value in names.items()
    )


def autoregister() -> None:
    """Register when the package is imported, unless the environment forbids it."""
    if os.environ.get(_AUTOREGISTER_VARIABLE, "1").strip().lower() not in _NO:
        register()
