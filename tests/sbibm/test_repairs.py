"""Repairs happen on import, leave alone what works, and touch nothing global."""

import importlib
import subprocess
import sys
import textwrap

import pytest
import torch

from sbi_boed_plugin.sbibm import get_task
from sbi_boed_plugin.sbibm.repairs import add_repairs


def run_python(code):
    """Run code in an interpreter that has imported nothing yet."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


def test_sbibm_is_repaired_when_it_is_imported():
    found = run_python(
        """
        import sys, sbi_boed_plugin
        from importlib.util import find_spec
        print([m for m in sys.modules if m.split(".")[0] == "sbibm"] == [])

        import sbibm, sbibm.algorithms as a
        print(a.nle_ince.__module__, a.npe_gkl.__name__, callable(a.nre_gkl))
        print(callable(a.snpe), callable(a.snle), callable(a.snre))

        task = sbibm.get_task("sir")
        print(task.get_simulator()(task.get_prior()(num_samples=2)).shape[1])
        print("diffeqtorch" in sys.modules, find_spec("diffeqtorch"))
        try:
            task.de
        except ImportError as error:
            print("get_simulator" in str(error))
        """
    )
    assert found == [
        "True",
        "sbi_boed_plugin.sbibm.methods", "npe_gkl", "True",
        "True", "True", "True",
        "10", "False", "None", "True",
    ]  # fmt: skip


def test_importing_sbibm_first_makes_no_difference_and_unregister_undoes():
    found = run_python(
        """
        import sys, sbibm
        sbibm.get_task("slcp", distractors=True)
        import sbi_boed_plugin
        task = sbibm.get_task("slcp_distractors")
        print(task.get_simulator()(task.get_prior()(num_samples=2)).shape[1])
        sbi_boed_plugin.unregister()
        try:
            import sbibm.algorithms
        except ModuleNotFoundError as error:
            print(error.name)
        sbi_boed_plugin.register()
        import sbibm.algorithms
        print(sbibm.algorithms.npe_gkl.__name__)
        sbi_boed_plugin.unregister()
        print(hasattr(sbibm.algorithms, "npe_gkl"), sbi_boed_plugin.is_registered())
        """
    )
    assert found == ["100", "sbi.utils.get_nn_models", "npe_gkl", "False", "False"]


def test_a_process_of_a_launcher_of_hydra_finds_our_methods():
    # It imports the plugin with its settings, but searches for nothing.
    found = run_python(
        """
        import sys
        import sbibm, hydra_plugins.sbi_boed_plugin_search_path
        print("sbi_boed_plugin" in sys.modules)
        import sbibm.algorithms
        print(sbibm.algorithms.npe_gkl.__name__)
        task = sbibm.get_task("sir")
        print(task.get_simulator()(task.get_prior()(num_samples=2)).shape[1])
        """
    )
    assert found == ["False", "npe_gkl", "10"]


def test_the_plugin_of_hydra_does_not_register_whom_nobody_wants(monkeypatch):
    monkeypatch.setenv("SBI_BOED_PLUGIN_AUTOREGISTER", "False")
    found = run_python(
        """
        import sbibm, hydra_plugins.sbi_boed_plugin_search_path
        try:
            import sbibm.algorithms
        except ModuleNotFoundError as error:
            print(error.name)
        import sbi_boed_plugin
        print(sbi_boed_plugin.is_registered())
        """
    )
    assert found == ["sbi.utils.get_nn_models", "False"]


def test_simulators_are_replaced_once_however_often_hooks_run():
    names = ("SIR", "sir"), ("LotkaVolterra", "lotka_volterra"), ("SLCP", "slcp")
    for kind, name in names:
        module = importlib.import_module(f"sbibm.tasks.{name}.task")
        add_repairs()
        before = getattr(module, kind).get_simulator
        add_repairs()
        get_task(name)
        assert getattr(module, kind).get_simulator is before


@pytest.fixture
def forget_sir():
    """Let `sbibm.tasks.sir.task` be imported anew, and as it was afterwards."""
    name = "sbibm.tasks.sir.task"
    before = sys.modules.pop(name, None)
    yield name
    sys.modules.pop(name, None)
    sys.modules.pop("diffeqtorch", None)
    if before is not None:
        sys.modules[name] = before


def test_an_installed_diffeqtorch_is_left_alone(tmp_path, monkeypatch, forget_sir):
    (tmp_path / "diffeqtorch.py").write_text("class DiffEq:\n    mine = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    add_repairs()
    module = importlib.import_module(forget_sir)
    assert module.DiffEq.mine
    assert not hasattr(module.SIR.get_simulator, "__wrapped__")


def test_a_broken_diffeqtorch_is_told_and_done_without(
    tmp_path, monkeypatch, forget_sir
):
    (tmp_path / "diffeqtorch.py").write_text("raise RuntimeError('no Julia here')\n")
    monkeypatch.syspath_prepend(tmp_path)
    add_repairs()
    with pytest.warns(UserWarning, match="no Julia here"):
        module = importlib.import_module(forget_sir)
    task = module.SIR()
    assert task.get_simulator()(task.get_prior()(num_samples=2)).shape == (2, 10)


def test_distractors_are_loaded_without_trusting_their_classes_elsewhere():
    before = set(torch.serialization.get_safe_globals())
    task = get_task("slcp_distractors")
    task.get_simulator()(task.get_prior()(num_samples=2))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_missing_sbibm_is_named_with_the_line_to_run(monkeypatch):
    monkeypatch.setitem(sys.modules, "sbibm", None)
    with pytest.raises(ImportError, match=r"pip install --no-deps sbibm==1\.1\.0"):
        get_task("sir")


def test_an_unknown_task_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match=r"'slp'.*two_moons"):
        get_task("slp")
