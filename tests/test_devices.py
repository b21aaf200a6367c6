"""Tensors stay on their device, where there are no numbers of double precision."""

import math
import warnings

import pytest
import torch
from sbi.neural_nets import likelihood_nn
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, Uniform, constraints
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    ExpTransform,
    Transform,
    identity_transform,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbi_boed_plugin import (
    HistoryPolicy,
    MeasurementSetEmbedding,
    TruncatedNormalPolicy,
    estimate_eig,
    transformed_likelihood_nn,
    transformed_posterior_nn,
)
from sbi_boed_plugin._prior import log_normalization, to_real_numbers
from sbi_boed_plugin._rng import get_rng_state, isolated_rng
from sbi_boed_plugin.estimators.coordinates import move_transform
from sbi_boed_plugin.estimators.noise import reparameterize, to_noise
from sbi_boed_plugin.estimators.transformed import TransformedEstimator
from sbi_boed_plugin.search.belief import ParticleBelief
from sbi_boed_plugin.simulation import CheckedSimulator
from sbi_boed_plugin.tasks import get_task
from sbi_boed_plugin.tasks.sir import unbiased_entropy

aten = torch.ops.aten
CPU, META = torch.device("cpu"), torch.device("meta")
READ_AS = {torch.float32: 1.0, torch.bool: True, torch.int64: 0}
# Copies, and rows that are chosen by indices on the CPU.
MAY_MIX = ["copy_", "_to_copy", "index", "index_put", "index_put_", "_index_put_impl_"]


