"""What tells values apart that a task may hold: objects, functions, and their code.

Code is looked at as it is loaded, not in its file, which may have been edited since.
That of installed packages, and of Python, is known by versions.
"""

import contextlib
import copyreg
import dis
import functools
import hashlib
import importlib
import logging
import sys
import threading
import uuid
import weakref
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import AffineTransform, Distribution, Transform
from torch.distributions.utils import lazy_property

from sbi_boed_plugin._versions import module_version
from sbi_boed_plugin.sbibm._cache import cache_key

__all__ = ["fingerprint"]

_BY_VALUE = (bool, int, float, complex, str, bytes, Tensor, np.ndarray, Path)
_CONTAINERS = (dict, list, tuple, set, frozenset)
_INVERSE = type(AffineTransform(0.0, 1.0).inv)
_LOCKS = (type(threading.Lock()), type(threading.RLock()))

# What Python itself keeps in classes, and does not compute with.
_OF_PYTHON = {
    "__abstractmethods__",
    "__annotations__",
    "__dataclass_fields__",
    "__dataclass_params__",
    "__dict__",
    "__doc__",
    "__firstlineno__",
    "__match_args__",
    "__module__",
    "__orig_bases__",
    "__parameters__",
    "__qualname__",
    "__slots__",
    "__static_attributes__",
    "__weakref__",
    "_abc_impl",
}

# How objects say what state they are in, where they do so themselves.
_STATE_METHODS = ("__reduce__", "__reduce_ex__", "__getstate__", "__getnewargs__")

# What cannot be compared, by its identity, which nothing else takes while it is here.
_unknown: dict[int, tuple[str, Any]] = {}


def fingerprint(value: Any) -> Any:
    """Return what tells a value apart from others, in plain values and arrays.

    Two values have the same fingerprint only if they hold the same and were made by the
    same code. What cannot be looked into has one of its own in each process. Names that
    code makes up as it runs, as in `getattr(self, "a" + "b")`, are not followed.

    Args:
        value: Anything that a task may hold.

    Returns:
        Numbers, texts, tensors, arrays, and lists of them.
    """
    return _Walk().plain(value, ())


