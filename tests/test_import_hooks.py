"""A hook runs once after the import of its module, and leaves nothing behind."""

import importlib
import importlib.util
import inspect
import sys

import pytest

from sbi_boed_plugin._import_hooks import AfterImport


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The file of `strange_module`, which nobody has imported yet."""
    path = tmp_path / "strange_module.py"
    path.write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield path
    sys.modules.pop("strange_module", None)


@pytest.fixture
def hook(source):
    """Doubles the value of the module."""

    def double():
        sys.modules["strange_module"].value *= 2

    hook = AfterImport("strange_module", double)
    hook.wait()
    yield hook
    hook.cancel()


def test_the_action_runs_after_the_import_and_the_hook_is_gone(hook):
    hook.wait()  # Waiting twice is waiting once.
    assert importlib.import_module("strange_module").value == 2
    assert importlib.import_module("strange_module").value == 2
    assert hook not in sys.meta_path


def test_the_module_keeps_its_own_loader_and_source(hook):
    module = importlib.import_module("strange_module")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__.loader is module.__loader__
    assert inspect.getsource(module) == "value = 1\n"


def test_looking_for_the_module_changes_nothing(hook):
    loader = importlib.util.find_spec("strange_module").loader
    assert loader.get_source("strange_module") == "value = 1\n"
    assert "strange_module" not in sys.modules
    assert importlib.import_module("strange_module").value == 2


def test_a_cancelled_hook_does_nothing(hook):
    hook.cancel()
    hook.cancel()
    assert importlib.import_module("strange_module").value == 1


def test_a_module_that_fails_fails_as_ever_and_may_be_imported_again(hook, source):
    source.write_text("raise OSError('no disk')\n")
    with pytest.raises(OSError, match="no disk"):
        importlib.import_module("strange_module")
    assert "strange_module" not in sys.modules
    source.write_text("value = 3\n")
    importlib.invalidate_caches()
    assert importlib.import_module("strange_module").value == 6
