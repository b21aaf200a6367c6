"""Speed of hybrid posteriors: sampling and training, as ratios to sbi in the same run.

    OMP_NUM_THREADS=1 python benchmarks/hybrid_speed.py --output docs/results

Two moons, 1,000 and 10,000 simulations. Processor time of one thread.
"""

import argparse
import contextlib
import io
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List

import pandas as pd
import torch
from sbi.inference import NPE
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.neural_nets import posterior_nn

from benchmarks.papers.two_moons import prior as make_prior
from benchmarks.papers.two_moons import simulate
from sbi_boed_plugin import NLE_INCE, NPE_GKL, HybridPosterior, energy_nn
from sbi_boed_plugin.experiment import NoOpTracker

QUIET: Dict[str, Any] = {"show_progress_bars": False}


def seconds(function: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median processor time of some calls."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return statistics.median(times)


def measure(base: str, num_simulations: int) -> List[Dict[str, Any]]:
    """Train a base, its hybrid and a likelihood, and time them."""
    torch.manual_seed(0)
    prior = make_prior()
    theta = prior.sample(torch.Size((num_simulations,)))
    x = simulate(theta)
    x_o = torch.zeros(1, 2)
    settings = {"tracker": NoOpTracker(), **QUIET}
    rows = []

    def add(what: str, value: float, peer: str, of_peer: float, target: str) -> None:
        rows.append(
            {
                "base": base,
                "simulations": num_simulations,
                "what": what,
                "seconds": round(value, 3),
                "peer": peer,
                "seconds_of_peer": round(of_peer, 3),
                "ratio": round(value / of_peer, 3) if of_peer else float("nan"),
                "target": target,
            }
        )
        print(rows[-1], flush=True)

    with contextlib.redirect_stdout(io.StringIO()):
        npe = NPE(prior, posterior_nn(base), **settings).append_simulations(theta, x)
        started = time.process_time()
        npe.train()
        of_base = time.process_time() - started
    direct = npe.build_posterior()
    started = time.process_time()
    refined = NPE_GKL.refine(direct, theta, x, **settings)
    of_energy = time.process_time() - started
    add("training of the energy", of_energy, "of the base", of_base, "<= 0.7")
    hybrid = refined.build_posterior()

    num = (10_000,)
    of_direct = seconds(lambda: direct.sample(num, x=x_o, **QUIET))

    def anew(posterior: HybridPosterior) -> None:
        # What is measured of an observation is part of the first draw given it.
        posterior.to("cpu")  # forgets what was measured
        posterior.sample(num, x=x_o, **QUIET)

    of_hybrid = seconds(lambda: anew(hybrid))
    add("10,000 samples", of_hybrid, "DirectPosterior", of_direct, "<= 5")

    blind = energy_nn(sees_parameters=False)
    of_noise = NPE_GKL.refine(direct, theta, x, energy_net=blind, **settings)
    noise_first = of_noise.build_posterior()

    gains = [each.summary["energy_gain"][-1] for each in (of_noise, refined)]
    add("gain [nats], noise judged first", gains[0], "default energy", gains[1], "1")

    of_noise_first = seconds(lambda: anew(noise_first))
    what = "10,000 samples, noise judged first"
    add(what, of_noise_first, "DirectPosterior", of_direct, "<= 5")

    # Of a likelihood that is trained as the base is, which proposes.
    nle = NLE_INCE(prior, "maf", **settings).append_simulations(theta, x)
    with contextlib.redirect_stdout(io.StringIO()):
        nle.train(schedule="averaged", num_contrastive=0)
    parameters = MCMCPosteriorParameters(method="slice_np_vectorized", num_chains=100)
    mcmc = nle.build_posterior(sample_with="mcmc", posterior_parameters=parameters)
    of_mcmc = seconds(lambda: mcmc.sample(num, x=x_o, **QUIET), repeats=1)
    add("10,000 samples", of_hybrid, "NLE_A, slice sampling", of_mcmc, "<= 0.02")
    add(what, of_noise_first, "NLE_A, slice sampling", of_mcmc, "<= 0.02")

    likelihood = nle._neural_net
    corrected = HybridPosterior.from_estimators(direct, likelihood, prior)

    of_corrected = seconds(lambda: anew(corrected))
    what = "10,000 samples, a likelihood corrects"
    add(what, of_corrected, "NLE_A, slice sampling", of_mcmc, "<= 0.01")
    add(what, of_corrected, "DirectPosterior", of_direct, "<= 5")

    many = simulate(prior.sample(torch.Size((100,))))
    of_many = seconds(
        lambda: corrected.sample_batched((100,), x=many, **QUIET), repeats=1
    )
    what = "100 observations, 100 samples each, a likelihood corrects"
    add(what, of_many, "10,000 samples of one", of_corrected, "<= 5")
    batched = seconds(lambda: hybrid.sample_batched((100,), x=many, **QUIET), repeats=1)
    loop = seconds(
        lambda: [hybrid.sample((100,), x=row, **QUIET) for row in many.split(1)],
        repeats=1,
    )
    # The loop also takes five times as many pilot draws of each observation.
    add("100 observations, 100 samples each", batched, "a loop", loop, "< 1")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bases", nargs="+", default=["maf", "nsf"])
    sizes = {"nargs": "+", "type": int, "default": [1_000, 10_000]}
    parser.add_argument("--simulations", **sizes)
    parser.add_argument("--output", type=Path, help="folder for the table as CSV")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    cells = [(base, num) for base in args.bases for num in args.simulations]
    rows = [row for cell in cells for row in measure(*cell)]
    if args.output:
        args.output.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(args.output / "speed_hybrid.csv", index=False)


if __name__ == "__main__":
    main()
