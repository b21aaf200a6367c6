"""Wheel and sdist hold the package and what describes it, and nothing else."""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import sbi_boed_plugin

REPOSITORY = Path(__file__).parents[1]


def build(target, folder):
    """Return the file that the installed hatchling builds, without a network."""
    run = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    return wheel.read(name).decode()


def package_files():
    package = REPOSITORY / "sbi_boed_plugin"
    return {str(p.relative_to(REPOSITORY)) for p in package.rglob("*.py")}


def test_the_wheel_ships_the_package_and_the_plugin_of_hydra_only(wheel):
    names = set(wheel.namelist())
    configurations = {
        f"sbi_boed_plugin/sbibm/conf/algorithm/{method}.yaml"
        for method in ("nle_ince", "npe_gkl", "nre_gkl")
    }
    assert names >= package_files() | configurations | {"sbi_boed_plugin/py.typed"}
    folders = {name.split("/")[0] for name in names}
    installed = {f for f in folders if not f.endswith(".dist-info")}
    assert installed == {"sbi_boed_plugin", "hydra_plugins", "sbi_boed_command.py"}
    # A namespace of many packages: a file there would hide the plugins of all others.
    plugins = {name for name in names if name.startswith("hydra_plugins")}
    assert plugins == {"hydra_plugins/sbi_boed_plugin_search_path.py"}


def test_the_sdist_has_what_a_wheel_is_built_from(tmp_path):
    path = build("sdist", tmp_path)
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= package_files() | {
        "hydra_plugins/sbi_boed_plugin_search_path.py",
        "sbi_boed_command.py",
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CITATION.cff",
    }
    # Results and tests would make it many times as large.
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert folders == {"sbi_boed_plugin", "hydra_plugins"}
    assert path.stat().st_size < 1_000_000


def test_the_metadata_pin_sbi_leave_sbibm_out_and_declare_the_command(wheel, metadata):
    (entry_points,) = (n for n in wheel.namelist() if n.endswith("entry_points.txt"))
    assert "Requires-Dist: sbi<0.29,>=0.27\n" in metadata
    assert "Requires-Dist: sbibm" not in metadata
    assert "sbi-boed = sbi_boed_command:main" in wheel.read(entry_points).decode()


def test_the_metadata_say_what_the_package_is(metadata):
    assert f"Version: {sbi_boed_plugin.__version__}\n" in metadata
    assert "License-Expression: Apache-2.0\n" in metadata
    extras = set(re.findall(r"Provides-Extra: (\w+)", metadata))
    assert extras == {"bench", "dask", "dev", "docs", "plot", "sbibm"}
    (least,) = re.findall(r"Requires-Python: >=3\.(\d+)", metadata)
    versions = re.findall(r"Python :: 3\.(\d+)", metadata)
    assert versions == [str(minor) for minor in range(int(least), 14)]


def test_the_citation_is_of_this_version():
    text = (REPOSITORY / "CITATION.cff").read_text()
    assert f"\nversion: {sbi_boed_plugin.__version__}\n" in text
    assert "arXiv:2502.08004" in text and "arXiv:2310.01808" in text
