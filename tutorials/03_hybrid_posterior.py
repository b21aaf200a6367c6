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
# # Correct a posterior with an energy
#
# A flow smears out what it cannot represent: edges of a posterior, gaps between modes.
# `NPE_GKL` multiplies it by an *energy ratio*,
# $q(\theta \mid x) \propto b(\theta \mid x) \, e^{\rho(\theta, x)}$: a small network
# that learns from the same simulations where the base $b$ is too high or too low.
# Samples are draws of the base, of which some are rejected.
#
# This tutorial corrects a posterior of sbi, compares it with the exact one and reads
# what it says about itself. There are no designs in it. It takes about a minute.

# %%
import math
import time
import warnings

import torch
from matplotlib.figure import Figure
from sbi.inference import NPE, infer
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from sbi.utils.metrics import c2st
from torch.distributions import Independent, Normal

from benchmarks.papers.two_moons import log_likelihood, simulate
from sbi_boed_plugin import NPE_GKL, EnergyConfig, HybridPosteriorParameters
from sbi_boed_plugin.experiment import NoOpTracker

_ = torch.manual_seed(0)
quiet = {"tracker": NoOpTracker(), "show_progress_bars": False}

# %% [markdown]
# ## Train, then refine
#
# *Two moons*: `simulate` draws a point of a thin crescent and shifts it by
# $-|\theta_1 + \theta_2| / \sqrt 2$ and $(\theta_2 - \theta_1) / \sqrt 2$. The absolute
# value leaves two possibilities, and the posterior has two crescents. Training the base
# for longer, as sbi does by default, would leave less to correct.
#
# `NPE_GKL.refine` takes a posterior and the simulations that it was trained with. It
# leaves the posterior as it is, trains an energy for a copy, and returns a trainer.
# Here the energy stops early as well: its default is 120 epochs.

# %%
prior = BoxUniform(-torch.ones(2), torch.ones(2))
theta = prior.sample((2_000,))
x = simulate(theta)

start = time.perf_counter()
inference = NPE(prior, density_estimator=posterior_nn("maf"), **quiet)
inference.append_simulations(theta, x)
inference.train(learning_rate=2e-3, stop_after_epochs=10)
before = inference.build_posterior()
seconds_of_npe = time.perf_counter() - start

brief = EnergyConfig(max_num_epochs=40)
refined = NPE_GKL.refine(before, theta, x, energy=brief, **quiet)
after = refined.build_posterior()
seconds_of_energy = time.perf_counter() - start - seconds_of_npe
print(f"NPE {seconds_of_npe:.0f} s, energy {seconds_of_energy:.0f} s")

# %% [markdown]
# The exact posterior comes from running the simulator backwards: which shift takes a
# point of the crescent to $x$? Either sign will do. What needs a negative absolute
# value, or lies outside of the prior, is impossible, and the share of the rest
# normalizes the exact log-density.


# %%
def run_backwards(x, num):
    """Parameters of shape `(len(x), num, 2)`, and which of them are possible."""
    crescent = simulate(torch.zeros(num, 2))
    total, difference = crescent[:, 0] - x[:, :1], x[:, 1:] - crescent[:, 1]
    sign = 2 * torch.randint(2, total.shape) - 1
    values = torch.stack([sign * total - difference, sign * total + difference], dim=-1)
    values = values / math.sqrt(2.0)
    return values, (total >= 0) & (values.abs() <= 1.0).all(dim=-1)


x_o = torch.zeros(1, 2)
values, possible = run_backwards(x_o, 10_000)
samples = {
    "NPE": before.sample((1_000,), x=x_o, show_progress_bars=False),
    "NPE, refined": after.sample((1_000,), x=x_o, show_progress_bars=False),
    "exact": values[possible][:1_000],
}

# %%
figure = Figure(figsize=(9.0, 3.6), layout="compressed")
panels = figure.subplots(1, 3, sharex=True, sharey=True)
colors = ("#D55E00", "#0072B2", "#009E73")
for ax, color, (name, draws) in zip(panels, colors, samples.items(), strict=True):
    ax.scatter(*draws.T.numpy(), s=4, linewidths=0, alpha=0.6, color=color)
    ax.set(title=name, xlabel="parameter 1", xlim=(-0.5, 0.5), ylim=(-0.5, 0.5))
    ax.set_aspect("equal")
    ax.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("parameter 2")
figure

# %% [markdown]
# A classifier that has to tell samples from exact ones is right in half of the cases if
# it cannot (C2ST, here sbi's random forest; its error is about 0.02).

# %%
scores = {
    name: float(c2st(samples["exact"], samples[name]))
    for name in ("NPE", "NPE, refined")
}
print(f"C2ST: NPE {scores['NPE']:.2f}, refined {scores['NPE, refined']:.2f}")

# %% [markdown]
# ## What it gained
#
# The summary's `energy_gain` tells by how many nats the energy improves its objective
# on held-out simulations. Since $\log Z \le Z - 1$, it is in expectation a lower bound
# of the improvement in held-out log-density. Here is that, for 100 new simulations:

# %%
NUM_NEW = 100
new_theta = prior.sample((NUM_NEW,))
new_x = simulate(new_theta)
_, possible = run_backwards(new_x, 5_000)
# Two signs for each point of the crescent.
exact = log_likelihood(new_x, new_theta) - (2.0 * possible.double().mean(dim=1)).log()
log_density = {
    name: posterior.log_prob_batched(
        new_theta.unsqueeze(0),
        new_x,
        leakage_correction_params={"num_rejection_samples": 500},
    )[0]
    for name, posterior in (("NPE", before), ("NPE, refined", after))
}
gained = log_density["NPE, refined"] - log_density["NPE"]
missing = exact - log_density["NPE"]
gain = refined.summary["energy_gain"][-1]
gain_error = refined.summary["energy_gain_standard_error"][-1]
print(f"energy_gain      {gain:.2f} ± {gain_error:.2f} nats")
print(f"New simulations  {gained.mean():.2f} ± {gained.std() / NUM_NEW**0.5:.2f}")
print(f"Exact posterior  {missing.mean():.2f} ± {missing.std() / NUM_NEW**0.5:.2f}")

