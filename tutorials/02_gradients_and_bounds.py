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
# # Gradients, bounds and policies
#
# `optimize_design` has a `gradient`, an `objective` and a policy, each with several
# choices. The defaults are good ones. This tutorial shows what the choices are, on
# models whose information is known exactly, and ends each part with a table of which to
# take when. It takes about a minute.
#
# All information is in nats. EIG stands for expected information gain: the mutual
# information between parameters and data, at one design.

# %%
import math
import warnings

import torch
from matplotlib.figure import Figure
from torch.distributions import Independent, MultivariateNormal, Normal

from sbi_boed_plugin import (
    NLE_INCE,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
    estimate_eig,
)
from sbi_boed_plugin.plotting import plot_policy, plot_trace
from sbi_boed_plugin.tasks import get_task

_ = torch.manual_seed(0)

# %% [markdown]
# ## Why the partial gradient vanishes
#
# Take $x = \theta \xi + \epsilon$ with standard Normal $\theta$ and $\epsilon$. The
# information is $\frac12 \log(1 + \xi^2)$ and its derivative $\xi / (1 + \xi^2)$.
#
# The contrastive bound of SBI-BOED compares the likelihood of the true parameter
# $\theta_0$ with its average over $\theta_0$ and $L$ others,
#
# $$ g = \log p(x \mid \theta_0, \xi)
#   - \log \frac{1}{L + 1} \sum_{l=0}^{L} p(x \mid \theta_l, \xi). $$
#
# The tempting gradient is the derivative of $g$ in $\xi$ with the simulated $x$ held
# fixed: differentiate the network, not the simulator. Its expectation is zero, each
# term on its own:
#
# - **The first by the score identity.** For fixed $\theta_0$ the density integrates to
#   one at every $\xi$, and
#   $E[\partial_\xi \log p(x \mid \theta_0, \xi)] = \partial_\xi \int p \, dx = 0$.
# - **The second by exchangeability.** It treats all $\theta_l$ alike. So we may forget
#   which of them $x$ was simulated with; then $x$ is a draw from their average
#   $\frac{1}{L + 1} \sum_l p(x \mid \theta_l, \xi)$. This is a density, too, and the
#   score identity holds for it.
#
# What is missing is that $x$ would have been another at another design. Below are all
# of these under the true likelihood. Every row has a design of its own, so that the
# derivative of the sum gives one gradient per row, and with it a standard error.

# %%
NUM_ROWS, NUM_CONTRASTIVE = 10_000, 400


def log_density(x, theta, design):
    return -0.5 * (x - theta * design).square()  # up to a constant, which drops out


def bound_parts(x, theta, design):
    """Both terms of the contrastive bound, of shape `(NUM_ROWS,)`."""
    others = torch.randn(NUM_CONTRASTIVE, NUM_ROWS)
    own = log_density(x, theta, design)
    all_of_them = torch.cat([own.unsqueeze(0), log_density(x, others, design)])
    average = torch.logsumexp(all_of_them, dim=0) - math.log(NUM_CONTRASTIVE + 1)
    return own, average


def derivative(terms, design):
    (per_row,) = torch.autograd.grad(terms.sum(), [design], retain_graph=True)
    return per_row


def mean_and_error(values):
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


POLICY_SCALE = 0.4
gradients, exact_derivative, spread_of_rows = {}, {}, {}
for location in (1.0, 3.0):
    theta, noise = torch.randn(NUM_ROWS), torch.randn(NUM_ROWS)
    design = torch.full((NUM_ROWS,), location, requires_grad=True)
    x = theta * design + noise

    own, average = bound_parts(x.detach(), theta, design)
    rows = {
        "partial, first term": derivative(own, design),
        "partial, second term": derivative(average, design),
        "partial": derivative(own - average, design),
    }
    own, average = bound_parts(x, theta, design)
    rows["pathwise"] = derivative(own - average, design)

    # The score function needs a distribution of designs, and values of the bound only.
    drawn = location + POLICY_SCALE * torch.randn(NUM_ROWS)
    own, average = bound_parts(theta * drawn + noise, theta, drawn)
    value = own - average
    baseline = (value.sum() - value) / (NUM_ROWS - 1)  # the mean of all other rows
    rows["score"] = (value - baseline) * (drawn - location) / POLICY_SCALE**2

    exact_derivative[location] = location / (1.0 + location**2)
    print(f"Design {location:.0f}: exact derivative {exact_derivative[location]:.3f}")
    for name, values in rows.items():
        gradients[location, name] = mean_and_error(values)
        spread_of_rows[location, name] = values.std().item()
        mean, error = gradients[location, name]
        print(f"  {name:<21} {mean:6.3f} ± {error:.3f}")