class OnDevice(TorchDispatchMode):
    """Torch's meta device in the place of one like Apple's, without `float64`.

    Nor has it `log_ndtr`. Its tensors hold no numbers: brought to the CPU, they are
    ones, counts are zero and masks are true of all rows. An operation on tensors of
    both devices fails, as it would there.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)]
        there = any(tensor.is_meta for tensor in given)
        if func is aten._local_scalar_dense.default and there:
            return READ_AS[args[0].dtype]
        if func is aten._to_copy.default and there and kwargs.get("device") == CPU:
            dtype = kwargs.get("dtype") or args[0].dtype
            return torch.ones(args[0].shape, dtype=dtype)
        if there and func.__name__.split(".")[0] not in MAY_MIX:
            here = [t for t in given if not t.is_meta and t.dim() > 0]
            assert not here, f"{func} got tensors of two devices."
        if there and func is aten.unique_dim.default:  # All rows are different.
            counts = torch.ones(len(args[0]), device=META).long()
            return args[0].clone(), counts, counts
        if there and func is aten.nonzero.default:
            return torch.empty(len(args[0]), args[0].dim(), device=META).long()
        if there and func is aten.index.Tensor and is_mask(args[1][0]):
            return args[0].clone()
        if there and func is aten.index_put_.default and is_mask(args[1][0]):
            return args[0]
        assert not (there and func is aten.special_log_ndtr.default), "Not there."
        result = func(*args, **kwargs)
        for tensor in filter(is_tensor, tree_leaves(result)):
            double = tensor.is_meta and tensor.dtype == torch.float64
            assert not double, f"{func} made float64."
        return result


def is_tensor(value):
    return isinstance(value, Tensor)


def is_mask(value):
    return is_tensor(value) and value.dtype == torch.bool


def on_device(*shape):
    return torch.empty(shape, device=META)


SCALED = AffineTransform(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]))
TRANSFORMS = [
    SCALED,
    SCALED.inv,
    ComposeTransform([ExpTransform().inv, SCALED]).inv,
    CatTransform([SCALED, ExpTransform().inv], dim=-1, lengths=[2, 1]),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_moved_transform_is_the_same_elsewhere(transform):
    value = torch.rand(4, 3 if isinstance(transform, CatTransform) else 2) + 0.5
    assert move_transform(identity_transform, Tensor.double) is identity_transform
    there = move_transform(transform, lambda tensor: tensor.to(META))
    assert not transform(value).is_meta, "the original has changed"
    with OnDevice():
        assert there(value.to(META)).is_meta


class Learned(Transform, torch.nn.Module):
    """A transform that is a module, and so a part of the network."""

    domain = codomain = constraints.real

    def __init__(self):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.ones(1))

    __hash__ = torch.nn.Module.__hash__

    def _call(self, x):
        return x + self.loc

    def log_abs_det_jacobian(self, x, y):
        return torch.zeros_like(x)


def test_a_transform_that_is_a_module_stays_the_same_object():
    learned = Learned()
    network = likelihood_nn("mdn")(torch.randn(50, 1), torch.randn(50, 1))
    estimator = TransformedEstimator(network, learned).double()
    assert estimator.input_transform is learned
    assert learned.loc.dtype == torch.float64
    assert any(each is learned.loc for each in estimator.parameters())


@pytest.mark.parametrize("build", [transformed_likelihood_nn, transformed_posterior_nn])
def test_transforms_follow_their_network(build):
    theta, x, design = torch.rand(50, 2) + 0.5, torch.rand(50, 2), torch.rand(50, 1)
    transforms = {
        "theta_transform": ComposeTransform([ExpTransform().inv, SCALED]),
        "x_transform": SCALED,
        "design_transform": AffineTransform(torch.ones(1), torch.ones(1)),
    }
    builder = build("maf", dim_design=1, **transforms)
    rows = {"theta": theta, "x": x}
    with_design = "theta" if build is transformed_likelihood_nn else "x"
    rows[with_design] = torch.cat([rows[with_design], design], dim=-1)
    estimator = builder(**rows)
    condition = rows.pop(with_design)
    (value,) = rows.values()
    before = estimator.log_prob(value.unsqueeze(0), condition)
    estimator.to(META)
    with OnDevice():
        log_prob = estimator.log_prob(value.unsqueeze(0).to(META), condition.to(META))
    assert log_prob.is_meta
    # What the user passed is as it was, and serves another network.
    assert not SCALED.loc.is_meta
    again = builder(**{"theta": theta, "x": x, **{with_design: condition}})
    assert again.log_prob(value.unsqueeze(0), condition).shape == before.shape


def test_designs_of_real_numbers_are_where_these_are():
    policy = TruncatedNormalPolicy(torch.zeros(2), torch.ones(2)).to(META)
    with OnDevice():
        assert not policy.from_reals(torch.zeros(3, 2)).is_meta
        assert policy.from_reals(on_device(3, 2)).is_meta
        # Policies over histories are built on the CPU, whatever the design policy is.
        HistoryPolicy(policy, num_experiments=2)


@pytest.mark.filterwarnings("ignore:Only 0 of 16 particles")
def test_a_belief_is_updated_on_its_device(monkeypatch):
    monkeypatch.setattr("sbi_boed_plugin.search.belief._MAX_MOVES", 2)
    prior = Independent(Uniform(on_device(2), on_device(2), validate_args=False), 1)
    prior.has_finite_draws = True
    with OnDevice():
        belief = ParticleBelief(prior, num_particles=16, device="meta")
        for _ in range(2):
            belief.update(lambda theta: -theta.square().sum(dim=1))
        belief.independent_copy()
    assert belief.particles.is_meta


def test_noise_of_a_mixture_moves_samples_on_their_device():
    theta, x = torch.randn(50, 1), torch.randn(50, 1)
    estimator = likelihood_nn("mdn")(theta, x).to(META)
    condition = on_device(50, 1).requires_grad_()
    with OnDevice():
        moving = reparameterize(estimator, on_device(50, 1), condition)
        moving.sum().backward()
    assert moving.is_meta and moving.dtype == torch.float32
    assert condition.grad is not None
    with OnDevice():
        noise = to_noise(estimator, on_device(3, 50, 1), on_device(50, 1))
    assert noise.is_meta and noise.dtype == torch.float32
    assert noise.shape == (3, 50, 1)


@pytest.mark.parametrize("bound", ["pce", "exact"])
def test_information_is_estimated_on_the_device(bound):
    prior = Independent(Normal(on_device(1), on_device(1), validate_args=False), 1)
    prior.has_finite_draws = True  # Numbers that are not there cannot be drawn again.

    def simulator(theta, design):
        return theta * design + torch.randn_like(theta)

    def log_likelihood(x, theta, design):
        return Normal(theta * design, 1.0, validate_args=False).log_prob(x).sum(-1)

    with OnDevice(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # All of its terms are one.
        eig = estimate_eig(
            log_likelihood,
            # Whether rows are mixed cannot be told from numbers that are not there.
            CheckedSimulator(simulator, is_checked=True),
            prior=prior,
            design=torch.ones(1),
            bound=bound,
            num_samples=20,
            num_contrastive=7,
        )
    assert eig.num_simulations == 20


def test_the_constant_of_a_discrete_prior_is_summed_on_its_device():
    prior = Bernoulli(torch.full((1,), 0.5, device=META), validate_args=False)
    with OnDevice():
        # Two values with a log-density that reads as one nat.
        value, error = log_normalization(Independent(prior, 1, validate_args=False))
    assert (value, error) == (pytest.approx(1.0 + math.log(2.0)), 0.0)


def test_networks_are_built_where_their_data_are():
    """The support of a prior on a device, and rows of simulations on the CPU."""
    prior = BoxUniform(torch.zeros(2), torch.ones(2), device="meta")
    with OnDevice():
        theta_transform = to_real_numbers(prior)
        build = transformed_likelihood_nn("mdn", theta_transform=theta_transform)
        theta, x = torch.rand(50, 2), torch.randn(50, 1)
        assert build(theta, x).log_prob(x.unsqueeze(0), theta).shape == (1, 50)


def test_measurements_are_standardized_on_their_device():
    embedding = MeasurementSetEmbedding(3, dim_x=1, dim_design=1).to(META)
    with OnDevice():
        embedding.standardize(on_device(20, 6))
        assert embedding(on_device(5, 6)).is_meta


def test_exact_answers_are_computed_on_the_cpu():
    task = get_task("gaussian_linear")
    with OnDevice():
        assert task.exact_eig(on_device(task.dim_design))[0] > 0.0
        assert unbiased_entropy(on_device(2, 3)).dtype == torch.float64


def test_a_state_of_more_devices_than_there_are_is_taken_up(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", taken.append)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    with isolated_rng({**get_rng_state(), "cuda": ["of the first", "of the second"]}):
        pass
    assert taken == [["of the first"]]
