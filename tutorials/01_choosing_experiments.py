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
# # Choosing experiments one after another
#
# You have a simulator that is a black box, and an experiment that you can repeat a few
# times at settings of your choice. This tutorial chooses three experiments, each with
# what the ones before have taught, with one likelihood that is trained once. At the end
# the three are compared with three at random. It takes about a minute.
#
# The simulator is simple enough that everything can also be computed by brute force.
# You will not have that for yours; here it tells what the networks are worth.

# %%
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from joblib import parallel_config
from sbi.inference.posteriors.posterior_parameters import MCMCPosteriorParameters
from sbi.utils import BoxUniform
from scipy.stats import poisson

from sbi_boed_plugin import (
    NLE_INCE,
    MultiStartConfig,
    TruncatedNormalPolicy,
    run_experiments,
    simulate_for_boed,
)
from sbi_boed_plugin.plotting import (
    plot_eig_over_design,
    plot_posterior_sequence,
    plot_predictive,
)

_ = torch.manual_seed(0)
np.random.seed(0)

# %% [markdown]
# ## A black box
#
# An enzyme turns a substrate into a fluorescent product, molecule by molecule, and a
# detector counts them for one minute. The rate follows Michaelis and Menten: with the
# concentration $S$ of the substrate it rises towards $V_\mathrm{max}$ and is half of
# that at $S = K_\mathrm{m}$. Both are unknown; the concentration is the design.
#
# The simulator is plain numpy and returns counts: there is no derivative to be had.
# Four habits make such a simulator easy to work with:
#
# - Draw from numpy's or torch's *global* generator. Seeds reach it, also in worker
#   processes, each of which would get the same numbers from a generator of your own.
# - Counts are integers, and the likelihoods of sbi are densities. A uniform number
#   between 0 and 1 on top makes counts continuous and loses nothing: rounding down
#   gives them back.
# - Return what is equally noisy everywhere. The noise of a count is its square root,
#   that of its square root always about one half. Nothing is lost here either.
# - Designs that span decades are best given as logarithms.

# %%
parameter_names = ["Vmax [1/min]", "Km [mM]"]
prior = BoxUniform(low=torch.tensor([100.0, 0.2]), high=torch.tensor([400.0, 5.0]))
design_name = "log₁₀ of the concentration [mM]"
policy = TruncatedNormalPolicy(low=torch.tensor([-1.5]), high=torch.tensor([1.5]))


def mean_count(theta, design):
    concentration = 10.0**design
    return theta[..., :1] * concentration / (theta[..., 1:] + concentration)


def simulator(theta, design):
    counts = np.random.poisson(mean_count(theta.numpy(), design.numpy()))
    return torch.as_tensor(np.sqrt(counts + np.random.uniform(size=counts.shape)))


true_theta = torch.tensor([[250.0, 1.5]])


def measure(design):
    """The real experiment. Here the simulator stands for it."""
    return simulator(true_theta, design.unsqueeze(0))[0]


# %% [markdown]
# ## The first experiment
#
# With `method="multi_start"` the networks are trained over all designs alike. Then many
# designs climb the information of the learned model at once, and the best are scored
# with simulations. A climb also finds the errors of networks, so that only the scores
# are trusted: lower bounds of the information, from simulations not trained on.


# %%
def make_trainer():
    return NLE_INCE(
        prior,
        density_estimator="mdn",
        design_policy=policy,
        show_progress_bars=False,
    )


search = {
    "method": "multi_start",
    "multi_start": MultiStartConfig(num_starts=32, num_candidates=3),
    "num_eig_samples": 2_000,
}
inference = make_trainer()
first = inference.optimize_design(simulator, num_steps=300, **search)

# %%
print(f"First concentration: {10 ** first.design.item():.2f} mM")
print(f"Information: {first.eig.value:.2f} ± {first.eig.standard_error:.2f} nats")

# %% [markdown]
# By brute force: for parameters on a grid the probability of every count is known, and
# with it the information, which is the entropy of the count minus its expected entropy
# once the parameters are known. The weights of the grid are those of the prior now, and
# later those of the posterior.

# %%
axes = np.linspace(100.0, 400.0, 41), np.linspace(0.2, 5.0, 41)
grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
counts = np.arange(500)


def entropy(probabilities):
    return -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(axis=-1)


def exact_information(design, weights):
    probabilities = poisson.pmf(counts, mean_count(grid, design))
    return entropy(weights @ probabilities) - weights @ entropy(probabilities)


def exact_update(weights, design, x):
    likelihood = poisson.pmf(np.floor(x.item() ** 2), mean_count(grid, design.item()))
    weights = weights * likelihood[:, 0]
    return weights / weights.sum()


weights = [np.full(len(grid), 1.0 / len(grid))]  # before any experiment
designs = torch.linspace(-1.5, 1.5, 13)
exact = [exact_information(design, weights[0]) for design in designs.numpy()]
learned = [
    inference.estimate_eig(simulator, design, objective="barber_agakov")
    for design in designs.unsqueeze(1)
]
plot_eig_over_design(
    designs,
    learned,
    design=first.design.item(),
    eig=first.eig,
    reference=[(value, 0.0) for value in exact],
    name=design_name,
)

