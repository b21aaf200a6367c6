"""What tells values apart that a task may hold: objects, functions, and their code."""

import builtins
import contextlib
import inspect
import sys
import uuid
import weakref
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
from torch.distributions import AffineTransform, Distribution, Transform

from sbi_boed_plugin.sbibm._cache import cache_key

__all__ = ["fingerprint"]

# Packages whose code is known by versions that every key has anyway.
_VERSIONED = {
    "numpy",
    "pyro",
    "sbi",
    "sbi_boed_plugin",
    "sbibm",
    "scipy",
    "torch",
    *sys.stdlib_module_names,
}

_CODE = (FunctionType, classmethod, property, staticmethod)
_BY_VALUE = (bool, int, float, complex, str, bytes, Tensor, np.ndarray, Path)

_INVERSE = type(AffineTransform(0.0, 1.0).inv)

# How objects say what state they are in, where they do so themselves.
_STATE_METHODS = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__")

# What cannot be compared, by its identity, which nothing else takes while it is here.
_unknown: dict[int, tuple[str, Any]] = {}


def fingerprint(value: Any) -> Any:
    """Return what tells a value apart from others, in plain values and arrays.

    Two values have the same fingerprint only if they hold the same and were made by the
    same code. What cannot be looked into has one of its own in each process.

    Args:
        value: Anything that a task may hold.

    Returns:
        Numbers, texts, tensors, arrays, and lists of them.
    """
    return _plain(value, ())


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    """Return the fingerprint of a part.

    Args:
        value: The part.
        above: Identities of what it is a part of, for parts that refer back.
    """
    if value is None or isinstance(value, _BY_VALUE):
        return value
    if id(value) in above:
        return f"level {above.index(id(value))}"
    above = (*above, id(value))
    if type(value) is dict:
        return [[_plain(k, above), _plain(v, above)] for k, v in value.items()]
    if type(value) in (list, tuple):
        return [_plain(part, above) for part in value]
    if type(value) in (set, frozenset):
        # Their order differs from process to process.
        return sorted(cache_key({"": _plain(part, above)}) for part in value)
    if isinstance(value, ModuleType):
        return _module_code(value)
    if isinstance(value, type):
        return _class(value, above)
    if isinstance(value, FunctionType):
        return _function(value, above)
    if isinstance(value, (staticmethod, classmethod)):
        return _plain(value.__func__, above)
    if isinstance(value, property):
        return _plain([value.fget, value.fset], above)
    if isinstance(value, MethodType):
        return [_plain(value.__func__, above), _plain(value.__self__, above)]
    if isinstance(value, weakref.ref):
        return _plain(value(), above)
    if isinstance(value, BuiltinFunctionType):
        owner = value.__self__
        if owner is None or isinstance(owner, ModuleType):
            return _name(value)
        return [value.__qualname__, _plain(owner, above)]
    return _object(value, above)


def _object(value: Any, above: tuple[int, ...]) -> Any:
    """Return the type of an object with all that is known of its state."""
    kind = type(value)
    held = dict(getattr(value, "__dict__", {}))
    if isinstance(value, Distribution):
        # What torch has computed on demand is no part of the distribution.
        held = {k: v for k, v in held.items() if not hasattr(kind, k)}
        # Users write priors without them, of which torch has an error of its own.
        with contextlib.suppress(NotImplementedError):
            for name in value.arg_constraints:
                held[name] = getattr(value, name)
        held = dict(sorted(held.items()))
    if isinstance(value, Transform):
        # Those two come with use, but an inverse is one of nothing else.
        held.pop("_cached_x_y", None)
        if kind is not _INVERSE:
            held.pop("_inv", None)
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                # Python mangles private names; slots may be empty.
                private = name.startswith("__") and not name.endswith("__")
                name = f"_{base.__name__.lstrip('_')}{name}" if private else name
                with contextlib.suppress(AttributeError):
                    held[f"{base.__name__}.{name}"] = getattr(value, name)
    beyond = None if isinstance(value, Transform) else _beyond_attributes(value)
    return [_plain(part, above) for part in (kind, held, beyond)]


