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
# # Policies that adapt
#
# Five tones are played to a person, who says each time whether it was heard. What is
# the quietest level that this person hears? Tones that are chosen beforehand split the
# range into six parts. A tone that follows the answers can halve what is left each
# time. A policy learns this by itself, from simulations alone. It takes about
# two minutes.

# %%
import itertools

import matplotlib.pyplot as plt
import torch
from sbi.utils import BoxUniform
from torch.nn.functional import logsigmoid

from sbi_boed_plugin import NLE_INCE, TruncatedNormalPolicy, categorical_likelihood_nn

_ = torch.manual_seed(0)
NUM_TONES, WIDTH = 5, 1.0
prior = BoxUniform(torch.zeros(1), torch.full((1,), 40.0))  # decibels
levels = TruncatedNormalPolicy(torch.zeros(1), torch.full((1,), 40.0))


def hears(threshold, level):
    return torch.bernoulli(torch.sigmoid((level - threshold) / WIDTH))


inference = NLE_INCE(
    prior,
    categorical_likelihood_nn([0, 1]),
    design_policy=levels,
    show_progress_bars=False,
)

# %% [markdown]
# ## Training
#
# The simulations teach a likelihood; inside it the policy practises. With
# `adapts=False` the same training finds the best list of tones to play to everybody.

# %%
settings = {"num_steps": 500, "training_batch_size": 64}
adaptive = inference.optimize_policy(
    hears, NUM_TONES, max_num_simulations=8_000, **settings
)
fixed = inference.optimize_policy(
    hears, NUM_TONES, max_num_simulations=8_000, adapts=False, **settings
)
print(adaptive)
print(fixed)

# %% [markdown]
# ## What it is worth, exactly
#
# Five answers have 32 outcomes. For each of them the policy proposes its tones, and the
# probability of the outcome is known for every threshold.

# %%
thresholds = torch.linspace(0.0, 40.0, 2_001)[:, None]


def exact_information(policy):
    """Return the information of all tones together, in nats."""
    log_chances = []
    for answers in itertools.product([0.0, 1.0], repeat=NUM_TONES):
        x = torch.tensor(answers)[:, None]
        tones, log_chance = torch.zeros(0, 1), torch.zeros(len(thresholds))
        for number in range(NUM_TONES):
            tone = policy.propose(tones, x[:number])
            above = (tone - thresholds)[:, 0] / WIDTH
            log_chance += logsigmoid(torch.where(x[number] > 0.5, above, -above))
            tones = torch.cat([tones, tone[None]])
        log_chances.append(log_chance)
    log_chances = torch.stack(log_chances)
    marginal = log_chances.exp().mean(dim=1, keepdim=True)
    return float((log_chances.exp() * (log_chances - marginal.log())).sum(0).mean())


exact = {
    "adaptive": exact_information(adaptive.policy),
    "fixed": exact_information(fixed.policy),
}
for name, value in exact.items():
    print(f"{name}: {value:.2f} nats")

# %% [markdown]
# ## One person after another
#
# The first tone is the same for everybody. Each path goes to the threshold of its
# person, shown at the right. A proposal takes a millisecond, and the posterior of the
# threshold, from a network that the likelihood corrects, not much longer.

# %%
figure, axes = plt.subplots(figsize=(6, 3.5))
posteriors = {}
for threshold in (6.0, 17.0, 33.0):
    person = torch.tensor([[threshold]])
    tones, answers = torch.zeros(0, 1), torch.zeros(0, 1)
    for _ in range(NUM_TONES):
        tone = adaptive.policy.propose(tones, answers)
        tones = torch.cat([tones, tone[None]])
        answers = torch.cat([answers, hears(person, tone[None])])
    (line,) = axes.plot(range(1, NUM_TONES + 1), tones[:, 0], "o-")
    axes.plot(NUM_TONES + 0.4, threshold, "<", color=line.get_color())
    posterior = inference.build_posterior(history=(tones, answers))
    draws = posterior.sample((2_000,), show_progress_bars=False)
    posteriors[threshold] = draws.mean().item(), draws.std().item()
axes.set(xlabel="tone", ylabel="level [dB]", xticks=range(1, NUM_TONES + 1))
for threshold, (mean, spread) in posteriors.items():
    print(f"{threshold:g} dB: {mean:.1f} ± {spread:.1f}")