# %% [markdown]
# The score follows the information averaged over its policy, here a Normal of scale
# 0.4 around the design, whose derivative is a little different from that at its centre:


# %%
def averaged_derivative(location):
    """The derivative of the information, averaged over the policy."""
    grid = torch.linspace(-4.0, 4.0, 2_001, dtype=torch.float64)
    weights = torch.exp(-0.5 * grid**2) / torch.exp(-0.5 * grid**2).sum()
    design = location + POLICY_SCALE * grid
    return (weights * design / (1.0 + design**2)).sum().item()


for location in (1.0, 3.0):
    print(f"Averaged around {location:.0f}: {averaged_derivative(location):.3f}")

# %% [markdown]
# With a *learned* likelihood the partial gradient is not zero. But what is left is the
# misfit of the network, and the policy goes where that leads it. `gradient="partial"`
# exists to reproduce the code that was published with the paper.
#
# The others all follow the information and differ in what they need:
#
# | `gradient` | how data follow the design | needs |
# |---|---|---|
# | `"score"` (default) | not at all, values suffice | a density of the policy |
# | `"pathwise"` | through the simulator | a simulator in torch |
# | `"implicit"` | at fixed noise of the likelihood | a likelihood that fits |
# | `"surrogate"` | redrawn from the likelihood | the same |
# | `"partial"` | they are held fixed | – |
#
# The score is unbiased for any simulator and has the largest variance, as the errors
# above show. Take `"pathwise"` if you can differentiate your simulator, and
# `"implicit"` or `"surrogate"` if you cannot and the score is too noisy, for instance
# with many design values. Where the likelihood is the true one the three agree: at
# fixed noise $x - \theta \xi$, data move by $\theta$ per unit of the design.
#
# Trained together with a likelihood, all four climb towards the best design of this
# model, which is the upper end of the range:


# %%
def line(theta, design):
    return theta * design + torch.randn_like(theta)


def new_trainer(prior, policy):
    return NLE_INCE(
        prior,
        density_estimator="mdn",
        design_policy=policy,
        show_progress_bars=False,
    )


standard_normal = Independent(Normal(torch.zeros(1), 1.0), 1)
found = {}
for gradient in ("score", "pathwise", "implicit", "surrogate"):
    policy = TruncatedNormalPolicy(
        torch.tensor([0.0]), torch.tensor([3.0]), loc=torch.tensor([1.0]), scale=0.1
    )
    result = new_trainer(standard_normal, policy).optimize_design(
        line, gradient=gradient, num_steps=100, num_eig_samples=500
    )
    found[gradient] = result.design.item()
    print(f"{gradient:<10} from 1.0 to {found[gradient]:.2f}")

# %% [markdown]
# ## Caps
#
# The contrastive bound, `"pce"`, picks the true parameter out of $L + 1$. Even an
# experiment that reveals it completely cannot gain more than $\log(L + 1)$ that way.
# Take a straight line, measured at four positions; the best are two at each end. Its
# information is known, and so is the likelihood: what is missing is due to $L$ alone.

# %%
task = get_task("gaussian_linear", dim_design=4)
best_design = torch.tensor([-10.0, -10.0, 10.0, 10.0])
exact, _ = task.exact_eig(best_design)
numbers = [3, 15, 63, 255, 1_023, 4_095]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Each warns that it is close to its cap.
    contrastive = [
        estimate_eig(
            task.log_likelihood,
            task.simulator,
            prior=task.prior,
            design=best_design,
            bound="pce",
            num_contrastive=number,
            seed=0,
        )
        for number in numbers
    ]