# %% [markdown]
# The bound follows the truth from below: the posterior behind it is a mixture of
# Gaussians that fits the real one nearly, not quite, and the gap is what it misses. For
# choosing a design the shape of the curve matters, not its height. From 1 mM upwards
# all concentrations are about equally good for a first measurement.
#
# ## Measure and learn
#
# `observe` takes the data into account: `inference.belief` holds particles of what is
# known now.

# %%
x_first = measure(first.design)
inference.observe(first.design, x_first)
particles = inference.belief.particles
print(f"Measured {int(x_first.item() ** 2)} counts")
print(f"Vmax {particles[:, 0].mean():.0f} ± {particles[:, 0].std():.0f} per minute")
print(f"Km   {particles[:, 1].mean():.1f} ± {particles[:, 1].std():.1f} mM")

# %% [markdown]
# ## The next experiments
#
# Search, measurement and inference are the same from here on, and `run_experiments`
# repeats them. The likelihood knows all designs already: with `method="multi_start"` no
# round trains anything. A later search climbs the contrastive bound of the likelihood
# (`"info_nce"`), since the posterior that was trained beside it knows nothing of the
# first datum.
#
# With a `checkpoint` the state is saved after every round. Real experiments take days;
# so imagine that the computer is switched off after the second.

# %%
checkpoint = Path(tempfile.mkdtemp()) / "enzyme.pt"
campaign = {"checkpoint": checkpoint, "seed": 1, "show_progress_bar": False, **search}
second = run_experiments(inference, simulator, measure, num_rounds=1, **campaign)

# %% [markdown]
# Days later, in another process: the same arguments, one round more. The new trainer
# gets networks, observations and random state from the file.

# %%
inference = make_trainer()
later = run_experiments(inference, simulator, measure, num_rounds=2, **campaign)

for observation in inference.observations:  # all three
    weights.append(exact_update(weights[-1], observation.design, observation.x))
print("concentration [mM]   information beyond what was known [nats]: bound, exact")
for record, known in zip(later.records, weights[1:], strict=False):
    value = exact_information(record.design.item(), known)
    print(
        f"{10 ** record.design.item():18.2f}   "
        f"{record.eig.value:.2f} ± {record.eig.standard_error:.2f}, {value:.2f}"
    )

# %%
sequence = [particles, *(record.posterior_samples for record in later.records)]
plot_posterior_sequence(
    [samples[:1_000] for samples in sequence],
    prior.sample((1_000,)),
    true_theta,
    parameter_names,
)

# %% [markdown]
# The first count leaves a band: a higher $V_\mathrm{max}$ is made up for by a higher
# $K_\mathrm{m}$. A later experiment is worth most where it cuts off a part of the band,
# which nobody told the search.
#
# The bound is one of the information beyond the *learned* belief; the exact value is
# that beyond the exact posterior. They differ by the errors of the belief, and not
# always in the direction of a bound.
#
# ## Three ways to the posterior
#
# - **Particles** of the belief: there already, from sequential Monte Carlo.
# - **MCMC**: `build_posterior()` without a design is the posterior given all
#   observations, with any of sbi's samplers.
# - **Direct**: `sample_with="direct"` draws from the network that was trained beside
#   the likelihood, at once. It knows *one* experiment after the prior: here the first.
#
# The first two use the same learned likelihood and must agree; brute force tells how
# good it is.

# %%
chains = MCMCPosteriorParameters(
    method="slice_np_vectorized", num_chains=50, warmup_steps=25
)
posterior = inference.build_posterior(posterior_parameters=chains)
mcmc = posterior.sample((1_000,), show_progress_bars=False)

amortised = inference.build_posterior(sample_with="direct", design=first.design)
direct = amortised.sample((2_000,), x=x_first.reshape(1, 1), show_progress_bars=False)


def exact_moments(weights):
    mean = weights @ grid
    return mean, np.sqrt(weights @ (grid - mean) ** 2)


def moments(samples):
    return samples.mean(dim=0).numpy(), samples.std(dim=0).numpy()


posteriors = {
    "after one: particles": moments(particles),
    "after one: direct": moments(direct),
    "after one: exact": exact_moments(weights[1]),
    "after three: particles": moments(later.posterior_samples),
    "after three: MCMC": moments(mcmc),
    "after three: exact": exact_moments(weights[3]),
}
print(f"{'mean ± standard deviation':<26} {'Vmax [1/min]':>12}  {'Km [mM]':>11}")
for name, (mean, spread) in posteriors.items():
    print(
        f"{name:<26} {mean[0]:6.0f} ± {spread[0]:3.0f}  "
        f"{mean[1]:5.2f} ± {spread[1]:.2f}"
    )

# %% [markdown]
# ## Does the model fit the data?
#
# Simulations at the three designs, with parameters from the posterior, should look like
# what was measured.

# %%
at = [observation.design for observation in inference.observations]
observed = [observation.x for observation in inference.observations]


def predict(theta):
    return [simulator(theta, design.expand(len(theta), 1)) for design in at]


