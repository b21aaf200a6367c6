"""Registration adds our names to sbi, refuses a foreign one, and can be undone.

Its hook runs once after the import of its module, and leaves nothing behind.
"""

import importlib
import importlib.util
import inspect
import os
import subprocess
import sys
from types import ModuleType

import pytest
import sbi.inference

from sbi_boed_plugin import registration
from sbi_boed_plugin import sbibm as ours
from sbi_boed_plugin.registration import (
    AfterImport,
    is_registered,
    register,
    unregister,
)
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE


class Foreign:
    """Somebody else's trainer, or method."""


def sbi_names():
    return dict(vars(sbi.inference)), list(sbi.inference.__all__)


@pytest.fixture(autouse=True)
def unregistered(monkeypatch):
    """Start each test without a registration, and end it as it was found."""
    was_registered = is_registered()
    unregister()
    yield
    monkeypatch.undo()  # foreign names must be gone before registering again.
    unregister()
    if was_registered:
        register()


@pytest.fixture
def algorithms(monkeypatch):
    """A module in the place of `sbibm.algorithms`, and none of sbibm."""
    monkeypatch.delitem(sys.modules, "sbibm", raising=False)
    module = ModuleType("sbibm.algorithms")
    monkeypatch.setitem(sys.modules, "sbibm.algorithms", module)
    return module


def test_register_adds_our_names_once_and_unregister_removes_them(algorithms):
    before = sbi_names()
    unregister()
    assert not is_registered() and sbi_names() == before
    register()
    registered = sbi_names()
    register()
    assert is_registered() and sbi_names() == registered
    assert sbi.inference.NLE_INCE is NLE_INCE
    assert sbi.inference.__all__[-3:] == ["NLE_INCE", "NPE_GKL", "NRE_GKL"]
    assert algorithms.nle_ince is ours.nle_ince
    unregister()
    assert not is_registered() and sbi_names() == before
    assert not hasattr(algorithms, "nle_ince")


@pytest.mark.parametrize("name", ["sbi.inference.NRE_GKL", "sbibm.algorithms.npe_gkl"])
def test_a_name_that_is_taken_is_refused_and_nothing_is_left_behind(
    algorithms, monkeypatch, name
):
    module, _, attribute = name.rpartition(".")
    monkeypatch.setattr(sys.modules[module], attribute, Foreign, raising=False)
    before = sbi_names(), dict(vars(algorithms))
    with pytest.raises(ValueError, match=rf"`{name}`.*Foreign.*AUTOREGISTER=0"):
        register()
    unregister()
    assert (sbi_names(), vars(algorithms)) == before
    assert not is_registered()


def test_a_foreign_algorithm_of_a_later_import_is_kept(algorithms, monkeypatch):
    algorithms.npe_gkl = Foreign
    monkeypatch.setattr("sbi_boed_plugin.sbibm.repairs.repair_sbibm", lambda: None)
    with pytest.warns(UserWarning, match="npe_gkl of its own"):
        registration._prepare_sbibm()
    assert algorithms.npe_gkl is Foreign
    assert algorithms.nre_gkl is ours.nre_gkl


def test_an_sbibm_that_cannot_be_repaired_is_told_and_imported(monkeypatch):
    def fail():
        raise ImportError("no module of that name")

    monkeypatch.setattr("sbi_boed_plugin.sbibm.repairs.repair_sbibm", fail)
    with pytest.warns(UserWarning, match="cannot be repaired: no module of that name"):
        registration._prepare_sbibm()


@pytest.mark.parametrize(
    "value, expected",
    [("0", False), ("False", False), (" Off ", False), ("", False), ("1", True)],
)
def test_autoregister_follows_the_environment(monkeypatch, value, expected):
    monkeypatch.setenv("SBI_BOED_PLUGIN_AUTOREGISTER", value)
    registration.autoregister()
    assert is_registered() is expected


@pytest.mark.parametrize(
    "value, expected",
    [("1", "True True"), pytest.param("no", "False False", marks=pytest.mark.slow)],
)
def test_importing_the_package_registers_it(value, expected):
    code = (
        "import sbi_boed_plugin; from sbi.inference import *; "
        "import sbi.inference as inference; "
        "print(hasattr(inference, 'NLE_INCE'), 'NLE_INCE' in globals())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"SBI_BOED_PLUGIN_AUTOREGISTER": value},
        capture_output=True,
        text=True,
    )
    assert run.stdout.strip() == expected, run.stderr


# --- The hook -------------------------------------------------------------------------


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


def test_the_action_runs_once_after_the_import_and_the_hook_is_gone(hook):
    hook.wait()  # Waiting twice is waiting once.
    # Looking for the module changes nothing.
    loader = importlib.util.find_spec("strange_module").loader
    assert loader.get_source("strange_module") == "value = 1\n"
    assert "strange_module" not in sys.modules
    for _ in range(2):
        module = importlib.import_module("strange_module")
        assert module.value == 2
    assert hook not in sys.meta_path
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert inspect.getsource(module) == "value = 1\n"


def test_a_cancelled_hook_does_nothing(hook):
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