# %% [markdown]
# The Barber-Agakov bound compares posterior and prior instead,
# $\log q(\theta \mid x) - \log p(\theta)$, and has no cap. With the exact posterior it
# is the information; with a learned one it is lower by how far that is from the exact
# one. Nothing has to be enumerated, but a network has to fit.
#
# An estimator for `estimate_eig` is anything with sbi's `log_prob`; a posterior is
# conditioned on `(x, design)` in one row.


# %%
class ExactPosterior:
    """Posterior of intercept and slope, both Normal with deviation 3 before."""

    def log_prob(self, theta, condition):
        x, design = condition.split(4, dim=-1)
        regressors = torch.stack([torch.ones_like(design), design], dim=-1)
        precision = torch.eye(2) / 9.0 + regressors.mT @ regressors
        shift = regressors.mT @ x.unsqueeze(-1)
        mean = torch.linalg.solve(precision, shift).squeeze(-1)
        return MultivariateNormal(mean, precision_matrix=precision).log_prob(theta)


settings = {"prior": task.prior, "design": best_design, "bound": "barber_agakov"}
with_exact = estimate_eig(ExactPosterior(), task.simulator, **settings, seed=0)

trainer = new_trainer(
    task.prior, TruncatedNormalPolicy(task.design_low, task.design_high)
)
learned = trainer.optimize_design(task.simulator, num_steps=300)
bound = learned.bounds["barber_agakov"]
print(f"Exact information     {exact:.2f}")
print(f"Exact posterior       {with_exact.value:.2f} ± {with_exact.standard_error:.2f}")
print(f"Learned posterior     {bound.value:.2f} ± {bound.standard_error:.2f}")
print("Design found         ", [round(value, 1) for value in learned.design.tolist()])

# %%
figure = Figure(figsize=(6.5, 3.6), layout="constrained")
ax = figure.subplots()
ax.plot(numbers, [e.cap for e in contrastive], "k--", label="cap, log(L + 1)")
ax.errorbar(
    numbers,
    [e.value for e in contrastive],
    [e.standard_error for e in contrastive],
    fmt="o",
    color="#0072B2",
    label="contrastive bound, true likelihood",
)
ax.axhline(exact, color="#009E73", label="exact information")
ax.axhline(
    bound.value,
    color="#D55E00",
    linestyle=":",
    label="Barber-Agakov bound, learned posterior",
)
ax.set_xscale("log")
ax.set_xlabel("number of contrastive parameters L")
ax.set_ylabel("information [nats]")
ax.set_ylim(0.0)
ax.legend(frameon=False, loc="lower right")
figure

# %% [markdown]
# With $L = 3$ the contrastive bound tells 1.38 of the 1.39 nats that it can, of an
# experiment of 5.90; even with 4,095 it is not quite there. With 31, which
# `objective="info_nce"` takes by default, it could never tell more than
# $\log 32 = 3.47$. The learned posterior has no cap. Its own gap is that of a network
# that was trained for seconds:

# %%
plot_trace(learned.history, eig=bound, exact=exact)

# %% [markdown]
# The bound of the design found may be less than that of the last steps: in a corner of
# the range, where the policy hardly ever draws all four positions at once, the
# posterior often fits worse than a little inside. Compare the gaps:

# %%
inside = 0.9 * learned.design
bound_inside = trainer.estimate_eig(task.simulator, inside, objective="barber_agakov")
for name, estimate, truth in (
    ("design found", bound, task.exact_eig(learned.design)[0]),
    ("a tenth inside", bound_inside, task.exact_eig(inside)[0]),
):
    print(f"{name:<15} bound {estimate.value:.2f}, exact {truth:.2f}")