plot_predictive(
    observed,
    predict(mcmc),
    predict(prior.sample((2_000,))),
    names=["square root of the count"],
    titles=[f"{10 ** design.item():.2f} mM" for design in at],
)

# %% [markdown]
# ## Was it worth it?
#
# Three random concentrations, with the same likelihood: `design` has a row for each row
# of the data. One set of data may be lucky and three random designs are good ones at
# times, so the comparison is repeated by brute force for many data sets of the same
# enzyme: the information gained is the logarithm of posterior over prior density at the
# true parameters.

# %%
random_designs = policy.low + 3.0 * torch.rand(3, 1)
random_x = torch.stack([measure(design) for design in random_designs])
random_posterior = inference.build_posterior(
    design=random_designs, posterior_parameters=chains
)
random_samples = random_posterior.sample((1_000,), x=random_x, show_progress_bars=False)
spreads = {"chosen": mcmc.std(dim=0), "random": random_samples.std(dim=0)}
for name, spread in spreads.items():
    print(f"{name}: Vmax ± {spread[0]:.0f} per minute, Km ± {spread[1]:.2f} mM")


def information_gained(designs):
    """Log-ratio of posterior and prior at the truth, for new data at the designs."""
    posterior, log_ratio = weights[0], 0.0
    for design in designs:
        x = measure(design)
        count, concentration = np.floor(x.item() ** 2), design.item()
        predicted = posterior @ poisson.pmf(count, mean_count(grid, concentration))
        true_mean = mean_count(true_theta.numpy(), concentration)
        log_ratio += (poisson.logpmf(count, true_mean) - np.log(predicted)).item()
        posterior = exact_update(posterior, design, x)
    return log_ratio


gained = {
    "chosen": [information_gained(at) for _ in range(300)],
    "random": [information_gained(-1.5 + 3.0 * torch.rand(3, 1)) for _ in range(300)],
}
for name, values in gained.items():
    low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
    print(
        f"{name}: {np.mean(values):.2f} nats gained on average, "
        f"{low:.1f} to {high:.1f} in 80 % of cases"
    )

# %% [markdown]
# What it cost:

# %%
print(f"training, once, and the first search: {first.num_simulations:>7,} simulations")
for number, record in enumerate(later.records, start=2):
    print(f"search for experiment {number}: {record.num_simulations:>22,} simulations")

# %% [markdown]
# Three random designs save the later searches and nothing else: their posterior needs
# the likelihood as well. And the simulations of a search only score what the network
# found; smaller `num_eig_samples` and `num_candidate_samples` make it cheaper, with a
# larger error of the information reported.
#
# ## Simulations that fail
#
# Real simulators fail. Rows that contain NaN or infinite values, and rows for which the
# simulator raises an error, are counted and left out; they are not fatal. A call that
# raises is repeated with ever fewer rows, until those to blame are alone.


# %%
def fragile_simulator(theta, design):
    if (theta[:, 1] > 4.95).any():  # one in a hundred
        raise FloatingPointError("the solver does not converge")
    x = simulator(theta, design)
    x[np.random.uniform(size=len(x)) < 0.02] = np.nan  # an air bubble
    return x


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    fragile = make_trainer().optimize_design(
        fragile_simulator, num_steps=40, num_eig_samples=2_000
    )
print(f"{fragile.num_invalid_simulations} failed; with those that were repeated there")
print(f"were {fragile.num_simulations:,} simulations")
for message in sorted({str(warning.message) for warning in caught}):
    print("-", message)

# %% [markdown]
# A failure counts as an experiment that tells nothing, so that the search keeps away
# from designs that often fail, and the information reported stays a lower bound. If
# failing depends on the parameters, as that of the solver does, a finite outcome tells
# that the parameters are not those that fail: the likelihood of the trainer contains
# the probability of success, which a classifier learns from all simulations.
#
# ## Slow simulators
#
# `num_workers` distributes the rows over processes, in `optimize_design`,
# `run_experiments`, `estimate_eig` and `simulate_for_boed`. Starting processes takes
# seconds, once, and sending rows some milliseconds for each batch, so that it pays for
# slower simulators than this one. Rows go in chunks with seeds of their own: what comes
# out depends on the size of the chunks, not on the number or kind of workers. Here they
# are threads, which start at once; leave out `parallel_config` for processes.

# %%
settings = {
    "num_simulations": 200,
    "simulation_batch_size": 50,
    "seed": 2,
    "show_progress_bar": False,
}
*_, x_one = simulate_for_boed(simulator, prior, policy, **settings)
with parallel_config("threading"):
    *_, x_two = simulate_for_boed(simulator, prior, policy, num_workers=2, **settings)
print("The same with two workers:", torch.equal(x_one, x_two))

# %% [markdown]
# ## Where to go from here
#
# - `method="joint"`, the default, trains likelihood and policy together, where the
#   policy is. It suits one experiment, many design values, or a likelihood that is hard
#   to learn everywhere; in a sequence it trains again in every round.
# - `02_gradients_and_bounds.py` tells what the objectives are and which to take.
