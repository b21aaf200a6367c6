r"""Two moons: does a posterior that learns beside its likelihood forget a mode?

    make reproduce NAME=pretraining

A likelihood :math:`q(x \mid \theta)` and a posterior :math:`r(\theta \mid x)`, both
spline flows, learn together from 10,000 simulations in 1,000 steps of 128, after
either, both or none of them have learned alone by maximum likelihood for half of these.
The likelihood learns by LACE, an InfoNCE bound whose seven contrasts are draws of the
posterior, plus 0.1 times its log-density. The posterior learns

- `own`: by maximum likelihood of the simulated parameters, as in a search;
- `bound`: by the same bound as the likelihood, through its draws, as where contrasts
  are learned to make the bound tight.

Given data the posterior has two moons of equal mass: `smaller_mode` is the mass of the
smaller one in draws of the posterior, `smallest_mode` that of the worst of 20 data, and
`c2st` tells draws from exact ones. `corrected` is the C2ST of draws that the likelihood
has reweighted. `bound` is LACE with 63 contrasts of new simulations, of at most 5.1
nats, and `log_likelihood` that of the likelihood, of at most 4.32 nats.
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import cross_val_score
from torch import Tensor

from benchmarks.papers.two_moons import prior, simulate
from benchmarks.study import Job, Row, Study, averages

NUM_SIMULATIONS, NUM_STEPS, BATCH_SIZE, NUM_CONTRASTIVE = 10_000, 1_000, 128, 7
PRETRAINED = {
    "none": (),
    "likelihood": ("likelihood",),
    "posterior": ("posterior",),
    "both": ("likelihood", "posterior"),
}
WEIGHT, RATE = 0.1, 2e-3
NUM_TESTS, NUM_DRAWS, NUM_TESTED_CONTRASTS = 20, 1_000, 63
_POOL = 20_000


def jobs(num_seeds: int, quick: bool) -> list[Job]:
    """Return one job for each seed, loss of the posterior and pretraining."""
    return [
        {"posterior": loss, "pretrained": name, "seed": seed}
        for seed in range(num_seeds)
        for loss in ("own", "bound")
        for name in PRETRAINED
    ]


def lace_terms(nets: dict[str, Any], theta: Tensor, x: Tensor, draws: Tensor) -> Tensor:
    """Return the terms of LACE, with draws `(num, batch_dim, 2)` of the posterior."""
    rows = torch.cat([theta.unsqueeze(0), draws])
    pairs = rows.flatten(0, 1)
    data = x.repeat(len(rows), 1)
    log_q = nets["likelihood"].log_prob(data.unsqueeze(0), pairs)[0]
    log_q = log_q.reshape(rows.shape[:2])
    log_r = nets["posterior"].log_prob(rows, x)
    inside = (rows.abs() <= 1.0).all(dim=-1)
    log_prior = torch.where(inside, -math.log(4.0), -torch.inf)
    # A parameter outside of the prior has no weight.
    weights = torch.where(inside, log_q + log_prior - log_r, -torch.inf)
    return log_q[0] - torch.logsumexp(weights, dim=0) + math.log(len(rows))


def reparameterized(posterior: Any, x: Tensor, num: int) -> Tensor:
    """Return draws of a flow `(num, batch_dim, 2)` with a gradient in its weights."""
    context = posterior.net._embedding_net(x).repeat(num, 1)
    noise = torch.randn(len(context), 2)
    return posterior.net._transform.inverse(noise, context)[0].reshape(num, len(x), 2)


def losses(nets: dict[str, Any], theta: Tensor, x: Tensor, posterior: str) -> Tensor:
    """Return the joint loss of a batch."""
    num = NUM_CONTRASTIVE
    with torch.no_grad():
        draws = nets["posterior"].sample(torch.Size((num,)), x)
    own = nets["posterior"].loss(theta, x)
    for parameter in nets["posterior"].parameters():
        parameter.requires_grad_(False)
    of_likelihood = -lace_terms(nets, theta, x, draws)
    for parameter in nets["posterior"].parameters():
        parameter.requires_grad_(True)
    of_likelihood = of_likelihood + WEIGHT * nets["likelihood"].loss(x, theta)
    if posterior == "bound":
        for parameter in nets["likelihood"].parameters():
            parameter.requires_grad_(False)
        moving = reparameterized(nets["posterior"], x, num)
        own = -lace_terms(nets, theta, x, moving)
        for parameter in nets["likelihood"].parameters():
            parameter.requires_grad_(True)
    return of_likelihood.mean() + own.mean()


def train(nets: dict[str, Any], rows: tuple[Tensor, Tensor], job: Job, steps: int):
    """Train, half of the steps alone where networks are pretrained."""
    theta, x = rows
    alone = PRETRAINED[job["pretrained"]]
    parameters = [p for net in nets.values() for p in net.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    num_skipped = 0
    for step in range(steps):
        chosen = torch.randint(len(theta), (BATCH_SIZE,))
        pair = theta[chosen], x[chosen]
        if alone and step < steps // 2:
            given = {"likelihood": (pair[1], pair[0]), "posterior": pair}
            loss = torch.stack([nets[n].loss(*given[n]).mean() for n in alone]).sum()
        else:
            loss = losses(nets, *pair, job["posterior"])
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        if norm.isfinite():
            optimizer.step()
        else:
            num_skipped += 1
        schedule.step()
    return num_skipped


def exact_posterior(x: Tensor, num: int) -> Tensor:
    """Return draws of the posterior given a point, `(num, 2)`."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < num:
        # What the simulator adds to the shift: data of parameters zero.
        shift = x - simulate(torch.zeros(_POOL, 2))
        total = -math.sqrt(2.0) * shift[:, 0] * torch.randn(_POOL).sign()
        difference = math.sqrt(2.0) * shift[:, 1]
        theta = torch.stack([total - difference, total + difference], dim=1) / 2.0
        possible = (theta.abs() <= 1.0).all(dim=1) & (shift[:, 0] <= 0.0)
        kept.append(theta[possible])
    return torch.cat(kept)[:num]


