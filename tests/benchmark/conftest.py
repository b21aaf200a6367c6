"""Benchmarks of tiny methods, in folders of their own."""

import json

import pytest

pytest.importorskip("sbibm")

from sbi_boed_plugin.benchmark import run_benchmark  # noqa: E402

MODULE = "tests.benchmark.tiny_methods"


@pytest.fixture
def bench(tmp_path):
    """Run jobs of a tiny method in a folder, and return how many failed."""

    def run(method="prior", **changed):
        settings = {
            "num_simulations": [100],
            "seeds": [0],
            "observations": [1, 2],
            "metrics": ["mmd"],
            "num_samples": 50,
            "output": tmp_path / "out",
            "show_progress": False,
        }
        settings |= changed
        tasks = settings.pop("tasks", ["two_moons"])
        methods = settings.pop("methods", [f"{MODULE}:{method}"])
        return run_benchmark(tasks, methods, **settings)

    return run


@pytest.fixture
def records(tmp_path):
    """Read all records by task, method, budget, seed and observation."""

    def read(folder=tmp_path / "out"):
        found = {}
        for path in sorted((folder / "results").rglob("*.json")):
            record = json.loads(path.read_text())
            job = record["job"]
            fields = ("task", "method", "num_simulations", "seed", "num_observation")
            found[tuple(job[name] for name in fields)] = record
        return found

    return read


def timeless(record):
    """Return what of a record does not depend on clocks and loads."""
    return {
        name: value
        for name, value in record.items()
        if name not in ("finished", "load") and not name.endswith("_seconds")
    }
