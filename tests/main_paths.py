"""Every main path of the package once, on a device and with the smallest budgets.

Each function returns the tensors that it made. Tests run all of them, on other devices
or without output.
"""

import contextlib
import pickle

import pytest
import torch
from sbi.inference import NPE
from sbi.neural_nets.embedding_nets import CNNEmbedding
from torch import Tensor

from sbi_boed_plugin import (
    NLE_INCE,
    NPE_GKL,
    NRE_GKL,
    Campaign,
    CategoricalPolicy,
    ConstrainedPolicy,
    DataEmbedding,
    FittedPrior,
    ModelDiscrimination,
    NormalPolicy,
    OrderedPolicy,
    PointPolicy,
    ProductPolicy,
    SimplexPolicy,
    TruncatedNormalMixturePolicy,
    TruncatedNormalPolicy,
    estimate_eig,
    run_experiments,
    simulate_for_boed,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from tests.conftest import NoOpTracker
from tests.oracles import LinearGaussian as Model
from tests.path_parts import (
    BRIEF,
    EPOCHS,
    PATHS,
    QUIET,
    ROUNDS,
    STEPS,
    box,
    data,
    drawn,
    normal,
    of_result,
    path,
    rows,
    simulate,
    slow_path,
    trainer,
)


def trained(kind, device: str, model: str, **settings) -> dict[str, Tensor]:
    """Train on simulations with designs, then without, and draw from the posteriors."""
    made = {}
    for has_design in (True, False):
        inference = kind(normal(device), model, device=device, **QUIET)
        theta, design, x = rows(device)
        of_design = {"design": design} if has_design else {}
        inference.append_simulations(theta, x, **of_design)
        estimator = inference.train(**{**EPOCHS, **settings})
        at = {"design": design[0]} if has_design else {}
        posterior = inference.build_posterior(**at)
        if kind is not NPE_GKL:
            posterior = inference.build_posterior(sample_with="importance", **at)
        made |= {f"{key} {has_design}": v for key, v in estimator.state_dict().items()}
        of_posterior = drawn(posterior, data(device))
        made |= {f"{key} {has_design}": v for key, v in of_posterior.items()}
    return made


@path
def nle_ince(device):
    return trained(NLE_INCE, device, "mdn")


@path
def nle_ince_with_a_schedule(device):
    return trained(NLE_INCE, device, "maf", schedule="averaged")


@path
def nre_gkl(device):
    return trained(NRE_GKL, device, "mlp")


@path
def nre_gkl_with_a_schedule(device):
    return trained(NRE_GKL, device, "mlp", schedule="averaged")


@path
def npe_gkl(device):
    return trained(NPE_GKL, device, "mdn", **BRIEF)


@path
def npe_gkl_joint(device):
    return trained(NPE_GKL, device, "maf", training="joint")


@path
def npe_gkl_in_rounds(device):
    """The second round has a proposal, and so another loss."""
    inference = NPE_GKL(normal(device), "mdn", device=device, **QUIET)
    theta, _, x = rows(device)
    inference.append_simulations(theta, x).train(**EPOCHS, **BRIEF)
    proposal = inference.build_posterior().set_default_x(data(device))
    theta = proposal.sample((60,), **QUIET)
    x = simulate(theta, torch.ones_like(theta))
    inference.append_simulations(theta, x, proposal=proposal)
    estimator = inference.train(**EPOCHS, **BRIEF)
    return {**estimator.state_dict(), **drawn(inference.build_posterior(), x[:1])}


@path
def hybrid_posterior(device):
    """A likelihood that corrects a posterior network."""
    inference = trainer(device)
    result = inference.optimize_design(simulate, method="joint", **STEPS)
    posterior = inference.build_posterior(design=result.design, sample_with="hybrid")
    told = posterior.diagnostics(data(device))
    values = {key: v for key, v in vars(told).items() if isinstance(v, Tensor)}
    return {**drawn(posterior, data(device)), **values}


@path
def refined_posterior(device):
    """A posterior of sbi's NPE, corrected."""
    theta, _, x = rows(device)
    npe = NPE(normal(device), "mdn", device=device, tracker=NoOpTracker(), **QUIET)
    with contextlib.redirect_stdout(None):
        npe.append_simulations(theta, x).train(**EPOCHS)
    posterior = npe.build_posterior()
    refined = NPE_GKL.refine(posterior, theta, x, **BRIEF, **QUIET)
    return drawn(refined.build_posterior(), x[:1])


@path
def joint_search(device):
    return of_result(trainer(device).optimize_design(simulate, **STEPS))


@slow_path
def joint_search_by_all_gradients_and_bounds(device):
    made = {}
    for objective in ("gkl", "lace", "info_nce", "marginal"):
        settings = {**STEPS, "objective": objective, "method": "joint"}
        result = trainer(device).optimize_design(simulate, **settings)
        made |= {f"{objective} {k}": v for k, v in of_result(result).items()}
    for gradient in ("score", "surrogate", "pathwise", "partial"):
        settings = {**STEPS, "gradient": gradient, "method": "joint"}
        result = trainer(device).optimize_design(simulate, **settings)
        made |= {f"{gradient} {k}": v for k, v in of_result(result).items()}
    return made


@slow_path
def search_for_a_target(device):
    settings = {**STEPS, "target": torch.sin, "cost": lambda d: d.sum(dim=-1)}
    return of_result(trainer(device).optimize_design(simulate, **settings))


@slow_path
def multi_start_search(device):
    settings = {**STEPS, "method": "multi_start"}
    return of_result(trainer(device).optimize_design(simulate, **settings))


@slow_path
def search_in_rounds(device):
    inference = trainer(device)
    given = {**ROUNDS, "num_eig_samples": 20}
    made = of_result(inference.optimize_design(simulate, **given))
    return {**made, **dict(zip("tdx", inference.simulations, strict=True))}


@slow_path
def searches_over_other_designs(device):
    """Lists, parts, order and conditions, with simulations that fail."""

    def fails(theta, design):
        x = simulate(theta, design.sum(dim=1, keepdim=True))
        return x.masked_fill(torch.rand_like(x) < 0.1, torch.nan)

    ordered, listed = OrderedPolicy(0.0, 2.0, 2), CategoricalPolicy(torch.eye(2))
    kinds = {
        "ordered": ordered,
        "listed": listed,
        "parts": ProductPolicy([ordered, listed]),
        "constrained": ConstrainedPolicy(box("cpu", 2), lambda d: d.sum(dim=-1) < 3.0),
    }
    made = {}
    for name, policy in kinds.items():
        for method in ("joint", "multi_start"):
            inference = trainer(device, design_policy=policy)
            settings = {**STEPS, "method": method, "num_eig_samples": 100}
            result = inference.optimize_design(fails, **settings)
            made |= {f"{name} {method} {k}": v for k, v in of_result(result).items()}
    return made


@slow_path
def saved_search(device):
    """What is known, taken up from a state and from a pickle."""
    inference = trainer(device)
    result = inference.optimize_design(simulate, **STEPS)
    inference.observe(result.design, data(device)[0], num_particles=64)
    other = trainer(device)
    other.search.load_state_dict(inference.search.state_dict())
    loaded = pickle.loads(pickle.dumps(inference))
    made = {}
    for name, each in {"state": other, "pickle": loaded}.items():
        made[f"{name} particles"] = each.belief.particles
        again = each.optimize_design(simulate, **STEPS)
        made |= {f"{name} {key}": value for key, value in of_result(again).items()}
    return made


@slow_path
def posteriors_of_targets_and_as_priors(device):
    inference = trainer(device)
    result = inference.optimize_design(simulate, **STEPS)
    posterior = inference.build_posterior(design=result.design, target=torch.sin)
    samples = posterior.sample((300,), x=data(device), **QUIET)
    prior = FittedPrior(samples)
    given = {"design_policy": box(device), "device": device, **QUIET}
    later = NLE_INCE(prior, "mdn", **given).optimize_design(simulate, **STEPS)
    return {"samples": samples, **of_result(later)}


@slow_path
def observations(device):
    """A search, an observation and a search that knows of it."""
    inference = trainer(device)
    result = inference.optimize_design(simulate, **STEPS)
    inference.observe(result.design, data(device)[0], num_particles=64)
    again = inference.optimize_design(simulate, **STEPS)
    posterior = inference.build_posterior(sample_with="importance")
    inference.train(**EPOCHS)
    estimate = inference.estimate_eig(
        simulate, result.design, objective="info_nce", num_samples=20
    )
    assert estimate.num_simulations > 0
    return {
        **of_result(again),
        **drawn(posterior),
        "particles": inference.belief.particles,
    }


@path
def information(device):
    """What `estimate_eig` says by a likelihood and without any."""
    design = torch.ones(1, device=device)
    given = {"prior": normal(device), "design": design, "num_samples": 40}
    for bound in ("pce", "exact"):
        eig = estimate_eig(Model.log_likelihood, simulate, bound=bound, **given)
        assert eig.value > 0.0
    return {}


@path
def simulations(device):
    given = simulate, normal(device), box(device), 20
    made = simulate_for_boed(*given, show_progress_bar=False)
    return dict(zip(("theta", "design", "x"), made, strict=True))


@path
def policies(device):
    ones = torch.ones(2, device=device)
    low, high = 0.0 * ones, 2.0 * ones
    kinds = {
        "normal": NormalPolicy(low, ones),
        "truncated": TruncatedNormalPolicy(low, high),
        "mixture": TruncatedNormalMixturePolicy(low, high),
        "point": PointPolicy(low, high),
        "categorical": CategoricalPolicy(torch.rand(5, 2, device=device)),
        "ordered": OrderedPolicy(0.0, 2.0, 3),
        "simplex": SimplexPolicy(3),
        "product": ProductPolicy(
            [TruncatedNormalPolicy(low, high), CategoricalPolicy(torch.eye(2))]
        ),
        "constrained": ConstrainedPolicy(
            TruncatedNormalPolicy(low, high), lambda d: d.sum(dim=-1) < 3.0
        ),
    }
    made = {}
    for name, policy in kinds.items():
        policy = policy.to(device)
        designs = policy.sample(torch.Size((6,)))
        made |= {f"{name} designs": designs, f"{name} mode": policy.mode}
        made[f"{name} spread"] = policy.spread(6)
        if name != "point":
            made[f"{name} density"] = policy.log_prob(designs)
    return made


@slow_path
def policies_of_histories(device):
    inference = trainer(device)
    steps = {"num_steps": 6, "training_batch_size": 16, "num_eig_samples": 20}
    result = inference.optimize_policy(simulate, 2, max_num_simulations=400, **steps)
    first = result.policy.propose()
    history = first.unsqueeze(0), data(device)
    second = result.policy.propose(*history)
    posterior = inference.build_posterior(history=history)
    return {"first": first, "second": second, **drawn(posterior)}


@slow_path
def models(device):
    """Which of two models is right."""
    square = lambda theta, design: 1.0 + simulate(theta, design.square())
    inference = ModelDiscrimination(
        [(normal(device), simulate), (normal(device), square)],
        design_policy=box(device),
        device=device,
        **QUIET,
    )
    result = inference.optimize_design(**STEPS)
    inference.observe(result.design, data(device)[0], num_particles=64)
    return {
        **of_result(result),
        "probabilities": inference.probabilities,
        "parameters": inference.parameters_of(0),
    }


@slow_path
def vector_fields(device):
    build = transformed_likelihood_nn(
        "flow_matching", dim_design=1, hidden_features=8, num_layers=1
    )
    inference = trainer(device, build)
    result = inference.optimize_design(simulate, **ROUNDS, num_eig_samples=10)
    return of_result(result)


def photograph(theta: Tensor, design: Tensor) -> Tensor:
    """A spot of light on a line of an image, whose brightness is the exposure."""
    axis = torch.linspace(-2.0, 2.0, 8, device=theta.device)
    rate = 10.0 * design * torch.exp(-(axis - theta).square()) + 0.1
    return torch.poisson(rate).reshape(-1, 1, 1, 8).expand(-1, 1, 8, 8)


@path
def images(device):
    small = {"num_conv_layers": 1, "out_channels_per_layer": [2], "kernel_size": 3}
    embedding = DataEmbedding(CNNEmbedding((8, 8), output_dim=4, **small), (1, 8, 8), 1)
    network = transformed_posterior_nn("mdn", embedding_net=embedding)
    inference = trainer(device, None, posterior_estimator=network)
    result = inference.optimize_design(photograph, **STEPS)
    posterior = inference.build_posterior(design=result.design)
    x = photograph(data(device), result.design.unsqueeze(0))
    return {**of_result(result), **drawn(posterior, x)}


@slow_path
def experiments(device):
    """Experiments of which each follows the last; their records are on the CPU."""
    given = {"num_particles": 64, "seed": 1, **STEPS}
    result = run_experiments(
        trainer(device),
        simulate,
        lambda design: simulate(torch.ones_like(design), design),
        2,
        show_progress_bar=False,
        **given,
    )
    return {"designs": result.designs.to(device), "x": result.x.to(device)}


@path
def campaign(device):
    inference = trainer(device)
    settings = {"num_particles": 64, "seed": 1, **STEPS}
    with Campaign("campaign", inference, simulate, **settings) as days:
        design = days.propose()
        days.record(torch.tensor([0.5]), accept_surprise=True)
        days.undo()
        status = days.status()
    return {"design": design.to(device), "mean": status.mean.to(device)}


for_each_path = pytest.mark.parametrize("path", PATHS)
