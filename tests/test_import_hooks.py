"""Hooks change a module when it is imported, or now, and leave nothing behind."""

import importlib
import importlib.util
import inspect
import runpy
import sys
from contextlib import contextmanager

import pytest

from sbi_boed_plugin._import_hooks import ImportHook, add_hook, has_hook, remove_hook


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module that nobody has imported yet."""
    (tmp_path / "strange_module.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "strange_module"
    sys.modules.pop("strange_module", None)


def double(module):
    module.value *= 2


def test_a_module_is_changed_when_it_is_imported(module):
    hook = ImportHook(module, double)
    add_hook(hook)
    assert has_hook(hook)
    assert module not in sys.modules
    assert importlib.import_module(module).value == 2
    assert importlib.import_module(module).value == 2
    remove_hook(hook)
    assert not has_hook(hook)


def test_a_module_that_is_there_is_changed_now(module):
    imported = importlib.import_module(module)
    hook = ImportHook(module, double)
    add_hook(hook)
    assert imported.value == 2
    remove_hook(hook)
    assert imported.value == 2


def test_a_changed_module_keeps_its_own_loader_and_source(module):
    hook = ImportHook(module, double)
    add_hook(hook)
    imported = importlib.import_module(module)
    remove_hook(hook)
    assert type(imported.__loader__).__name__ == "SourceFileLoader"
    assert imported.__spec__.loader is imported.__loader__
    assert inspect.getsource(imported) == "value = 1\n"


def test_a_module_that_is_only_looked_for_shows_its_source(module):
    hook = ImportHook(module, double)
    add_hook(hook)
    loader = importlib.util.find_spec(module).loader
    assert loader.get_source(module) == "value = 1\n"
    assert runpy.run_module(module)["value"] == 1
    remove_hook(hook)
    assert module not in sys.modules


def test_a_module_is_executed_in_its_context(module):
    seen = []

    @contextmanager
    def during():
        seen.append("before")
        yield
        seen.append("after")

    hook = ImportHook(module, lambda module: seen.append(module.value), during)
    add_hook(hook)
    importlib.import_module(module)
    remove_hook(hook)
    assert seen == ["before", "after", 1]


def test_a_module_that_fails_fails_as_ever(tmp_path, module):
    (tmp_path / "strange_module.py").write_text("raise OSError('no disk')\n")
    importlib.invalidate_caches()
    hook = ImportHook(module, double)
    add_hook(hook)
    with pytest.raises(OSError, match="no disk"):
        importlib.import_module(module)
    remove_hook(hook)
    assert module not in sys.modules
