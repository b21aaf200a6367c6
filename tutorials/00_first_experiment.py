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
# # A first experiment
#
# You have a simulator and can choose something about the experiment that it stands for:
# when to measure, where, at which dose. This choice is the *design*. This tutorial
# finds the design whose measurement tells most about the parameters, measures there and
# infers them. It assumes that you have used sbi before. It takes about half a minute.
#
# It is a Python script that [jupytext](https://jupytext.readthedocs.io) opens as a
# notebook; `python tutorials/00_first_experiment.py` runs it as it is.

# %%
import torch
from sbi.utils import BoxUniform
from torch.distributions import Normal

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy, estimate_eig
from sbi_boed_plugin.plotting import (
    plot_eig_over_design,
    plot_policy,
    plot_posterior,
    plot_trace,
)

_ = torch.manual_seed(0)

# %% [markdown]
# ## A simulator with a design
#
# A substance is injected and decays. Two parameters are unknown: the concentration at
# the time of the injection [mg/l] and the decay rate [1/h]. There is one blood sample,
# and the laboratory reports its concentration with an error of 0.05 mg/l. When should
# the sample be taken?
#
# A simulator takes `theta` of shape `(batch, dim_theta)` and `design` of shape
# `(batch, dim_design)` and returns `x` of shape `(batch, dim_x)`: one experiment per
# row, each with a design of its own.

# %%
NOISE = 0.05
parameter_names = ["initial concentration [mg/l]", "decay rate [1/h]"]


def mean_concentration(theta, design):
    return theta[..., :1] * torch.exp(-theta[..., 1:] * design)


def simulator(theta, design):
    mean = mean_concentration(theta, design)
    return mean + NOISE * torch.randn_like(mean)


prior = BoxUniform(low=torch.tensor([0.8, 0.05]), high=torch.tensor([1.2, 1.0]))

# %% [markdown]
# ## Learn the design
#
# The *policy* is a distribution over designs. It starts wide, to explore the whole
# range from 0 to 24 hours, and narrows during training around the best design.
# `NLE_INCE` is sbi's NLE with another loss, and takes the same arguments. A mixture of
# Gaussians (`"mdn"`) is enough for the likelihood of this simulator; `"nsf"` is the
# choice when you do not know.

# %%
policy = TruncatedNormalPolicy(low=torch.tensor([0.0]), high=torch.tensor([24.0]))
inference = NLE_INCE(prior, density_estimator="mdn", design_policy=policy)
result = inference.optimize_design(simulator, num_steps=300)

# %% [markdown]
# ## Read the result
#
# `result.design` is the design, `result.eig` its expected information gain (EIG) in
# nats: by how much the measurement is expected to reduce the entropy of the belief
# about the parameters. One nat is a reduction of the plausible volume by a factor of
# $e \approx 2.7$.

# %%
eig = result.eig
print(f"Best time: {result.design.item():.1f} h")
print(f"EIG: {eig.value:.2f} ± {eig.standard_error:.2f} nats ({eig.bound})")
print(f"{result.num_simulations:,} simulations, {result.seconds:.0f} s")

# %% [markdown]
# Three things to know about the number:
#
# - **It is a lower bound**, from a posterior $q$ that is trained beside the likelihood:
#   `"barber_agakov"` is the average of $\log q(\theta \mid x) - \log p(\theta)$ over
#   simulations that were not trained on, and `"lace"` lets the likelihood correct $q$.
#   Reported is the larger of the two. The expectation of each is at most the EIG,
#   however good or bad the networks are, and close to it if they are good.
# - **The standard error** is that of the average over these simulations, whose number
#   is `num_eig_samples`. It says nothing about how far the bound lies below the EIG.
# - **It has hardly a cap.** The bound of the likelihood alone, `objective="info_nce"`,
#   has one: with $L$ contrastive parameters it cannot exceed $\log(L + 1)$. Where an
#   experiment is far below that, the two should be similar.

# %%
contrastive = inference.estimate_eig(simulator, result.design, objective="info_nce")
for name, bound in (("Reported", eig), ("From the likelihood", contrastive)):
    cap = "none" if bound.cap is None else f"{bound.cap:.2f}"
    print(f"{name:<20} {bound.value:.2f} nats, cap {cap}")

