"""Put our trainers where users of sbi look for them.

Once registered, `from sbi.inference import NLE_INCE` works, and so does sbi's simple
interface, `infer(simulator, prior, method="nle_ince", num_simulations=1_000)`, which
looks its method up in `sbi.inference`.

Importing the package registers it. Set the environment variable
`SBI_BOED_PLUGIN_AUTOREGISTER=0` to prevent that, and call `register()` yourself.
"""

import os
from types import ModuleType

import sbi.inference

from sbi_boed_plugin.trainers.nle_ince import NLE_INCE
from sbi_boed_plugin.trainers.npe_gkl import NPE_GKL
from sbi_boed_plugin.trainers.nre_gkl import NRE_GKL

__all__ = ["autoregister", "is_registered", "register", "unregister"]

_AUTOREGISTER_VARIABLE = "SBI_BOED_PLUGIN_AUTOREGISTER"

_TRAINERS: dict[str, object] = {
    "NLE_INCE": NLE_INCE,
    "NPE_GKL": NPE_GKL,
    "NRE_GKL": NRE_GKL,
}


def _registries() -> list[tuple[ModuleType, dict[str, object]]]:
    """Each module that receives names of ours, with those names."""
    return [(sbi.inference, _TRAINERS)]


def _is_ours(module: ModuleType, name: str, value: object) -> bool:
    # vars() rather than getattr(): sbi answers getattr() for its deprecated aliases.
    return vars(module).get(name) is value


def register() -> None:
    """Add our trainers to `sbi.inference`.

    Calling it again changes nothing. If any name is taken, nothing is registered.

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
    for module, names in _registries():
        for name, value in names.items():
            if name not in vars(module):
                setattr(module, name, value)
                module.__all__.append(name)


def unregister() -> None:
    """Undo `register()`: remove from `sbi.inference` what is ours, and only that.

    Calling it again, or without a registration, changes nothing.
    """
    for module, names in _registries():
        for name, value in names.items():
            if _is_ours(module, name, value):
                delattr(module, name)
                module.__all__.remove(name)


def is_registered() -> bool:
    """Tell whether all our trainers are in `sbi.inference`.

    Returns:
        True after `register()`, False after `unregister()`.
    """
    return all(
        _is_ours(module, name, value)
        for module, names in _registries()
        for name, value in names.items()
    )


def autoregister() -> None:
    """Register, unless the environment says `SBI_BOED_PLUGIN_AUTOREGISTER=0`.

    The package calls it when it is imported.

    Raises:
        ValueError: As `register()` does.
    """
    if os.environ.get(_AUTOREGISTER_VARIABLE) != "0":
        register()
