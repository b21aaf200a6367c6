"""The wheel holds the package, its type marker and its command, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel built by the installed hatchling, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_ships_the_package_and_the_plugin_of_hydra_only(wheel):
    names = set(wheel.namelist())
    package = REPOSITORY / "sbi_boed_plugin"
    modules = {str(p.relative_to(REPOSITORY)) for p in package.rglob("*.py")}
    configurations = {
        f"sbi_boed_plugin/sbibm/conf/algorithm/{method}.yaml"
        for method in ("nle_ince", "npe_gkl", "nre_gkl")
    }
    assert modules | configurations | {"sbi_boed_plugin/py.typed"} <= names
    folders = {name.split("/")[0] for name in names}
    installed = {f for f in folders if not f.endswith(".dist-info")}
    assert installed == {"sbi_boed_plugin", "hydra_plugins", "sbi_boed_command.py"}
    # A namespace of many packages: a file there would hide the plugins of all others.
    plugins = {name for name in names if name.startswith("hydra_plugins")}
    assert plugins == {"hydra_plugins/sbi_boed_plugin_search_path.py"}


def test_the_metadata_pin_sbi_leave_sbibm_out_and_declare_the_command(wheel):
    text = {
        name.rpartition("/")[2]: wheel.read(name).decode()
        for name in wheel.namelist()
        if ".dist-info/" in name
    }
    assert "Requires-Dist: sbi<0.29,>=0.27\n" in text["METADATA"]
    assert "Requires-Dist: sbibm" not in text["METADATA"]
    assert "sbi-boed = sbi_boed_command:main" in text["entry_points.txt"]