def _beyond_attributes(value: Any) -> Any:
    """Return the state that an object keeps elsewhere than in attributes.

    That of `functools.partial` or a generator of random numbers is in none. Python
    knows whether there is such a state: it would have to be in a pickle.
    """
    kind = type(value)
    has_own = any(
        getattr(kind, name, None) is not getattr(object, name, None)
        for name in _STATE_METHODS
    )
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:
        # Whatever it is that it raises: the state is not known.
        return _token(value)
    if not has_own and not issubclass(kind, (list, tuple, dict, set, frozenset)):
        return None
    if isinstance(reduced, str):
        return f"{kind.__module__}.{reduced}"
    parts = [part if isinstance(part, tuple) else [part] for part in reduced[:3]]
    return [parts, *(list(items or ()) for items in reduced[3:5])]


def _token(value: Any) -> str:
    """Return a text that stands for an object, and for no other in any process."""
    if id(value) not in _unknown:
        # Kept, lest another object be given its identity.
        _unknown[id(value)] = (uuid.uuid4().hex, value)
    return _unknown[id(value)][0]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _is_versioned(module: str | None) -> bool:
    """Tell whether code is that of a package, which is known by its version."""
    return str(module).partition(".")[0] in _VERSIONED


def _class(kind: type, above: tuple[int, ...]) -> Any:
    """Return the name of a class, and its code where that is not known by a version."""
    bases = [base for base in kind.__mro__ if not _is_versioned(base.__module__)]
    code = []
    for base in bases:
        members = {
            name: member
            for name, member in vars(base).items()
            if isinstance(member, _CODE)
            or not (
                name.startswith("__")
                or name == "_abc_impl"
                # Python's own access to slots, whose names are told by values.
                or inspect.ismemberdescriptor(member)
            )
        }
        module = sys.modules.get(base.__module__)
        code.append([_plain(module, above), _plain(members, above)])
    return [_name(kind), code] if code else _name(kind)


def _function(function: FunctionType, above: tuple[int, ...]) -> Any:
    """Return the name of a function, what it holds, and its code.

    The source of the code would not do: in a session there is none, and a global value
    is not in it.
    """
    held: list[Any] = [function.__defaults__, function.__kwdefaults__]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # It is empty yet.
            held.append(cell.cell_contents)
    held.append(vars(function))
    # Not by its `__module__`: a wrapper takes that of what it wraps.
    if _is_versioned(function.__globals__.get("__name__")):
        return [_name(function), _plain(held, above)]
    code, names = _instructions(function.__code__)
    used = {
        name: function.__globals__[name]
        for name in sorted(names)
        if name in function.__globals__
    }
    return [_name(function), code, _plain([*held, used], above)]


def _instructions(code: CodeType) -> tuple[Any, set[str]]:
    """Return what code does, with that of functions within, and names that it uses."""
    names = set(code.co_names)
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constant, within = _instructions(constant)
            names |= within
        elif isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))
        constants.append(repr(constant))
    return [code.co_code.hex(), list(code.co_names), constants], names


def _module_code(module: ModuleType) -> Any:
    """Return the sources of a module and of all that it imports, as far as needed.

    Installed packages are known by their versions, and not looked into.
    """
    found: dict[str, Any] = {}
    waiting = [module]
    while waiting:
        module = waiting.pop()
        name = module.__name__
        if name in found:
            continue
        found[name] = _package_version(module)
        if found[name] is None:
            found[name] = _source(module)
            used = [_module_of(value) for value in list(vars(module).values())]
            waiting += [each for each in used if each is not None]
    return sorted([name, code] for name, code in found.items())


def _module_of(value: Any) -> ModuleType | None:
    """Return the module that a value is, or that its code comes from."""
    if isinstance(value, ModuleType):
        return value
    # Of others not the value is asked, which may answer with anything.
    has_code = isinstance(value, (type, FunctionType))
    return sys.modules.get(str((value if has_code else type(value)).__module__))


def _package_version(module: ModuleType) -> str | None:
    """Return the version of the package of a module, `None` if it is not installed."""
    package = module.__name__.partition(".")[0]
    if _is_versioned(package) or module is builtins:
        return ""
    path = str(getattr(module, "__file__", None) or "")
    if not {"site-packages", "dist-packages"} & set(Path(path).parts):
        return None
    return _installed_version(package)


@cache
def _installed_version(package: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(package)
    # Packages may be installed under another name than they are imported by.
    return getattr(sys.modules.get(package), "__version__", None)


def _source(module: ModuleType) -> str | None:
    """Return the source of a module, or `None` if it has no file."""
    try:
        return inspect.getsource(module)
    except (OSError, TypeError):
        return None
