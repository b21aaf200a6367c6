"""What LACE adds as the objective of a search, with few simulations.

    make reproduce NAME=lace-objective

Information of the design found with 3,000 simulations, by the policy's objective: the
bound of the posterior network alone, or LACE with 15 of its draws for each simulation.
"""

from collections.abc import Sequence

from benchmarks.honest_bounds import exact_information, search
from benchmarks.study import Job, Row, Study, averages

CASES = (
    ("ces", 0),
    ("location_finding", 0),
    ("noisy_linear", 10),
    ("pharmacokinetic", 0),
    ("sir", 0),
)
NUM_SIMULATIONS = 3_000


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, task and objective."""
    return [
        {"task": name, "size": size, "objective": objective, "seed": seed}
        for seed in range(num_seeds)
        for name, size in (CASES[3:4] if quick else CASES)
        for objective in ("barber_agakov", "lace")
    ]


def run(job: Job, quick: bool) -> Row:
    """Search with an objective, and evaluate the design."""
    task, result, seconds = search(
        job,
        method="joint",
        objective=job["objective"],
        max_num_simulations=NUM_SIMULATIONS,
    )
    return {
        "exact": round(exact_information(task, result.design)[0], 3),
        "reported": round(result.eig.value, 3),
        "cpu_seconds": round(seconds, 1),
    }


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds of each task and objective."""
    values = ["exact", "reported", "cpu_seconds"]
    return averages(rows, by=["task", "objective"], values=values)


STUDY = Study(
    name="lace-objective",
    title="Designs from 3,000 simulations, by the objective of the policy",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=5,
)
