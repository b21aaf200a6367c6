"""How good the averaged schedule's defaults are, over sizes, networks and dimensions.

    make reproduce NAME=training-rule

Posterior networks of parameters with a normal prior, given data with noise that grows
with the first parameter. Each cell is trained with the defaults, with a third and three
times of their rate, and with batches of 50, 200 and 800; small data also with decay of
the weights, with dropout, and with the mixture of three networks. The table tells the
steps that validation chose, the time, and what another setting would have gained on
4,000 new simulations.
"""

import contextlib
import io
import math
import time
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from sbi.neural_nets import posterior_nn
from sbi.neural_nets.embedding_nets import FCEmbedding
from torch import Tensor

from benchmarks.study import Job, Row, Study
from benchmarks.training import ScheduledNPE
from sbi_boed_plugin import AveragedSchedule
from sbi_boed_plugin.experiment import NoOpTracker

NUM_TEST = 4_000
# Network, numbers of parameters and of values of the data, and whether it embeds them.
CELLS = (
    ("maf", 1, 1, False),
    ("nsf", 1, 1, False),
    ("maf", 3, 10, False),
    ("nsf", 3, 10, False),
    ("mdn", 3, 10, False),
    ("zuko_nsf", 3, 10, False),
    ("maf", 10, 100, False),
    ("maf", 10, 100, True),
    ("nsf", 10, 100, False),
    ("nsf", 10, 100, True),
    ("maf", 100, 10, False),
)
RATE = AveragedSchedule.learning_rate
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "rate / 3": {"learning_rate": RATE / 3.0},
    "rate × 3": {"learning_rate": RATE * 3.0},
    "batch 50": {"training_batch_size": 50},
    "batch 200": {"min_num_batches": 1},
    "batch 800": {"min_num_batches": 1, "training_batch_size": 800},
    "decay 0.1": {"weight_decay": 0.1},
    "dropout 0.1": {"dropout_probability": 0.1},
    "three networks": {"num_networks": 3},
}
FOR_SMALL_DATA, SMALL_DATA = ("decay 0.1", "dropout 0.1", "three networks"), 3_000
CELL = ["model", "dim_theta", "dim_x", "embedded", "num_simulations"]


def simulate(num: int, dim_theta: int, dim_x: int) -> tuple[Tensor, Tensor]:
    """Draw parameters and simulate them; weights are those of the current seed."""
    weights = torch.randn(dim_theta, dim_x) / dim_theta**0.5
    theta = torch.randn(num, dim_theta)
    noise = 0.1 + 0.3 * theta[:, :1].sigmoid()
    return theta, (2.0 * theta @ weights).tanh() + noise * torch.randn(num, dim_x)


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each cell, number of simulations and setting."""
    return [
        {
            **dict(zip(CELL, (*cell, num_simulations), strict=True)),
            "setting": setting,
            "seed": seed,
        }
        for seed in range(num_seeds)
        for num_simulations in ((300,) if quick else (300, 3_000, 30_000, 100_000))
        for cell in (CELLS[:2] if quick else CELLS)
        # Large ones take minutes: few networks tell of them.
        if num_simulations < 30_000 or cell[1:] == (3, 10, False)
        if num_simulations < 100_000 or cell[0] == "maf"
        for setting in SETTINGS
        if num_simulations <= SMALL_DATA or setting not in FOR_SMALL_DATA
        # Of mixture densities sbi's builders take no dropout.
        if setting != "dropout 0.1" or cell[0] in ("maf", "nsf")
    ]


def run(job: Job, quick: bool) -> Row:
    """Train a network and evaluate it on new simulations."""
    torch.manual_seed(1_000 + job["seed"])
    num = job["num_simulations"]
    rows = simulate(num + NUM_TEST, job["dim_theta"], job["dim_x"])
    theta, x = (values[:num] for values in rows)
    setting = dict(SETTINGS[job["setting"]])
    num_networks = setting.pop("num_networks", 1)
    estimators, seconds, num_steps = [], 0.0, 0
    for number in range(num_networks):
        torch.manual_seed(100 * job["seed"] + number)
        trainer, cpu_seconds = train(job, theta, x, setting, quick)
        estimators.append(trainer._neural_net)
        seconds += cpu_seconds
        num_steps += trainer._fit.num_steps
    with torch.no_grad():
        parts = zip(*(values[num:].split(1_000) for values in rows), strict=True)
        values = [
            torch.stack([e.log_prob(a.unsqueeze(0), b)[0] for e in estimators])
            for a, b in parts
        ]
    log_density = torch.logsumexp(torch.cat(values, 1), 0) - math.log(num_networks)
    return {
        "log_density": round(log_density.mean().item(), 4),
        "num_steps": num_steps,
        "cpu_seconds": round(seconds, 2),
    }


def train(
    job: Job, theta: Tensor, x: Tensor, setting: dict[str, Any], quick: bool
) -> tuple[Any, float]:
    """Return a trainer that has trained, and the processor time of it."""
    setting = dict(setting)
    of_network: dict[str, Any] = {}
    if "dropout_probability" in setting:
        of_network["dropout_probability"] = setting.pop("dropout_probability")
    if job["embedded"]:
        of_network["embedding_net"] = FCEmbedding(job["dim_x"], output_dim=20)
    trainer: Any = ScheduledNPE(
        density_estimator=posterior_nn(job["model"], **of_network),
        tracker=NoOpTracker(),
        show_progress_bars=False,
    )
    batch_size = setting.pop("training_batch_size", 200)
    trainer._schedule = AveragedSchedule(**setting)
    trainer.append_simulations(theta, x)
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.train(
            training_batch_size=batch_size, max_num_epochs=5 if quick else 2**31 - 1
        )
    return trainer, time.process_time() - started


def summary(rows: Sequence[Row]) -> Sequence[Row]:
    """Return steps and time of the defaults, and what others gain, for each cell."""
    table = pd.DataFrame(list(rows)).groupby([*CELL, "setting"], sort=False)
    table = table[["log_density", "num_steps", "cpu_seconds"]].mean().reset_index()
    found = []
    for cell, part in table.groupby(CELL, sort=False):
        part = part.set_index("setting")
        if "defaults" not in part.index:
            continue
        ours = part.loc["defaults"]
        gains = part["log_density"] - ours["log_density"]
        times = part["cpu_seconds"] / ours["cpu_seconds"]
        others = [name for name in SETTINGS if name != "defaults" and name in gains]
        found.append(
            {
                **dict(zip(CELL, cell, strict=True)),
                **ours.to_dict(),
                **{name: round(gains[name], 3) for name in others},
                **{f"{name}: time": round(times[name], 2) for name in others},
            }
        )
    return found


STUDY = Study(
    name="training-rule",
    title="Steps of the averaged schedule, and what other rates and batches gain",
    jobs=jobs,
    run=run,
    summary=summary,
)
