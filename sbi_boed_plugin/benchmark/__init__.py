"""Many runs of sbibm's tasks, each kept in a file, and a report of them.

A benchmark is a folder. `run_benchmark` fills it with one file per job, and goes on
after whatever stopped it; `make_report` reads what is there.
"""

from sbi_boed_plugin.benchmark._old_runner import run_benchmark as run_benchmark
from sbi_boed_plugin.benchmark.report import make_report as make_report

__all__ = ["make_report", "run_benchmark"]
