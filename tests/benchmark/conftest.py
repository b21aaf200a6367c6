"""Benchmarks of tiny methods, in folders of their own."""

import json
from html.parser import HTMLParser

import pytest

pytest.importorskip("sbibm")

from sbi_boed_plugin.benchmark import run_benchmark  # noqa: E402
from sbi_boed_plugin.benchmark._old_store import Store  # noqa: E402
from sbi_boed_plugin.benchmark.worker import add_failure  # noqa: E402

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
    """Return what of a record does not depend on clocks, loads and earlier jobs."""
    return {
        name: value
        for name, value in record.items()
        # Torch gives some warnings once per process.
        if name not in ("finished", "load", "warnings")
        and not name.endswith("_seconds")
    }


def failed_record(job, error, trace):
    """Return the record of a job that has never had another."""
    return add_failure(job, None, (), error, trace)


def add(folder, job, metrics, **changed):
    """Write a record as a job would."""
    record = failed_record(job, "", "")
    for name in ("error", "traceback", "output"):
        del record[name]
    record |= {
        "status": "done",
        "metrics": metrics,
        "training_seconds": 10.0,
        "sampling_seconds": 2.0,
        "metric_seconds": 1.0,
        "from_cache": False,
        "num_simulations_used": job.num_simulations,
        "log_prob_true_parameters": None,
        "diagnostics": {},
        "samples": None,
    }
    Store(folder).write(job, record | changed)


class Reader(HTMLParser):
    """Collects what a page loads and links to, and whether its tags match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.addresses, self.text = [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img", "br", "wbr", "link"):
            self.open.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
