"""Speed as ratios against a peer in the same run.

    OMP_NUM_THREADS=1 python benchmarks/speed.py

1. Time of a training step of `NLE_INCE` with L contrastive samples against sbi's
   `NLE_A`, on the same data, flow and batch size. The contrastive objective evaluates
   the flow L + 1 times as often.
2. Time of an epoch of the averaged schedule, against sbi's loop with the same network,
   and of `NRE_GKL`, against `NRE_B`.
3. Share of the design loop that is spent outside the flow's forward and backward
   passes: simulating, drawing, the policy, the optimisers and the bookkeeping.
"""

import argparse
import contextlib
import io
import time
import warnings
from pathlib import Path
from typing import Any, Dict, Optional

import pandas as pd
import torch
from sbi.inference import NLE, NRE_B
from sbi.neural_nets import classifier_nn, likelihood_nn
from sbi.utils import BoxUniform
from torch import Tensor

from benchmarks.training import NETWORKS, TRAINERS
from sbi_boed_plugin import NLE_INCE, NRE_GKL, tasks
from sbi_boed_plugin.experiment import NoOpTracker, make_trainer
from sbi_boed_plugin.search import information

NUM_SIMULATIONS = 2_000
BATCH_SIZE = 200
# Ten times the default, so that few epochs show the pace of most of a training: in the
# first epochs, when the data tell nothing yet, every contrastive pair matters.
LEARNING_RATE = 5e-3


def seconds_per_step(
    model: str,
    num_contrastive: Optional[int],
    num_epochs: int,
    theta: Tensor,
    x: Tensor,
) -> float:
    """Return the median time of a training step over epochs, validation included."""
    torch.manual_seed(0)
    cls = NLE if num_contrastive is None else NLE_INCE
    inference = cls(
        density_estimator=likelihood_nn(model),
        tracker=NoOpTracker(),
        show_progress_bars=False,
    )
    kwargs = {} if num_contrastive is None else {"num_contrastive": num_contrastive}
    inference.append_simulations(theta, x).train(
        training_batch_size=BATCH_SIZE,
        max_num_epochs=num_epochs,
        learning_rate=LEARNING_RATE,
        **kwargs,
    )
    epochs = torch.tensor(inference.summary["epoch_durations_sec"][1:])
    num_steps = int(0.9 * NUM_SIMULATIONS) // BATCH_SIZE
    return epochs.median().item() / num_steps


def training_ratios(num_epochs: int) -> pd.DataFrame:
    """Compare training steps for several flows and numbers of contrastive samples."""
    theta = torch.rand(NUM_SIMULATIONS, 2)
    x = theta + 0.1 * torch.randn(NUM_SIMULATIONS, 2)
    rows = []
    for model in ("maf", "nsf", "mdn"):
        peer = seconds_per_step(model, None, num_epochs, theta, x)
        for num_contrastive in (0, 1, 15, 63):
            ours = seconds_per_step(model, num_contrastive, num_epochs, theta, x)
            rows.append(
                {
                    "flow": model,
                    "L": num_contrastive,
                    "evaluations": num_contrastive + 1,
                    "NLE_A [ms/step]": 1e3 * peer,
                    "NLE_INCE [ms/step]": 1e3 * ours,
                    "ratio": ours / peer,
                }
            )
    return pd.DataFrame(rows)


def epoch_ratios(num_epochs: int) -> pd.DataFrame:
    """Compare epochs of trainings with those of sbi, by their processor time."""
    prior = BoxUniform(torch.zeros(2), torch.ones(2))
    theta = prior.sample(torch.Size((NUM_SIMULATIONS,)))
    x = theta + 0.1 * torch.randn(NUM_SIMULATIONS, 2)
    pairs = [
        (
            f"{name}, averaged",
            (TRAINERS[name, "averaged"], TRAINERS[name, "sbi"]),
            NETWORKS[name],
            model,
        )
        for name in ("nle", "npe")
        for model in ("maf", "nsf", "mdn")
    ]
    ratios = (NRE_GKL, NRE_B), classifier_nn
    pairs += [("NRE_GKL", *ratios, model) for model in ("mlp", "resnet")]

    def seconds(trainer: Any, build: Any) -> float:
        torch.manual_seed(0)
        settings = {"tracker": NoOpTracker(), "show_progress_bars": False}
        inference = trainer(prior, build, **settings).append_simulations(theta, x)
        started = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            inference.train(max_num_epochs=num_epochs)
        return (time.process_time() - started) / num_epochs

    rows = []
    for what, trainers, network, model in pairs:
        ours, of_peer = (seconds(trainer, network(model)) for trainer in trainers)
        rows.append(
            {
                "training": what,
                "network": model,
                "sbi [ms/epoch]": 1e3 * of_peer,
                "ours [ms/epoch]": 1e3 * ours,
                "ratio": ours / of_peer,
            }
        )
    return pd.DataFrame(rows)


def design_loop_share(model: str, num_steps: int) -> Dict[str, float]:
    """Return the share of the design loop outside the flow's passes."""
    torch.manual_seed(0)
    task = tasks.get_task("gaussian_linear", dim_design=2)
    inference = make_trainer(task, density_estimator=model, show_progress_bars=False)
    flow_seconds = 0.0
    evaluate, backward = information.log_likelihood_matrix, Tensor.backward

    def timed(function):
        def wrapper(*args, **kwargs):
            nonlocal flow_seconds
            started = time.perf_counter()
            result = function(*args, **kwargs)
            flow_seconds += time.perf_counter() - started
            return result

        return wrapper

    try:
        information.log_likelihood_matrix = timed(evaluate)
        Tensor.backward = timed(backward)
        result = inference.optimize_design(
            task.simulator,
            num_steps=num_steps,
            objective="info_nce",
            num_contrastive=31,
            num_eig_samples=2,
        )
    finally:
        information.log_likelihood_matrix = evaluate
        Tensor.backward = backward
    return {
        "flow": model,
        "ms/step": 1e3 * result.history["seconds"][-1] / num_steps,
        "share outside the flow": 1.0 - flow_seconds / result.history["seconds"][-1],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path, help="folder for the tables as CSV")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    training = training_ratios(args.epochs)
    epochs = epoch_ratios(args.epochs)
    loop = pd.DataFrame([design_loop_share(m, args.steps) for m in ("maf", "nsf")])
    print("\n\nTraining step, batch of 200, x and theta of two dimensions")
    print(training.to_string(index=False, float_format="%.2f"))
    print("\nEpoch of 2,000 simulations, x and theta of two dimensions")
    print(epochs.to_string(index=False, float_format="%.2f"))
    print("\nDesign loop, batch of 256, L = 31")
    print(loop.to_string(index=False, float_format="%.2f"))
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        training.to_csv(args.output / "speed_training.csv", index=False)
        epochs.to_csv(args.output / "speed_epochs.csv", index=False)
        loop.to_csv(args.output / "speed_design_loop.csv", index=False)


if __name__ == "__main__":
    main()
