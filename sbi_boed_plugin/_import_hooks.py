"""Functions that run when a module of another package is imported.

With them the import of this package stays quick, and does not depend on what else is
installed: a module is changed at the moment that somebody imports it.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["ImportHook", "add_hook", "has_hook", "remove_hook"]


@dataclass(frozen=True)
class ImportHook:
    """What happens when a module is imported.

    Attributes:
        module: Full name of the module.
        change: Called with the module once it has been executed.
        during: Returns a context in which the module is executed.
    """

    module: str
    change: Callable[[ModuleType], None]
    during: Callable[[], AbstractContextManager[Any]] = nullcontext


class _HookedLoader(Loader):
    """Executes a module by its own loader, within a hook."""

    def __init__(self, loader: Any, hook: ImportHook) -> None:
        self._loader = loader
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        # Whoever only looks for a module asks for its source, for example.
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module is to know its own loader: sources and resources come from there.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        with self._hook.during():
            self._loader.exec_module(module)
        self._hook.change(module)


class _HookFinder(MetaPathFinder):
    """Finds hooked modules as the other finders do."""

    def __init__(self) -> None:
        self.hooks: dict[str, ImportHook] = {}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        hook = self.hooks.get(fullname)
        if hook is None:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _HookedLoader(spec.loader, hook)
                return spec
        return None


_FINDER = _HookFinder()


def add_hook(hook: ImportHook) -> None:
    """Change a module when it is imported, or now if it was.

    Args:
        hook: The hook. It replaces one of the same module.
    """
    _FINDER.hooks[hook.module] = hook
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    module = sys.modules.get(hook.module)
    if module is not None:
        hook.change(module)


def has_hook(hook: ImportHook) -> bool:
    """Tell whether a hook was added and not removed.

    Args:
        hook: A hook.

    Returns:
        Whether it waits for its module.
    """
    return _FINDER.hooks.get(hook.module) == hook


def remove_hook(hook: ImportHook) -> None:
    """Let imports be what they were; a module that was changed stays so.

    Args:
        hook: A hook that was added. Otherwise nothing happens.
    """
    if has_hook(hook):
        del _FINDER.hooks[hook.module]
    if not _FINDER.hooks and _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
