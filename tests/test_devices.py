"""Tensors stay on their device, where there are no numbers of double precision."""

import pytest
import torch
from sbi.utils import BoxUniform
from torch import Tensor
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    ExpTransform,
    identity_transform,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sbi_boed_plugin import transformed_likelihood_nn, transformed_posterior_nn
from sbi_boed_plugin.estimators.transformed import move_transform
from sbi_boed_plugin.trainers._estimator_builders import to_real_numbers

aten = torch.ops.aten
CPU, META = torch.device("cpu"), torch.device("meta")


class OnDevice(TorchDispatchMode):
    """Torch's meta device in the place of one like Apple's, without `float64`.

    Its tensors hold no numbers: brought to the CPU, they are ones. An operation on
    tensors of both devices fails, as it would there.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)]
        there = any(tensor.is_meta for tensor in given)
        if func is aten._local_scalar_dense.default and there:
            return torch.ones((), dtype=args[0].dtype).item()
        if func is aten._to_copy.default and there and kwargs.get("device") == CPU:
            dtype = kwargs.get("dtype") or args[0].dtype
            return torch.ones(args[0].shape, dtype=dtype)
        if there and func not in (aten.copy_.default, aten._to_copy.default):
            here = [t for t in given if not t.is_meta and t.dim() > 0]
            assert not here, f"{func} got tensors of two devices."
        result = func(*args, **kwargs)
        for tensor in filter(is_tensor, tree_leaves(result)):
            double = tensor.is_meta and tensor.dtype == torch.float64
            assert not double, f"{func} made float64."
        return result


def is_tensor(value):
    return isinstance(value, Tensor)


def on_device(*shape):
    return torch.empty(shape, device=META)


def test_the_helper_finds_what_fails_on_such_a_device():
    with OnDevice():
        assert on_device(3).sum().item() == 1.0
        assert on_device(3).cpu().double().sum() == 3.0
        assert on_device(3).to("cpu", torch.float64).dtype == torch.float64
        with pytest.raises(AssertionError, match="float64"):
            on_device(3).double()
        with pytest.raises(AssertionError, match="two devices"):
            on_device(3) + torch.ones(3)


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
    double = move_transform(transform, Tensor.double)
    assert torch.equal(double(value).float(), transform(value))
    assert double(value).dtype == torch.float64
    torch.testing.assert_close(double.inv(double(value)), value.double())
    assert transform(value).dtype == torch.float32, "the original has changed"
    assert move_transform(identity_transform, Tensor.double) is identity_transform
    there = move_transform(transform, lambda tensor: tensor.to(META))
    with OnDevice():
        assert there(value.to(META)).is_meta


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


def test_networks_are_built_where_their_data_are():
    """The support of a prior on a device, and rows of simulations on the CPU."""
    prior = BoxUniform(torch.zeros(2), torch.ones(2), device="meta")
    with OnDevice():
        theta_transform = to_real_numbers(prior)
        build = transformed_likelihood_nn("mdn", theta_transform=theta_transform)
        theta, x = torch.rand(50, 2), torch.randn(50, 1)
        assert build(theta, x).log_prob(x.unsqueeze(0), theta).shape == (1, 50)
