"""Repairs happen on import, leave alone what works, and touch nothing global."""

import importlib
import subprocess
import sys
import textwrap

import pytest
import torch

from sbi_boed_plugin.sbibm import get_task
from sbi_boed_plugin.sbibm.repairs import repair_sbibm

SIR = "sbibm.tasks.sir.task"


def run_python(code):
    """Return what code prints in an interpreter that has imported nothing yet."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()


USE_SBIBM = """
    print(callable(a.snpe), callable(a.snle), callable(a.snre))
    print(a.nle_ince.__module__, a.npe_gkl.__name__, callable(a.nre_gkl))
    for name in ("sir", "slcp_distractors"):
        task = sbibm.get_task(name)
        print(task.get_simulator()(task.get_prior()(num_samples=2)).shape[1])
    try:
        sbibm.get_task("sir").de
    except ImportError as error:
        print("get_simulator" in str(error))
    print("diffeqtorch" in sys.modules, find_spec("diffeqtorch"))
"""


@pytest.mark.parametrize(
    "first",
    [
        "import sbi_boed_plugin; import sbibm, sbibm.algorithms as a",
        pytest.param(
            "import sbibm; import sbi_boed_plugin; import sbibm.algorithms as a",
            marks=pytest.mark.slow,
        ),
        # As the runner of sbibm does, which knows nothing of us.
        "import sbibm; from hydra.core.plugins import Plugins; "
        "from hydra._internal.utils import create_config_search_path as c; c(None); "
        "import sbibm.algorithms as a",
    ],
)
def test_sbibm_works_whoever_is_imported_first(first):
    code = f"import sys; from importlib.util import find_spec; {first}"
    found = run_python(textwrap.dedent(code) + textwrap.dedent(USE_SBIBM))
    assert found == [
        "True", "True", "True",
        "sbi_boed_plugin.sbibm.methods", "npe_gkl", "True",
        "10", "100", "True",
        "False", "None",
    ]  # fmt: skip


def test_importing_the_package_imports_no_sbibm_and_unregister_undoes():
    found = run_python(
        """
        import sys, sbi_boed_plugin
        print(any(name.partition(".")[0] == "sbibm" for name in sys.modules))
        print("sbi_boed_plugin.sbibm" in sys.modules)
        finders = len(sys.meta_path)
        sbi_boed_plugin.unregister()
        print(finders - len(sys.meta_path))
        import sbibm
        try:
            import sbibm.algorithms
        except ModuleNotFoundError as error:
            print(error.name)
        sbi_boed_plugin.register()
        import sbibm.algorithms
        print(sbibm.algorithms.npe_gkl.__name__, finders - len(sys.meta_path))
        sbi_boed_plugin.unregister()
        print(hasattr(sbibm.algorithms, "npe_gkl"), sbi_boed_plugin.is_registered())
        """
    )
    assert found == [
        *("False", "False", "1", "sbi.utils.get_nn_models", "npe_gkl", "1"),
        *("False", "False"),
    ]


def test_simulators_are_replaced_once():
    names = ("SIR", "sir"), ("LotkaVolterra", "lotka_volterra"), ("SLCP", "slcp")

    def simulators():
        repair_sbibm()
        modules = [importlib.import_module(f"sbibm.tasks.{n}.task") for _, n in names]
        return [
            getattr(module, kind).get_simulator
            for module, (kind, _) in zip(modules, names, strict=True)
        ]

    assert simulators() == simulators()


def test_later_releases_are_left_as_they_are(monkeypatch):
    repair_sbibm()
    monkeypatch.setattr("sbibm.__version__", "1.2.0rc1")
    monkeypatch.delitem(sys.modules, SIR)
    repair_sbibm()
    assert SIR not in sys.modules


def test_distractors_are_loaded_without_trusting_their_classes_elsewhere():
    before = set(torch.serialization.get_safe_globals())
    task = get_task("slcp_distractors")
    task.get_simulator()(task.get_prior()(num_samples=2))
    assert set(torch.serialization.get_safe_globals()) == before


def test_a_missing_sbibm_and_an_unknown_task_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sbibm", None)
    with pytest.raises(ImportError, match=r"pip install --no-deps sbibm==1\.1\.0"):
        get_task("sir")
    with pytest.raises(ValueError, match=r"'slp'.*two_moons"):
        get_task("slp")
