# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---


# %% [markdown]
# # Benchmark methods on the tasks of sbibm
#
# [sbibm](https://github.com/sbi-benchmark/sbibm) has ten inference tasks, each with ten
# observations and samples of their exact posteriors. It was written for an sbi of three
# years ago, and two of its tasks need Julia; beside this package all of it runs with a
# current sbi, as it is.
#
# This tutorial runs a method on a task, adds a method of its own, and lets both
# compete. It takes about a minute. Real comparisons take hours: 10,000 simulations,
# 10,000 samples, all observations.

# %%
import csv
import sys
import tempfile
from pathlib import Path

import torch
from sbi.utils.metrics import c2st

from sbi_boed_plugin.benchmark import make_report, run_benchmark
from sbi_boed_plugin.sbibm import TASKS, get_task, npe_gkl, run_method

# %% [markdown]
# ## A task
#
# `get_task` is sbibm's own function, after what keeps sbibm from running is mended, and
# says what to install if sbibm is missing.

# %%
_ = torch.manual_seed(0)
task = get_task("lotka_volterra")
theta = task.get_prior()(num_samples=3)
x = task.get_simulator(max_calls=1_000)(theta)
print(", ".join(TASKS))
print(f"{theta.shape[1]} parameters, {x.shape[1]} data, without Julia")

# %% [markdown]
# ## A method
#
# A method is a function `run(task, num_samples, num_simulations, num_observation, …)`
# that returns samples, how many simulations it used, and the log-density of the true
# parameters, or `None`. Ours are `nle_ince`, `npe_gkl` and `nre_gkl`; sbi's own, with
# the same settings, are `nle`, `npe` and `nre`. With a `seed`, all methods see the same
# simulations; with a folder `cache` as well, the observations of a task share one
# training.

# %%
folder = Path(tempfile.mkdtemp())
two_moons = get_task("two_moons")
hyper = {"neural_net": "maf", "max_num_epochs": 40, "training_batch_size": 50}
samples, num_simulations, log_prob = npe_gkl(
    two_moons, 500, 500, num_observation=1, seed=0, cache=folder, **hyper
)
print(tuple(samples.shape), num_simulations, log_prob)

# %% [markdown]
# `run_method` does the same and tells more: what training and sampling took, and what
# the method says of itself. The second observation needs no training.

# %%
outcome = run_method("npe_gkl", two_moons, 500, 500, 2, seed=0, cache=folder, **hyper)
print(
    f"trained before: {outcome.from_cache}; sampled in {outcome.sampling_seconds:.1f} s"
)
print({name: round(value, 3) for name, value in outcome.diagnostics.items()})

# %% [markdown]
# How close are the samples to the exact posterior? A classifier that cannot tell them
# apart is right half of the time. sbi's `c2st` trains a random forest, sbibm's a neural
# network on 10,000 samples: their figures cannot be compared with each other.

# %%
reference = two_moons.get_reference_posterior_samples(2)
forest = float(c2st(outcome.samples, reference[:500]))
print(f"C2ST, random forest: {forest:.2f}")

# %% [markdown]
# ## A method of your own
#
# Any function of that form takes part. This one keeps the hundred simulations that are
# nearest to the observation, and draws from them with a little noise. The benchmark
# runs in processes that import it by its name, hence the file; in a project of yours it
# would be there already.

# %%
(folder / "my_methods.py").write_text('''
import torch


def nearest(task, num_samples, num_simulations, num_observation=None,
            observation=None, num_kept=100, **_):
    """Rejection ABC: the simulations that are nearest to the observation."""
    if observation is None:
        observation = task.get_observation(num_observation)
    simulator = task.get_simulator(max_calls=num_simulations)
    theta = task.get_prior_dist().sample((num_simulations,))
    x = simulator(theta)
    distance = ((x - observation) / x.std(0)).norm(dim=1)
    kept = theta[distance.argsort()[:num_kept]]
    drawn = kept[torch.randint(num_kept, (num_samples,))]
    noise = 0.2 * kept.std(0) * torch.randn_like(drawn)
    return drawn + noise, simulator.num_simulations, None
''')
sys.path.insert(0, str(folder))

# %% [markdown]
# ## A benchmark
#
# The same on the command line, in the folder of `my_methods.py`:
#
# ```
# sbi-boed bench --tasks two_moons --methods npe npe_gkl my_methods:nearest \
#   --budgets 500 --observations 1-2 --metrics c2st_forest,ppc --num-samples 500 \
#   --set neural_net=maf max_num_epochs=40 training_batch_size=50 --output results
# sbi-boed report results
# ```
#
# Each combination of task, method, budget, seed and observation is a job with a file
# of its own. What is finished is not run again, whatever stopped the benchmark; failed
# jobs are recorded with their traceback, and `--retry-failed` tries them again.

# %%
results = folder / "results"
settings = {
    "num_simulations": [500],
    "seeds": [0],
    "observations": [1, 2],
    "metrics": ["c2st_forest", "ppc"],
    "output": results,
    "num_samples": 500,
    "hyper": hyper,
    "show_progress": False,
}
methods = ["npe", "npe_gkl", "my_methods:nearest"]
num_failed = run_benchmark(["two_moons"], methods, **settings)
again = run_benchmark(["two_moons"], methods, **settings)  # has nothing to do

# %% [markdown]
# ## The report
#
# `make_report` writes a page, tables and figures. In `summary.csv` each row is a task,
# a method and a budget: means over the observations, and their standard errors. The
# classifier's 0.5 is perfect and 1 the worst; `ppc` is the median distance between the
# observation and data that the posterior predicts, in the units of the data, which says
# something only beside that of another method.

# %%
written = make_report(results)
print(", ".join(sorted(path.name for path in written)))
with (results / "summary.csv").open() as file:
    rows = list(csv.DictReader(file))
table = {row["method"]: float(row["c2st_forest"]) for row in rows}
for method, value in table.items():
    print(f"{method:20} {value:.3f}")

# %% [markdown]
# With two observations and one seed this is an impression, not a result. Standard
# errors over observations say how far it carries; other seeds of the training are the
# rest. `differences.csv` has the hybrid minus its base, paired by observation, which
# varies less than either.
