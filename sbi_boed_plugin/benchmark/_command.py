"""The commands that make the jobs of a benchmark again."""

import shlex
from collections.abc import Sequence

from sbi_boed_plugin.benchmark.jobs import NUM_SAMPLES, Job
from sbi_boed_plugin.benchmark.summary import Results

__all__ = ["commands", "ranges"]


def commands(results: Results, output: str) -> list[str]:
    """Return commands whose jobs include all of the results.

    Args:
        results: Results of a benchmark.
        output: Name of the folder for the new results.

    Returns:
        One command per number of rounds, number of samples and hyperparameters.
    """
    variants: dict[str, list[Job]] = {}
    for record in results.records:
        job = Job(**record["job"])
        words = []
        if job.num_rounds != 1:
            words += ["--num-rounds", str(job.num_rounds)]
        if job.num_samples != NUM_SAMPLES:
            words += ["--num-samples", str(job.num_samples)]
        if job.hyper:
            words += ["--set"]
            words += [f"{key}={value!r}" for key, value in sorted(job.hyper.items())]
        variants.setdefault(shlex.join(words), []).append(job)
    # Failures alone leave no metric behind, and there is no benchmark without one.
    metrics = ",".join(results.metrics) or "c2st"
    made = []
    for options, jobs in variants.items():
        lists = {
            "--tasks": ",".join(dict.fromkeys(job.task for job in jobs)),
            "--methods": ",".join(dict.fromkeys(job.method for job in jobs)),
            "--budgets": ",".join(map(str, sorted({j.num_simulations for j in jobs}))),
            "--seeds": ranges({job.seed for job in jobs}),
            "--observations": ranges({job.num_observation for job in jobs}),
            "--metrics": metrics,
            "--output": output,
        }
        words = [f"{option} {shlex.quote(text)}" for option, text in lists.items()]
        made.append(" ".join(["sbi-boed bench", *words, options]).rstrip())
    return made


def ranges(numbers: Sequence[int] | set[int]) -> str:
    """Return numbers as the command takes them.

    Example:
        >>> ranges({1, 2, 3, 7, 10, 9})
        '1-3,7,9-10'
    """
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ",".join(
        f"{part[0]}-{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts
    )