# %% [markdown]
# `result.history` has one entry per training step. The bound of a step is an average
# over the designs that the policy proposed in that step. It grows because the networks
# become better and because the policy moves and narrows. In the first steps, while the
# networks are poor, the policy waits.

# %%
plot_trace(result.history, eig=eig)

# %%
plot_policy(result.history, policy.low, policy.high, ["time [h]"])

# %% [markdown]
# ## Is it the best design?
#
# For most simulators the question has no exact answer. Here the likelihood is known, so
# that `estimate_eig` can judge any design without the learned likelihood.
# `bound="exact"` needs a function `log_likelihood(x, theta, design)`.


# %%
def log_likelihood(x, theta, design):
    return Normal(mean_concentration(theta, design), NOISE).log_prob(x).sum(dim=-1)


times = torch.linspace(0.0, 24.0, 13)
exact = [
    estimate_eig(
        log_likelihood,
        simulator,
        prior=prior,
        design=time,
        bound="exact",
        num_samples=500,
        seed=1,
    )
    for time in times.unsqueeze(1)
]
plot_eig_over_design(
    times, exact, design=result.design.item(), eig=eig, name="time [h]"
)

# %%
best = max(range(len(times)), key=lambda index: exact[index].value)
print(f"Best of {len(times)} times: {times[best]:.0f} h, {exact[best].value:.2f} nats")
print(f"Worst: {min(estimate.value for estimate in exact):.2f} nats")

# %% [markdown]
# ## Measure and infer
#
# In your laboratory this is where the experiment happens. Here the simulator stands for
# it, at parameters that we pretend not to know. `build_posterior` is that of NLE, with
# the design of the measurement in addition: the posterior network of the search
# proposes parameters, and the likelihood corrects them. All of sbi's samplers work,
# too.

# %%
true_theta = torch.tensor([[1.1, 0.3]])
x_o = simulator(true_theta, result.design.unsqueeze(0))

posterior = inference.build_posterior(design=result.design)
samples = posterior.sample((1_000,), x=x_o, show_progress_bars=False)

# %%
plot_posterior(samples, prior.sample((1_000,)), true_theta, parameter_names)

# %% [markdown]
# One number cannot determine two parameters: the posterior is a curved band along which
# a higher initial concentration is made up for by a faster decay. How much better than
# before the decay rate is known is printed below.
#
# ## Compare with a poor design
#
# Suppose the sample had been taken after 20 hours, when hardly anything is left. The
# likelihood from above was trained where the policy was, which is near the best design.
# For other designs, train one on simulations at designs from the whole range: they are
# stored with the simulations.

# %%
theta = prior.sample((2_000,))
designs = 24.0 * torch.rand(2_000, 1)
amortized = NLE_INCE(prior, density_estimator="mdn", show_progress_bars=False)
amortized.append_simulations(theta, simulator(theta, designs), design=designs)
amortized.train(learning_rate=2e-3, stop_after_epochs=5)

poor_design = torch.tensor([20.0])
poor_x_o = simulator(true_theta, poor_design.unsqueeze(0))
poor_posterior = amortized.build_posterior(design=poor_design, sample_with="hybrid")
poor_samples = poor_posterior.sample((1_000,), x=poor_x_o, show_progress_bars=False)

# %%
rates = {
    "before the experiment": prior.sample((1_000,))[:, 1],
    f"measured after {poor_design.item():.1f} h": poor_samples[:, 1],
    f"measured after {result.design.item():.1f} h": samples[:, 1],
}
print("Decay rate [1/h], mean ± standard deviation")
for when, rate in rates.items():
    print(f"  {when:<21}  {rate.mean():.2f} ± {rate.std():.2f}")

# %% [markdown]
# This is one experiment of each kind. The EIG is the average over all experiments that
# the prior deems possible, and in nats of both parameters together.
#
# ## Where to go from here
#
# - Several measurements are one design of several values: give `low` and `high` that
#   many entries. The simulator then returns one value per measurement.
# - `max_num_simulations` and `max_seconds` bound the search. After an interruption,
#   `optimize_design(simulator, resume_training=True)` goes on where it stopped.
# - Data that span decades are noticed in the first simulations and learned nearly as
#   logarithms. `NLE_INCE(x_transform=...)` and `transformed_likelihood_nn` take others.
# - `sbi-boed design sir` runs all of this for an epidemic, and writes what it found to
#   a folder.
