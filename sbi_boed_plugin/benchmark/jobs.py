"""The jobs of a benchmark: one posterior each, and which ones there are."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from sbi_boed_plugin._numbers import check_integer

__all__ = ["NUM_SAMPLES", "Job", "expand_jobs", "hyper_text"]

# As many as sbibm's reference posteriors hold.
NUM_SAMPLES = 10_000

# What a method is given by other arguments than hyperparameters.
_RESERVED = {
    *("cache", "cache_tag", "num_observation", "num_rounds", "num_samples"),
    *("num_simulations", "observation", "seed", "task"),
}


@dataclass(frozen=True)
class Job:
    """One posterior of one method, compared with that of one task.

    A method is a name or `module:function`; the number of simulations is for all rounds
    together; a tag tells apart jobs with the same settings.
    """

    task: str
    method: str
    num_simulations: int
    seed: int
    num_observation: int
    num_rounds: int = 1
    num_samples: int = NUM_SAMPLES
    hyper: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""

    @property
    def label(self) -> str:
        """The method, and what differs from the usual settings, in words.

        Example:
            >>> Job("sir", "npe", 1_000, 0, 1, num_rounds=2, hyper={"a": "b"}).label
            "npe, 2 rounds, a='b'"
        """
        parts = [self.method]
        if self.num_rounds != 1:
            parts.append(f"{self.num_rounds} rounds")
        if self.num_samples != NUM_SAMPLES:
            parts.append(f"{self.num_samples:,} samples")
        parts += [f"{key}={value!r}" for key, value in sorted(self.hyper.items())]
        return ", ".join(parts + ([f"tag {self.tag}"] if self.tag else []))

    def __str__(self) -> str:
        return (
            f"{self.task}, {self.label}, {self.num_simulations:,} simulations, seed "
            f"{self.seed}, observation {self.num_observation}"
        )


def hyper_text(hyper: Mapping[str, Any]) -> str:
    """Return hyperparameters as a text that is empty if there are none."""
    return json.dumps(hyper, sort_keys=True) if hyper else ""


def expand_jobs(
    tasks: Sequence[str],
    methods: Sequence[str],
    *,
    num_simulations: Sequence[int],
    seeds: Sequence[int],
    observations: Sequence[int],
    num_rounds: int = 1,
    num_samples: int = NUM_SAMPLES,
    hyper: Mapping[str, Any] | None = None,
    tag: str = "",
) -> list[Job]:
    """Return one job per combination, in the order in which they are best run.

    Observations vary slowest: every method has a result early, and processes that run
    side by side train different networks instead of waiting for the same one. A
    hyperparameter such as `npe.num_atoms` is for `npe` only, and goes before one that
    is for all.
    """
    tasks = _listed("tasks", tasks)
    methods = _listed("methods", methods)
    budgets = sorted(_listed("num_simulations", num_simulations, least=1))
    seeds = _listed("seeds", seeds, least=0)
    observations = _listed("observations", observations, least=1)
    (num_rounds,) = _listed("num_rounds", [num_rounds], least=1)
    if budgets[0] < num_rounds:
        raise ValueError(
            f"num_simulations={budgets[0]} is less than one per round of num_rounds="
            f"{num_rounds}. Use fewer rounds, or more simulations."
        )
    # Metrics need a variance.
    (num_samples,) = _listed("num_samples", [num_samples], least=2)
    hyper = hyper or {}
    given: dict[str, dict[str, Any]] = {method: {} for method in methods}
    # Those for all methods come first, so that those for one method replace them.
    for key in sorted(hyper, key=lambda key: "." in key):
        method, dot, name = key.rpartition(".")
        if dot and method not in methods:
            raise ValueError(
                f"hyper={hyper} is for the method {method!r} in {key!r}, which must be "
                f"one of those that run: {', '.join(methods)}."
            )
        if name in _RESERVED:
            raise ValueError(
                f"hyper={hyper} must not hold {name}: each job sets that by itself; "
                "use the arguments of the benchmark."
            )
        for each in [method] if dot else methods:
            given[each][name] = hyper[key]
    jobs = []
    for number, seed, budget, task, method in product(
        observations, seeds, budgets, tasks, methods
    ):
        more = (num_rounds, num_samples, given[method], str(tag))
        jobs.append(Job(task, method, budget, seed, number, *more))
    return jobs


def _listed(name: str, values: Iterable[Any], least: int | None = None) -> list[Any]:
    """Return entries as a list, numbers as integers of Python, which files can hold."""
    entries = [] if isinstance(values, str) else list(values)
    if not entries:
        raise ValueError(f"{name}={values!r} must be a list of at least one entry.")
    if least is not None:
        entries = [check_integer(name, value, least, 2**32 - 1) for value in entries]
    if len(set(entries)) < len(entries):
        raise ValueError(f"{name}={entries} must not repeat an entry.")
    return entries
