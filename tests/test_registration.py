"""Registration adds our names to sbi, refuses a foreign one, and can be undone."""

import os
import subprocess
import sys
from types import ModuleType

import pytest
import sbi.inference
import torch
from sbi.inference import infer
from sbi.utils import BoxUniform

from sbi_boed_plugin import registration
from sbi_boed_plugin import sbibm as run_functions
from sbi_boed_plugin.registration import is_registered, register, unregister
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE


class Foreign:
    """Somebody else's trainer."""


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
    """A module in the place of `sbibm.algorithms`, which takes seconds to import."""
    module = ModuleType("sbibm.algorithms")
    monkeypatch.setitem(sys.modules, "sbibm.algorithms", module)
    return module


@pytest.fixture
def foreign_name(monkeypatch):
    """`FOREIGN` is taken in sbi, and ours to register after NLE_INCE."""
    monkeypatch.setattr(sbi.inference, "FOREIGN", Foreign, raising=False)
    monkeypatch.setattr(
        registration, "_TRAINERS", {"NLE_INCE": NLE_INCE, "FOREIGN": NLE_INCE}
    )
    return "FOREIGN"


def test_register_adds_the_trainer():
    assert not is_registered()
    register()
    assert is_registered()
    assert sbi.inference.NLE_INCE is NLE_INCE
    assert "NLE_INCE" in sbi.inference.__all__


def test_register_is_idempotent():
    register()
    once = sbi_names()
    register()
    assert sbi_names() == once


def test_unregister_restores_sbi():
    before = sbi_names()
    register()
    assert sbi_names() != before
    unregister()
    assert not is_registered()
    assert not hasattr(sbi.inference, "NLE_INCE")
    assert sbi_names() == before


def test_register_adds_run_functions_to_the_algorithms_of_sbibm(algorithms):
    register()
    assert is_registered()
    assert algorithms.nle_ince is run_functions.nle_ince
    assert algorithms.npe_gkl is run_functions.npe_gkl
    unregister()
    assert not is_registered()
    assert not hasattr(algorithms, "npe_gkl")


def test_register_refuses_a_foreign_algorithm(algorithms):
    algorithms.npe_gkl = Foreign
    with pytest.raises(ValueError, match=r"`sbibm\.algorithms\.npe_gkl`.*Foreign"):
        register()
    assert algorithms.npe_gkl is Foreign
    assert not is_registered()


def test_a_foreign_algorithm_of_a_later_import_is_kept(algorithms):
    algorithms.npe_gkl = Foreign
    with pytest.warns(UserWarning, match="npe_gkl of its own"):
        registration._add_to_new_algorithms(algorithms)
    assert algorithms.npe_gkl is Foreign
    assert algorithms.nre_gkl is run_functions.nre_gkl


def test_unregister_without_a_registration_changes_nothing():
    before = sbi_names()
    unregister()
    assert sbi_names() == before


def test_register_refuses_a_foreign_name(monkeypatch):
    monkeypatch.setattr(sbi.inference, "NLE_INCE", Foreign, raising=False)
    with pytest.raises(
        ValueError, match=r"`sbi\.inference\.NLE_INCE`.*Foreign"
    ) as error:
        register()
    assert "SBI_BOED_PLUGIN_AUTOREGISTER=0" in str(error.value)
    assert sbi.inference.NLE_INCE is Foreign
    assert not is_registered()


def test_a_refused_registration_leaves_nothing_behind(foreign_name):
    before = sbi_names()
    with pytest.raises(ValueError, match=foreign_name):
        register()
    assert sbi_names() == before


def test_unregister_keeps_what_is_not_ours(monkeypatch):
    monkeypatch.setattr(sbi.inference, "NLE_INCE", Foreign, raising=False)
    unregister()
    assert sbi.inference.NLE_INCE is Foreign


def test_infer_finds_the_method():
    register()
    prior = BoxUniform(-torch.ones(2), torch.ones(2))
    with pytest.warns(UserWarning, match="simple interface"):
        posterior = infer(
            lambda theta: theta + 0.1 * torch.randn_like(theta),
            prior,
            method="nle_ince",
            num_simulations=60,
            train_kwargs={"max_num_epochs": 1, "training_batch_size": 20},
        )
    assert posterior.potential(torch.zeros(1, 2), x=torch.zeros(1, 2)).isfinite().all()


@pytest.mark.parametrize(
    "value, expected",
    [
        *((no, False) for no in ("0", "false", "False", "NO", "off", " Off ", "")),
        *((yes, True) for yes in ("1", "true", "on", "whatever", None)),
    ],
)
def test_autoregister_follows_the_environment(monkeypatch, value, expected):
    if value is None:
        monkeypatch.delenv("SBI_BOED_PLUGIN_AUTOREGISTER", raising=False)
    else:
        monkeypatch.setenv("SBI_BOED_PLUGIN_AUTOREGISTER", value)
    registration.autoregister()
    assert is_registered() is expected


def run_python(code, **environment):
    """Run `code` in a fresh interpreter that has not imported the package."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("SBI_BOED_PLUGIN_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=env | environment,
        capture_output=True,
        text=True,
    )


def test_importing_the_package_registers_it():
    run = run_python(
        "import sbi_boed_plugin; from sbi.inference import NLE_INCE; "
        "from sbi.inference import *; print(NLE_INCE.__module__)"
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "sbi_boed_plugin.trainers.nle_ince"


def test_the_environment_switches_autoregistration_off():
    run = run_python(
        "import sbi_boed_plugin; import sbi.inference as inference; "
        "print(hasattr(inference, 'NLE_INCE'), 'NLE_INCE' in inference.__all__)",
        SBI_BOED_PLUGIN_AUTOREGISTER="0",
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "False False"
