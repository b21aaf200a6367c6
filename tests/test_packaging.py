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


def test_the_wheel_ships_every_module_and_the_type_marker(wheel):
    package = REPOSITORY / "sbi_boed_plugin"
    modules = {str(p.relative_to(REPOSITORY)) for p in package.rglob("*.py")}
    assert modules | {"sbi_boed_plugin/py.typed"} <= set(wheel.namelist())


def test_the_wheel_installs_nothing_but_the_package_and_its_plugin(wheel):
    folders = {name.split("/")[0] for name in wheel.namelist()}
    installed = {f for f in folders if not f.endswith(".dist-info")}
    assert installed == {"sbi_boed_plugin", "hydra_plugins"}


def test_the_wheel_ships_the_plugin_of_hydra_and_its_configurations(wheel):
    names = set(wheel.namelist())
    assert "hydra_plugins/sbi_boed_plugin_search_path.py" in names
    # A namespace of many packages: a file there would hide the plugins of all others.
    assert "hydra_plugins/__init__.py" not in names
    for method in ("nle_ince", "npe_gkl", "nre_gkl"):
        assert f"sbi_boed_plugin/sbibm/conf/algorithm/{method}.yaml" in names


def test_the_metadata_pin_sbi_and_leave_sbibm_out(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    requirements = [
        line.removeprefix("Requires-Dist: ")
        for line in wheel.read(name).decode().splitlines()
        if line.startswith("Requires-Dist: ")
    ]
    assert "sbi<0.28,>=0.27" in requirements
    assert not any(r.startswith("sbibm") for r in requirements)


def test_the_wheel_declares_the_command(wheel):
    (name,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "sbi-boed = sbi_boed_plugin.cli:main" in wheel.read(name).decode()
