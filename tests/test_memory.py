"""Memory: how many rows are evaluated at a time, and what the main paths take."""

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import measure
from sbi_boed_plugin._memory import MAX_ROWS, MEMORY_BYTES, rows_at_once
from sbi_boed_plugin.estimators.failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.noise import to_noise
from sbi_boed_plugin.estimators.transformed import CategoricalPosteriorBuilder


class Allocations(TorchDispatchMode):
    """Keeps all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.tensors = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.tensors += [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        return out


def num_bytes(function, *args):
    """Return the bytes that a call takes if it frees nothing."""
    with Allocations() as kept, torch.no_grad():
        function(*args)
    storages = [tensor.untyped_storage() for tensor in kept.tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


@pytest.mark.parametrize("model", ["maf", "nsf", "mdn", "made", "zuko_maf"])
@pytest.mark.parametrize("dims", [(2, 2), (50, 2), (2, 1_000)])
def test_rows_at_once_take_the_memory_that_is_meant(model, dims):
    theta, x = (torch.randn(20, dim) for dim in dims)
    estimator = posterior_nn(model)(theta, x)
    few, more = (
        num_bytes(estimator.log_prob, theta[None, :num], x[:num]) for num in (1, 5)
    )
    taken = (more - few) / 4 * rows_at_once(estimator, sum(dims))
    assert taken < 4.0 * MEMORY_BYTES
    # Not much less either, but for the limit of rows.
    at_once = rows_at_once(estimator, sum(dims))
    assert at_once == MAX_ROWS or taken > MEMORY_BYTES / 4.0


def test_networks_that_are_not_those_of_sbi_take_no_more():
    x = torch.randn(20, 3)
    theta = torch.arange(20.0).unsqueeze(1).expand(-1, 2) % 5.0
    values = [torch.arange(5.0)] * 2
    categorical = CategoricalPosteriorBuilder(values)(theta, x)
    failing = LikelihoodWithFailures(likelihood_nn("mdn", hidden_features=2)(theta, x))
    for estimator, input, condition in ((categorical, theta, x), (failing, x, theta)):
        few, more = (
            num_bytes(estimator.log_prob, input[None, :num], condition[:num])
            for num in (5, 20)
        )
        at_once = rows_at_once(estimator, 5)
        assert (more - few) / 15 * at_once < 4.0 * MEMORY_BYTES
    assert rows_at_once(failing, 2_000) < rows_at_once(failing.net, 2_000)


def test_the_noise_of_a_mixture_takes_one_mixture_for_each_condition():
    """With one for each draw it would be 10 x 50^2 numbers, ten times as much."""
    theta, x = torch.randn(200, 50), torch.randn(200, 3)
    base = posterior_nn("mdn", num_components=10)(theta, x)
    few, more = (
        num_bytes(to_noise, base, theta[:num].unsqueeze(1), x[:1]) for num in (100, 200)
    )
    assert (more - few) / 100 < 4 * 10 * 50**2 / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell",
    [
        ("NPE_GKL", 50, 100, "mdn"),
        ("NPE_GKL", 200, 100, "mdn"),
        ("NLE_INCE", 200, 1_000, "maf"),
        ("optimize_design", 50, 100, "maf"),
    ],
)
def test_a_path_takes_little_more_memory_than_that_of_sbi(cell):
    peak, seconds = measure(*cell, ours=True)
    of_sbi, seconds_of_sbi = measure(*cell, ours=False)
    assert peak < 2.0 * of_sbi + 500.0
    if cell[0] == "NPE_GKL":
        assert seconds < 4.0 * seconds_of_sbi + 10.0
