"""Keys of trainings: a digest of all that a training depends on."""

import contextlib
import hashlib
import inspect
import sys
from dataclasses import fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from sbi_boed_plugin import __version__
from sbi_boed_plugin.sbibm._cache import cache_key
from sbi_boed_plugin.sbibm.settings import RunSettings

__all__ = ["training_key"]

# Folders of our package that no training comes through.
_NEVER_TRAINS = ("benchmark", "cli", "plotting", "reproduce")

# Packages whose code is known by their versions.
_VERSIONED = (
    "builtins",
    "numpy",
    "pyro",
    "sbi",
    "sbi_boed_plugin",
    "sbibm",
    "scipy",
    "torch",
)

_PACKAGES = (
    "nflows",
    "numpy",
    "pyro-ppl",
    "sbi",
    "sbibm",
    "scipy",
    "torch",
    "zuko",
)

_CODE = (FunctionType, classmethod, property, staticmethod)
_BY_VALUE = (bool, int, float, complex, str, bytes, Tensor, np.ndarray, Path)


def training_key(
    method: str, settings: RunSettings, task: Any, num_simulations: int, x_o: Tensor
) -> str:
    """Return a key of all that a training depends on.

    Two tasks have the same key only if they were made with the same values, priors and
    functions, by the same code. What cannot be compared by value has a key of its own
    in each process: it is trained again rather than taken for another.

    Args:
        method: Name of the method.
        settings: Its hyperparameters.
        task: A task of sbibm, or one that looks like it.
        num_simulations: Number of simulations of all rounds together.
        x_o: The observation, on which several rounds depend.

    Returns:
        A text.
    """
    hyper = {f.name: getattr(settings, f.name) for f in fields(settings)}
    # Where files are kept changes nothing; how samples are drawn only later rounds.
    irrelevant = {"cache"}
    if settings.num_rounds == 1:
        irrelevant |= {"mcmc_method", "mcmc_parameters", "max_sampling_time"}
    return cache_key(
        {
            "method": method,
            "hyper": {k: v for k, v in hyper.items() if k not in irrelevant},
            "num_simulations": num_simulations,
            "observation": x_o if settings.num_rounds > 1 else None,
            "task": _plain(task, ()),
            "versions": _versions(),
            "code": _code(),
        }
    )


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    """Return what tells a value apart from others, in plain values and arrays.

    Args:
        value: Anything that a task may hold.
        above: Identities of what it is a part of, for parts that refer back.
    """
    if value is None or isinstance(value, _BY_VALUE):
        return value
    if id(value) in above:
        return f"level {above.index(id(value))}"
    above = (*above, id(value))
    if isinstance(value, dict):
        return [[_plain(k, above), _plain(v, above)] for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(part, above) for part in value]
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, (type, FunctionType)) and _has_version(value):
        return _name(value)
    if isinstance(value, type):
        bases = [base for base in value.__mro__ if not _has_version(base)]
        return [_name(value), [_class_code(base, above) for base in bases]]
    if isinstance(value, FunctionType):
        return [_name(value), _function_code(value, above)]
    if isinstance(value, (staticmethod, classmethod)):
        return _plain(value.__func__, above)
    if isinstance(value, property):
        return _plain([value.fget, value.fset], above)
    if isinstance(value, MethodType):
        return [_plain(value.__func__, above), _plain(value.__self__, above)]
    if isinstance(value, BuiltinFunctionType) and _has_version(value):
        return _name(value)
    if not hasattr(value, "__dict__"):
        # An address in it makes it differ from all others.
        return repr(value)
    held = vars(value)
    if isinstance(value, Distribution):
        # What torch has computed on demand is no part of the distribution.
        held = {k: v for k, v in held.items() if not hasattr(type(value), k)}
        # Users write priors without them, of which torch has an error of its own.
        with contextlib.suppress(NotImplementedError):
            for name in value.arg_constraints:
                held[name] = getattr(value, name)
        held = dict(sorted(held.items()))
    return [_plain(type(value), above), _plain(held, above)]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _has_version(value: Any) -> bool:
    """Tell whether code is that of a package, which is known by its version."""
    return str(value.__module__).partition(".")[0] in _VERSIONED


def _class_code(kind: type, above: tuple[int, ...]) -> Any:
    """Return the code of a class, and of all that may be edited beside it."""
    members = {
        name: member
        for name, member in vars(kind).items()
        if isinstance(member, _CODE)
        or not (name.startswith("__") or name == "_abc_impl")
    }
    return [_source(sys.modules.get(kind.__module__)), _plain(members, above)]


def _function_code(function: FunctionType, above: tuple[int, ...]) -> Any:
    """Return the code of a function with all that it refers to.

    Its source would not do: in a session there is none, and a global value is not in
    it.
    """
    held: list[Any] = [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # It is empty yet.
            held.append(cell.cell_contents)
    code, names = _instructions(function.__code__)
    used = {
        name: function.__globals__[name]
        for name in sorted(names)
        if name in function.__globals__
    }
    return [code, _plain([*held, used], above)]


def _instructions(code: CodeType) -> tuple[Any, set[str]]:
    """Return what code does, with that of functions within, and names that it uses."""
    names = set(code.co_names)
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constant, within = _instructions(constant)
            names |= within
        constants.append(repr(constant))
    return [code.co_code.hex(), list(code.co_names), constants], names


def _source(value: Any) -> str | None:
    """Return the source of a module or function, or `None` if it has no file."""
    try:
        return inspect.getsource(value)
    except (OSError, TypeError):
        return None


def _versions() -> dict[str, str]:
    """Return versions of all that has a part in a training."""
    found = {"sbi_boed_plugin": __version__}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@cache
def _code() -> str:
    """Return a digest of our code that trains: between releases it has no version."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        if path.relative_to(package).parts[0] not in _NEVER_TRAINS:
            digest.update(path.read_bytes())
    return digest.hexdigest()
