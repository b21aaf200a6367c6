"""Benchmarks of tiny methods, in folders of their own."""

from dataclasses import asdict
from html.parser import HTMLParser

import pytest

pytest.importorskip("sbibm")

from sbi_boed_plugin.benchmark import run_benchmark  # noqa: E402
from sbi_boed_plugin.benchmark.store import Store  # noqa: E402

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
    """Read all records by method, seed and observation."""

    def read(folder=tmp_path / "out"):
        fields = ("method", "seed", "num_observation")
        return {
            tuple(record["job"][name] for name in fields): record
            for record in Store(folder).read_all()
        }

    return read


def make_record(settings, **changed):
    """Return the record of a job as a run makes it, failed if it has an error."""
    record = {
        "job": settings,
        "status": "failed" if "error" in changed else "done",
        "result": {},
        "error": "",
        "traceback": "",
        "seconds": 1.0,
        "finished": 0.0,
        "load": 1.5,
        "versions": {"sbi": "0.27", "torch": None},
        "warnings": [],
    }
    return record | changed


def add(folder, job, metrics=None, *, result=None, **changed):
    """Write a record as a job of a benchmark would."""
    values = {
        "metrics": metrics,
        "training_seconds": 10.0,
        "sampling_seconds": 2.0,
        "metric_seconds": 1.0,
        "num_simulations_used": job.num_simulations,
        "log_prob_true_parameters": None,
        "from_cache": False,
        "diagnostics": {},
    }
    if metrics is not None:
        changed["result"] = values | (result or {})
    Store(folder).write(make_record(asdict(job), **changed))


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