def c2st(first: Tensor, second: Tensor) -> float:
    """Return how well a forest tells two sets of parameters apart."""
    labels = np.repeat([0, 1], [len(first), len(second)])
    forest = RandomForestClassifier(100, min_samples_leaf=5, random_state=0)
    rows = torch.cat([first, second]).numpy()
    return float(cross_val_score(forest, rows, labels, cv=5).mean())


@torch.no_grad()
def evaluate(nets: dict[str, Any], quick: bool) -> dict[str, float]:
    """Return what networks know of new simulations."""
    torch.manual_seed(1_000)
    theta = prior().sample(torch.Size((NUM_TESTS,)))
    num, modes, tests, corrected = 200 if quick else NUM_DRAWS, [], [], []
    for row in simulate(theta):
        draws = nets["posterior"].sample(torch.Size((10 * num,)), row[None])[:, 0]
        share = float((draws[:num].sum(dim=1) > 0.0).float().mean())
        modes.append(min(share, 1.0 - share))
        exact = exact_posterior(row, num)
        tests.append(c2st(draws[:num], exact))
        log_q = nets["likelihood"].log_prob(row.expand(1, len(draws), 2), draws)[0]
        log_weights = (
            log_q - nets["posterior"].log_prob(draws[:, None], row[None])[:, 0]
        )
        log_weights[(draws.abs() > 1.0).any(dim=1)] = -torch.inf
        chosen = torch.multinomial(torch.softmax(log_weights, 0), num, True)
        corrected.append(c2st(draws[chosen], exact))
    theta = prior().sample(torch.Size((500,)))
    x = simulate(theta)
    contrasts = nets["posterior"].sample(torch.Size((NUM_TESTED_CONTRASTS,)), x)
    return {
        "smaller_mode": float(np.mean(modes)),
        "smallest_mode": float(np.min(modes)),
        "c2st": float(np.mean(tests)),
        "corrected": float(np.mean(corrected)),
        "bound": float(lace_terms(nets, theta, x, contrasts).mean()),
        "log_likelihood": -float(nets["likelihood"].loss(x, theta).mean()),
    }


def run(job: Job, quick: bool) -> Row:
    """Train and evaluate both networks."""
    torch.manual_seed(job["seed"])
    started = time.process_time()
    theta = prior().sample(torch.Size((1_000 if quick else NUM_SIMULATIONS,)))
    x = simulate(theta)
    sizes = {"hidden_features": 50, "num_transforms": 4}
    nets = {
        "likelihood": likelihood_nn("nsf", **sizes)(theta, x),
        "posterior": posterior_nn("nsf", **sizes)(theta, x),
    }
    num_skipped = train(nets, (theta, x), job, 20 if quick else NUM_STEPS)
    seconds = time.process_time() - started
    found = {k: round(v, 4) for k, v in evaluate(nets, quick).items()}
    return {**found, "skipped": num_skipped, "cpu_seconds": round(seconds, 1)}


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return means over seeds."""
    values = ["smaller_mode", "smallest_mode", "c2st", "corrected", "bound"]
    values += ["log_likelihood", "cpu_seconds"]
    return averages(rows, ["posterior", "pretrained"], values)


STUDY = Study(
    name="pretraining",
    title="Two moons: likelihood and posterior together, with and without pretraining",
    jobs=jobs,
    run=run,
    summary=summary,
    num_seeds=3,
)
