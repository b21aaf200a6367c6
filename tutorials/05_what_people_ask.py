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
# # What people ask for
#
# Three stories, each in a few lines: a pharmacologist's blood samples, which must be
# taken in order and cost something; two models of memory, told apart by yes or no; and
# a campaign whose data come days later, in other processes. It takes about a minute.

# %%
import tempfile
import warnings
from pathlib import Path

import torch
from sbi.utils import BoxUniform
from torch.distributions import Bernoulli

from sbi_boed_plugin import (
    NLE_INCE,
    Campaign,
    ModelDiscrimination,
    OrderedPolicy,
    TruncatedNormalPolicy,
    categorical_likelihood_nn,
)

_ = torch.manual_seed(0)
# Few simulations are told, each time; here that is known.
warnings.filterwarnings("ignore", "The networks learned from")
quiet = {"show_progress_bars": False}

# %% [markdown]
# ## Five samples in order
#
# A drug is absorbed and eliminated again. Five blood samples can be taken within 24
# hours; a late visit costs more than an early one. The elimination rate is what the
# dose depends on: it is the *target*, absorption and volume are nuisance.

# %%
prior = BoxUniform(torch.tensor([0.5, 0.05, 10.0]), torch.tensor([2.0, 0.4, 30.0]))


def concentration(theta, times):
    absorption, elimination, volume = theta.split(1, dim=1)
    factor = 400.0 / volume * absorption / (absorption - elimination)
    return factor * (torch.exp(-elimination * times) - torch.exp(-absorption * times))


def sample_blood(theta, times):
    exact = concentration(theta, times)
    return exact * (1.0 + 0.1 * torch.randn_like(exact)) + 0.3 * torch.randn_like(exact)


def cost(times):
    """A visit, and the hours after the last one that nobody is paid for, in nats."""
    return 0.02 * times[:, -1]


inference = NLE_INCE(
    prior, "mdn", design_policy=OrderedPolicy(0.25, 24.0, dim_design=5), **quiet
)
samples = inference.optimize_design(
    sample_blood,
    target=[1],
    cost=cost,
    maximize="eig_minus_cost",
    method="multi_start",
    num_steps=150,
)
print(samples)

# %% [markdown]
# The times are in order in every design that was simulated: `OrderedPolicy` has no
# others. Had the condition been another one, `feasible=` would have taken it. The
# prior of the elimination rate is known, so that the information is a lower bound.
#
# After the measurement, the posterior is that of all three parameters; the target is a
# column of it.

# %%
truth = torch.tensor([[1.2, 0.15, 18.0]])
inference.observe(samples.design, sample_blood(truth, samples.design[None])[0])
elimination = inference.belief.particles[:, 1]
print(f"elimination {elimination.mean():.3f} ± {elimination.std():.3f} per hour")

# %% [markdown]
# ## Two models of memory
#
# Is forgetting a power of time, or exponential? A word is learned; after a delay the
# answer is right or wrong. When should one ask? A single answer tells a small part of
# the $\log 2$ nats that there are to know.

# %%
powers = BoxUniform(torch.tensor([0.7, 0.6]), torch.tensor([1.0, 1.0]))
decays = BoxUniform(torch.tensor([0.7, 0.05]), torch.tensor([1.0, 0.2]))


def by_power(theta, delay):
    return Bernoulli(theta[:, :1] * (delay + 1.0) ** (-theta[:, 1:])).sample()


def by_decay(theta, delay):
    return Bernoulli(theta[:, :1] * torch.exp(-theta[:, 1:] * delay)).sample()


memory = ModelDiscrimination(
    [(powers, by_power), (decays, by_decay)],
    categorical_likelihood_nn([0, 1]),
    design_policy=TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 40.0)),
    **quiet,
)
asked = memory.optimize_design(num_steps=300)
print(asked)

# %% [markdown]
# Ten people are asked after this delay, and as many after a long one. They forget
# exponentially.

# %%
delays = torch.cat([asked.design.expand(10), torch.full((10,), 30.0)]).unsqueeze(1)
truth = torch.tensor([[0.9, 0.1]])
answers = by_decay(truth.expand(20, -1), delays)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Each answer has a belief of its own.
    memory.observe(delays, answers)
right = memory.probabilities
print(f"power {right[0]:.3f}, exponential {right[1]:.3f}")
rates = memory.parameters_of(1)[:, 1]
print(f"rate of forgetting {rates.mean():.2f} ± {rates.std():.2f}")

# %% [markdown]
# ## A campaign over several days
#
# On Monday the next design is found. On Thursday there is a datum, and another process
# goes on. Both begin with the same lines; here a function stands for them.

# %%
folder = Path(tempfile.mkdtemp()) / "doses"
dose_prior = BoxUniform(torch.tensor([0.5]), torch.tensor([2.0]))


def respond(theta, dose):
    return dose / (theta + dose) + 0.03 * torch.randn_like(dose)


def todays_campaign():
    policy = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 5.0))
    trainer = NLE_INCE(dose_prior, "mdn", design_policy=policy, **quiet)
    return Campaign(folder, trainer, respond, seed=1, max_num_simulations=200)


with todays_campaign() as campaign:  # Monday
    dose = campaign.propose()
    print(f"give {dose.item():.2f}")

with todays_campaign() as campaign:  # Thursday
    campaign.record(respond(torch.tensor([[1.2]]), dose[None])[0])
    print(campaign.status())
    second = campaign.propose()

# %% [markdown]
# A typing error is questioned, and a datum of the wrong patient is taken back: the
# state before is that of before, to the last bit.

# %%
with todays_campaign() as campaign:  # Friday
    try:
        campaign.record(torch.tensor([48.0]))
    except ValueError as error:
        print(error)
    campaign.record(torch.tensor([0.4]), accept_surprise=True)
    campaign.undo()
    back = campaign.status()
    print(back)