class _Walk:
    """One way through all that a value consists of, each part of it once."""

    def __init__(self) -> None:
        # Parts so far, by identity. They are kept: that of what is gone would be given
        # to something else.
        self._parts: dict[int, tuple[int, Any]] = {}

    def plain(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """Return the fingerprint of a part.

        Args:
            value: The part.
            above: Identities of the containers that it is in, which may hold
                themselves.
        """
        if value is None or isinstance(value, _BY_VALUE):
            return value
        if isinstance(value, MappingProxyType):
            value = dict(value)
        if type(value) in _CONTAINERS:
            if id(value) in above:
                return f"level {above.index(id(value))}"
            return self._container(value, (*above, id(value)))
        if isinstance(value, weakref.ref):
            return self.plain(value())
        if isinstance(value, (staticmethod, classmethod)):
            return [type(value).__name__, self.plain(value.__func__)]
        if isinstance(value, property):
            return self.plain([value.fget, value.fset])
        if isinstance(value, MethodType):
            return self.plain([value.__func__, value.__self__])
        if isinstance(value, logging.Logger):
            return ["logger", value.name]
        if isinstance(value, _LOCKS):
            return "lock"
        if id(value) in self._parts:
            return f"part {self._parts[id(value)][0]}"
        self._parts[id(value)] = (len(self._parts), value)
        if isinstance(value, ModuleType):
            return self._module(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, functools.cached_property):
            return ["cached", self.plain(value.func)]
        if isinstance(value, BuiltinFunctionType):
            owner = value.__self__
            if owner is None or isinstance(owner, ModuleType):
                module = owner or sys.modules.get(str(value.__module__))
                return [value.__qualname__, self.plain(module)]
            return [value.__qualname__, self.plain(owner)]
        return self._object(value)

    def _container(self, value: Any, above: tuple[int, ...]) -> Any:
        if isinstance(value, dict):
            items = value.items()
            return [[self.plain(k, above), self.plain(v, above)] for k, v in items]
        if isinstance(value, (list, tuple)):
            return [self.plain(part, above) for part in value]
        # Their order differs from process to process: each part by itself, then.
        return sorted(cache_key({"": _Walk().plain(part, above)}) for part in value)

    def _object(self, value: Any) -> Any:
        """Return the type of an object with all that is known of its state."""
        kind = type(value)
        held = dict(getattr(value, "__dict__", {}))
        if isinstance(value, Distribution):
            # What torch has computed on demand is no part of the distribution.
            held = {k: v for k, v in held.items() if not _is_lazy(kind, k)}
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
                # Python mangles private names; slots may be empty.
                if name.startswith("__") and not name.endswith("__"):
                    name = f"_{base.__name__.lstrip('_')}{name}"
                if name not in _OF_PYTHON:
                    with contextlib.suppress(AttributeError):
                        held[f"{base.__name__}.{name}"] = getattr(value, name)
        beyond = None if isinstance(value, Transform) else _beyond_attributes(value)
        return [self.plain(kind), self.plain(held), self.plain(beyond)]

    def _class(self, kind: type) -> Any:
        """Return the name of a class, and its code or the version of its package."""
        bases = []
        for base in kind.__mro__:
            known = module_version(base.__module__)
            if known is None:
                members = {
                    name: member
                    for name, member in sorted(vars(base).items())
                    if name not in _OF_PYTHON
                    # Access to slots, whose values are those of objects.
                    and not isinstance(
                        member, (GetSetDescriptorType, MemberDescriptorType)
                    )
                }
                bases.append([_name(base), self.plain(members)])
            else:
                bases.append([_name(base), known])
        return bases

    def _function(self, function: FunctionType) -> Any:
        """Return the name of a function, what it holds, and its code.

        The source of the code would not do: in a session there is none, and a global
        value is not in it.
        """
        held: list[Any] = [function.__defaults__, function.__kwdefaults__]
        for cell in function.__closure__ or ():
            with contextlib.suppress(ValueError):  # It is empty yet.
                held.append(cell.cell_contents)
        held.append(vars(function))
        # Not by its `__module__`: a wrapper takes that of what it wraps.
        known = module_version(str(function.__globals__.get("__name__")))
        if known is not None:
            return [_name(function), known, self.plain(held)]
        code, names, imported = _instructions(function.__code__)
        used = {
            name: function.__globals__[name]
            for name in sorted(names)
            if name in function.__globals__
        }
        package = function.__globals__.get("__package__") or ""
        modules = [_imported(level, name, package) for level, name in sorted(imported)]
        return [_name(function), code, self.plain([*held, used, modules])]

    def _module(self, module: ModuleType) -> Any:
        """Return all that a module holds, or the version of its package."""
        name = module.__name__
        known = module_version(name)
        if known is not None:
            return [name, known]
        path = Path(str(getattr(module, "__file__", None) or ""))
        if path.is_file() and path.suffix != ".py":  # It is compiled.
            return [name, hashlib.sha256(path.read_bytes()).hexdigest()]
        held = {
            key: value
            for key, value in sorted(vars(module).items())
            if not (key.startswith("__") and key.endswith("__"))
        }
        return [name, self.plain(held)]


def _beyond_attributes(value: Any) -> Any:
    """Return the state that an object keeps elsewhere than in attributes.

    That of `functools.partial` or a generator of random numbers is in none. Python
    knows whether there is such a state: it would have to be in a pickle.
    """
    kind = type(value)
    reduce = copyreg.dispatch_table.get(kind)
    has_own = reduce is not None or any(
        getattr(kind, name, None) is not getattr(object, name, None)
        for name in _STATE_METHODS
    )
    try:
        reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except Exception:
        # Whatever it is that it raises: the state is not known.
        return _token(value)
    if not has_own and not issubclass(kind, _CONTAINERS):
        return None
    if isinstance(reduced, str):
        return f"{kind.__module__}.{reduced}"
    parts = [part if isinstance(part, tuple) else [part] for part in reduced[:3]]
    return [parts, *(list(items or ()) for items in reduced[3:5])]


def _token(value: Any) -> str:
    """Return a text that stands for an object, and for no other in any process."""
    if id(value) not in _unknown:
        _unknown[id(value)] = (uuid.uuid4().hex, value)
    return _unknown[id(value)][0]


def _is_lazy(kind: type, name: str) -> bool:
    """Tell whether an attribute is one that torch computes when it is asked for."""
    held = [vars(base)[name] for base in kind.__mro__ if name in vars(base)]
    return name == "_validate_args" or bool(held) and isinstance(held[0], lazy_property)


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def _instructions(code: CodeType) -> tuple[Any, set[str], set[tuple[int, str]]]:
    """Return what code does, the names that it uses, and the modules that it imports.

    Modules are pairs of the number of dots before their name, and the name.
    """
    names = set(code.co_names)
    imported: set[tuple[int, str]] = set()
    constants = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constant, names_within, imported_within = _instructions(constant)
            names |= names_within
            imported |= imported_within
        elif isinstance(constant, frozenset):
            constant = sorted(map(repr, constant))
        constants.append(repr(constant))
    before: list[Any] = []
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            # The number of dots is put on the stack before the names to import.
            imported.add((before[-2], instruction.argval))
        if instruction.opname.startswith("LOAD_"):
            before.append(instruction.argval)
    header = [
        *(code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount),
        *(code.co_flags, list(code.co_varnames)),
        *(list(code.co_freevars), list(code.co_cellvars)),
    ]
    # Which errors lead where is beside the instructions from Python 3.11 on.
    errors = getattr(code, "co_exceptiontable", b"").hex()
    made = [header, code.co_code.hex(), errors, list(code.co_names), constants]
    return made, names, imported


def _imported(level: int, name: str, package: str) -> Any:
    """Return a module that a function imports when it runs, or what is known of it."""
    known = None if level else module_version(name)
    if known is not None:
        return [name, known]  # To import it could take long, perhaps for nothing.
    try:
        return importlib.import_module("." * level + name, package or None)
    except Exception as error:
        # The function does without, or fails likewise.
        return f"{name}: {type(error).__name__}"