# %% [markdown]
# A cap is a problem of the search before it is one of the report: near the cap all
# designs look alike, and the gradient vanishes.
#
# | `objective` | trained beside the likelihood | cap | reported | when |
# |---|---|---|---|---|
# | `"barber_agakov"` | posterior | none | `"barber_agakov"` | the default |
# | `"gkl"` | posterior, energy ratio | none | `"gkl"` | posteriors of odd shape |
# | `"info_nce"` | nothing | $\log(L + 1)$ | `"pce"` | few nats; later experiments |
# | `"marginal"` | density of the data | none | `"pce"` | few data, many parameters |
#
# - `"barber_agakov"` takes any amount of information in its stride.
# - `"gkl"` corrects a posterior whose network cannot take the right shape, at the price
#   of another network.
# - `"info_nce"` is SBI-BOED as published, and needs no second network to fit. After
#   `observe`, a multi-start search takes it by default: a posterior trained before
#   knows nothing of the data.
# - `"marginal"` learns a density of as many values as there are data, however many
#   parameters. It is not a bound, and what is reported is that of the likelihood.
#
# The three reported are lower bounds *whatever* the networks are worth, as an
# average over simulations not trained on. A better network never makes them wrong, only
# higher. Where a posterior is trained, `"lace"` is reported if it is larger: the
# posterior draws its contrastive parameters, with which its cap hardly matters.
#
# ## A point or a distribution
#
# A policy is a distribution because a search has to look around: the score compares the
# designs that were drawn, and networks learn from them how data depend on the design.
# But a single Normal sees only its surroundings. Here the information has a hill at 2
# and a higher one at 8, with a plain between them where there is nothing to learn.


# %%
def sensitivity(design):
    return 2.0 * torch.exp(-((design - 2.0) ** 2)) + 6.0 * torch.exp(
        -((design - 8.0) ** 2)
    )


def two_hills(theta, design):
    return theta * sensitivity(design) + torch.randn_like(theta)


def exact_two_hills(design):
    return 0.5 * torch.log1p(sensitivity(design).square())


low, high = torch.tensor([0.0]), torch.tensor([10.0])
policies = {
    "one Normal": TruncatedNormalPolicy(low, high, loc=torch.tensor([3.0]), scale=0.05),
    "mixture": TruncatedNormalMixturePolicy(low, high),
}
hills = {}
for name, policy in policies.items():
    hills[name] = new_trainer(standard_normal, policy).optimize_design(
        two_hills, num_steps=150, num_eig_samples=500
    )
    at = hills[name].design
    print(f"{name:<10}  design {at.item():.2f}, {exact_two_hills(at).item():.2f} nats")

# %%
plot_policy(hills["mixture"].history, low, high, ["design"])

# %% [markdown]
# The single Normal starts at 3, beside the lower hill: no design that it draws can tell
# it of the other. Components of a mixture start all over the range and hand their
# weight to the best. The history of one search does not reveal whether it missed a
# hill; another start does, or `method="multi_start"`, which trains over all designs
# alike.
#
# | policy | what it is | when |
# |---|---|---|
# | `TruncatedNormalPolicy` | one hill in a box | the default |
# | `TruncatedNormalMixturePolicy` | several with weights | several good regions |
# | `PointPolicy` | a single design | to polish a design |
# | `NormalPolicy` | one hill without a box | designs without limits |
# | `CategoricalPolicy` | weights of given designs | fixed settings |
#
# A point has no density, hence no score: it takes the other gradients, and nothing in
# it explores. By default the truncated Normal starts with a scale of 0.3 of the range
# and ends at 0.1; a wider start, `scale=(0.6, 0.1)`, sees further. Above it was 0.05.
#
# ## λ belongs to the likelihood
#
# The likelihood is trained with the contrastive bound plus λ times its log-density
# (`regularization_strength`). The log-density makes it a likelihood in natural units;
# the bound alone does not care about factors that all parameters share. But a policy
# must not see that term: $E[\log p(x \mid \theta, \xi)]$ is large where measurements
# are *quiet*, and quiet is not informative. Suppose the noise grows with the design,
# $x = \theta \xi + (0.2 + 0.3 \xi) \, \epsilon$:

# %%
positions = torch.linspace(0.0, 3.0, 301)
noise_scale = 0.2 + 0.3 * positions
information = 0.5 * torch.log1p((positions / noise_scale) ** 2)
mean_log_density = -noise_scale.log() - 0.5 * math.log(2.0 * math.pi * math.e)
chosen = {}
for strength in (0.0, 0.1, 1.0, 10.0):
    chosen[strength] = int((information + strength * mean_log_density).argmax())
    print(
        f"λ = {strength:<4}  design {positions[chosen[strength]]:.2f}, "
        f"{information[chosen[strength]]:.2f} nats"
    )

# %% [markdown]
# With a large λ the policy would retreat to where there is neither noise nor signal.
# This is why `optimize_design` shows the policy λ = 0, whatever
# `regularization_strength` the likelihood is trained with.