# %% [markdown]
# The first two differ by their errors and by what the ceiling loses. The last is all
# that could be gained; what is missing needs more simulations, or longer training.
#
# ## Read the diagnostics
#
# `diagnostics(x)` weighs 10,000 draws of the base for each observation, fewer for many
# at once. The seed is fixed: it always says the same.

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # See below.
    told, usual = after.diagnostics(x_o), after.diagnostics(new_x)
print("                  at x_o   new simulations: 5 %, median, 95 %")
for name in (
    "acceptance_rate",
    "effective_share",
    "log_partition",
    "truncated_mass",
):
    own, others = getattr(told, name), getattr(usual, name)
    numbers = others.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    print(f"{name:<21} {own.item():6.3f}  ", *(f"{number:7.3f}" for number in numbers))

# %% [markdown]
# | what | what it means | at best | doubtful |
# |---|---|---|---|
# | `acceptance_rate` | draws of the base that become samples | 1 | < 0.005 |
# | `effective_share` | how well the base covers the hybrid | 1 | < 0.01 |
# | `log_partition` | log Z: error of the energy's scale | 0 | beyond ± 2 |
# | `truncated_mass` | what the ceiling of rejection cuts off, at most | 0 | > 0.05 |
#
# Where there is nothing to correct, all are at their best. What is usual depends on the
# model: compare an observation with new simulations, as above.
#
# - **The acceptance rate is time, not quality**; a large correction has a low one.
#   Below 0.001 samples are resampled from 64 draws each, with a warning.
# - **log Z is zero for an energy that is exact.** Densities are divided by its estimate
#   and samples do not depend on it: it is a check, at this observation.
# - **The ceiling** is a high quantile of the weights. Their maximum cuts off less, and
#   is slower:

# %%
slower = refined.build_posterior(
    posterior_parameters=HybridPosteriorParameters(ceiling_quantile=1.0)
)
told_slower = slower.diagnostics(x_o)
for which in (told, told_slower):
    accepted, lost = which.acceptance_rate.item(), which.truncated_mass.item()
    print(f"accepts {accepted:.4f}, loses {lost:.4f}")

# %% [markdown]
# ## An observation far from the simulations
#
# The first value of two moons hardly exceeds 0.35. Here it does, more and more:

# %%
far = {}
for first in (0.3, 1.0, 2.0):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        log_partition = after.diagnostics(torch.tensor([[first, 0.0]])).log_partition
    far[first] = log_partition.item(), [str(w.message) for w in caught]
    print(f"x_o = ({first}, 0)  log Z {far[first][0]:5.1f}, {len(caught)} warnings")
print(*far[2.0][1])

# %% [markdown]
# Beyond two nats there is a warning, of `sample` and `log_prob` as well. Silence
# proves nothing: an energy may extrapolate by luck to something of the right size. If
# no draw of the base is in the support of the prior, `sample` raises an error.
#
# ## One class name, and an energy that does not help
#
# In a new pipeline `NPE_GKL` takes the place of `NPE`: `train` trains the base, with
# the same arguments and random numbers, and then the energy. Here the exact posterior
# is one Normal and so is the base; hardly anything is left to correct.


# %%
def add_noise(theta):
    return theta + 0.5 * torch.randn_like(theta)


normal_prior = Independent(Normal(torch.zeros(2), 1.0), 1)
normal_theta = normal_prior.sample((500,))
normal_x = add_noise(normal_theta)
draws_of = {}
for trainer in (NPE, NPE_GKL):
    torch.manual_seed(1)
    inference = trainer(normal_prior, posterior_nn("mdn", num_components=1), **quiet)
    inference.append_simulations(normal_theta, normal_x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inference.train(learning_rate=2e-3, max_num_epochs=50)
    posterior = inference.build_posterior()
    torch.manual_seed(2)
    draws_of[trainer] = posterior.sample((500,), x=x_o, show_progress_bars=False)
useless = [str(w.message) for w in caught if "energy" in str(w.message)]
print(*useless)
print("The same samples:", torch.equal(draws_of[NPE], draws_of[NPE_GKL]))

# %% [markdown]
# An energy must improve the held-out objective by two standard errors. Otherwise it is
# told, the base is kept, to the last bit, and only the time is lost.
#
# sbi's simple interface knows the name as well:

# %%
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # As useless as above.
    simple = infer(
        add_noise,
        normal_prior,
        method="npe_gkl",
        num_simulations=300,
        init_kwargs=quiet | {"density_estimator": "mdn"},
        train_kwargs={"max_num_epochs": 10, "energy": EnergyConfig(max_num_epochs=5)},
    )
print(type(simple).__name__)

# %% [markdown]
# ## Which to take
#
# | take | when | costs |
# |---|---|---|
# | a bigger flow (`"nsf"`) | first: nothing is rejected | its training |
# | `NPE_GKL`, `refine` | the flow still smears edges or gaps | energy, rejected draws |
# | `NRE_GKL` | no flow fits, posteriors not much narrower than the prior | MCMC |
#
# - They go together: the base may be any `density_estimator`, `"nsf"`, too.
# - An energy weighs draws of the base. A mode where there are none stays missed.
# - `NRE_GKL` has the prior for a base and takes the place of `NRE`, with a ratio that
#   is normalized. Narrow posteriors make it noisy: hardly a draw falls into them.
