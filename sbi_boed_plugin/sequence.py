"""A sequence of experiments in a loop: design, measure, learn, and again."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from sbi_boed_plugin._campaign import (
    ExperimentsResult,
    Rounds,
    check_settings,
    identity_of,
)
from sbi_boed_plugin._checkpoint import locked
from sbi_boed_plugin._numbers import check_integer, check_seed
from sbi_boed_plugin._rng import isolated_rng
from sbi_boed_plugin.adaptive.policy import HistoryPolicy
from sbi_boed_plugin.trainers.nle_ince import NLE_INCE

__all__ = ["run_experiments"]


def run_experiments(
    inference: NLE_INCE,
    simulator: Callable[[Tensor, Tensor], Tensor],
    observe: Callable[[Tensor], Tensor],
    num_rounds: int,
    *,
    checkpoint: str | Path | None = None,
    seed: int | None = None,
    num_particles: int = 4_096,
    show_progress_bar: bool = True,
    max_cost: float | None = None,
    policy: HistoryPolicy | None = None,
    **search: Any,
) -> ExperimentsResult:
    r"""Choose a design, run the experiment there, learn from it, and repeat.

    With a `checkpoint`, the state is saved after every round, and within a round once
    its design is found and once it is measured: no experiment is run twice. A call with
    the same arguments, in this process or another, goes on from there and gives what an
    undisturbed run would have given, to the last bit. Priors and policies are the same
    if they draw the same from a fixed seed.

    Args:
        inference: Trainer with prior and design policy.
        simulator: Function from `theta` and `design` to `x`, with one row for each
            simulation.
        observe: The real experiment: function from a design of shape
            `(dim_design,)` to observed data of shape `x_shape` or `(1, *x_shape)`.
        num_rounds: Number of experiments. A larger number with the same checkpoint
            continues the sequence.
        checkpoint: File to save the state to, and to continue from if it exists.
        seed: Seed of everything that is drawn; the global random state is left as it
            was. If `None`, the global random state is used and advanced.
        num_particles: Number of particles of the belief.
        show_progress_bar: Whether to show the progress of the rounds.
        max_cost: Cost of all designs together, with `cost=...` of the search. Designs
            that cost more than what is left are not searched for, and the sequence
            ends early where all do, or where only one of several models is left.
        policy: Policy that proposes the designs, of the trainer's `optimize_policy`.
            A search proposes them where it cannot, with a warning: after its last
            experiment, and once data lie beyond all that the likelihood predicts.
        **search: Arguments of :meth:`NLE_INCE.optimize_design`, for instance
            `method="multi_start"`, which trains in the first round only and serves
            every later one with hardly any simulation; an objective that needs a
            posterior network trains that in each round.

    Returns:
        A record of each experiment: design, data, information, posterior and cost.

    Raises:
        ValueError: If there is no policy, an argument is out of range, or the
            checkpoint is damaged or belongs to other experiments. It is then left as
            it is.
        RuntimeError: If another call uses the checkpoint at this time.
        OSError: If the checkpoint cannot be written. It is then as it was before.
    """
    num_rounds = check_integer("num_rounds", num_rounds, 1)
    num_particles = check_integer("num_particles", num_particles, 16)
    seed = check_seed(seed)
    max_cost = check_settings(inference, search, max_cost, policy)
    # The file itself, wherever links and later changes of the folder lead.
    path = None if checkpoint is None else Path(checkpoint).resolve()
    identity = identity_of(inference.search, search, num_particles, seed, policy)
    given = inference, simulator, search, path, identity, max_cost, policy
    rounds = Rounds(*given)
    with nullcontext() if path is None else locked(path):
        return _run(rounds, observe, num_rounds, show_progress_bar)


def _run(
    rounds: Rounds,
    observe: Callable[[Tensor], Tensor],
    num_rounds: int,
    show_progress_bar: bool,
) -> ExperimentsResult:
    """Run the rounds that there are not yet, and save after each step of one."""
    bar_settings = {"disable": not show_progress_bar, "desc": "Running experiments"}
    with isolated_rng(rounds.load()):
        if not rounds.rounds:
            rounds.save()  # So that the first round, too, can be repeated as it was.
        for number in tqdm(range(num_rounds), **bar_settings):
            if number == len(rounds.rounds):
                if rounds.end is not None:
                    break
                rounds.find_design()
                rounds.save()
            values, started = rounds.rounds[number], time.perf_counter()
            if "x" not in values:
                _measure(rounds, observe, values)
            if "log_evidence" not in values:
                rounds.learn(values, started)
                rounds.save()
    return ExperimentsResult(tuple(rounds.records()[:num_rounds]))


def _measure(
    rounds: Rounds, observe: Callable[[Tensor], Tensor], values: dict[str, Any]
) -> None:
    """Run the experiment of a round, and save its data."""
    design = values["design"]
    # Copies: it may change what it gets, and use again what it returned.
    x = rounds.check_data(
        observe(design.clone()),
        "That is what observe(design) returned. The design found is kept: "
        "run_experiments with the same checkpoint measures again.",
    )
    values["x"] = x
    try:
        rounds.save()
    except OSError as error:
        raise OSError(
            error.errno,
            f"{error.strerror} Not saved is the last measurement, x={x.tolist()} at "
            f"design={design.tolist()}: let observe(design) return it then.",
        ) from error
