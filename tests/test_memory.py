"""Memory: how many rows are evaluated at a time, and what the main paths take."""

import pytest
import torch
from sbi.neural_nets import likelihood_nn, posterior_nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import measure
from sbi_boed_plugin._memory import MAX_ROWS, MEMORY_BYTES, rows_at_once
from sbi_boed_plugin.estimators.likelihood_with_failures import LikelihoodWithFailures
from sbi_boed_plugin.estimators.noise import to_noise
from sbi_boed_plugin.estimators.transformed import build_categorical


class Allocations(TorchDispatchMode):
    """Keeps the storages of all tensors that operations return."""

    def __init__(self):
        super().__init__()
        self.storages = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.storages += [tensor.untyped_storage() for tensor in tensors]
        return out


def bytes_per_row(call, few, more):
    """Return what a call takes for each row more, if it frees nothing."""
    taken = []
    for num_rows in (few, more):
        with Allocations() as kept, torch.no_grad():
            call(num_rows)
        taken.append(sum({s.data_ptr(): s.nbytes() for s in kept.storages}.values()))
    return (taken[1] - taken[0]) / (more - few)


def log_prob(estimator, input, condition):
    """A function that returns the densities of some of the rows."""
    return lambda num: estimator.log_prob(input[None, :num], condition[:num])


@pytest.mark.parametrize("model", ["maf", "nsf", "mdn", "made", "zuko_maf"])
@pytest.mark.parametrize("dims", [(2, 2), (50, 2), (2, 1_000)])
def test_rows_at_once_take_the_memory_that_is_meant(model, dims):
    theta, x = (torch.randn(20, dim) for dim in dims)
    estimator = posterior_nn(model)(theta, x)
    at_once = rows_at_once(estimator, sum(dims))
    taken = at_once * bytes_per_row(log_prob(estimator, theta, x), 1, 5)
    assert taken < 4.0 * MEMORY_BYTES
    # Not much less either, but for the limit of rows.
    assert at_once == MAX_ROWS or taken > MEMORY_BYTES / 4.0


def test_networks_that_are_not_those_of_sbi_take_no_more():
    x = torch.randn(20, 3)
    theta = torch.arange(20.0).unsqueeze(1).expand(-1, 2) % 5.0
    values = [torch.arange(5.0)] * 2
    categorical = build_categorical(theta, x, values=values)
    failing = LikelihoodWithFailures(likelihood_nn("mdn", hidden_features=2)(theta, x))
    for estimator, input, condition in ((categorical, theta, x), (failing, x, theta)):
        per_row = bytes_per_row(log_prob(estimator, input, condition), 5, 20)
        assert per_row * rows_at_once(estimator, 5) < 4.0 * MEMORY_BYTES
    assert rows_at_once(failing, 2_000) < rows_at_once(failing.net, 2_000)


def test_the_noise_of_a_mixture_takes_one_mixture_for_each_condition():
    """With one for each draw it would be 10 x 50^2 numbers, ten times as much."""
    theta, x = torch.randn(200, 50), torch.randn(200, 3)
    base = posterior_nn("mdn", num_components=10)(theta, x)
    per_row = bytes_per_row(lambda n: to_noise(base, theta[:n, None], x[:1]), 100, 200)
    assert per_row < 4 * 10 * 50**2 / 2


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
