"""What is told of a prior: which parameters are discrete, and its constant."""

import pytest
import torch
from sbi.utils import BoxUniform, MultipleIndependent
from torch import distributions as td

from sbi_boed_plugin import tasks
from sbi_boed_plugin._prior import (
    discrete_columns,
    finite_values,
    log_normalization,
    why_no_density,
)
from tests.oracles import WithConstant


def independent(distribution):
    return td.Independent(distribution, 1)


def joint(*parts):
    return MultipleIndependent(list(parts), validate_args=False)


BOX, COIN = BoxUniform(torch.zeros(1), torch.ones(1)), td.Bernoulli(torch.ones(1) / 2)
MODES = independent(
    td.Normal(
        torch.tensor([[-10.0, 0.0], [0.0, 5.0], [10.0, 0.0]]),
        torch.tensor([[0.1], [1.0], [0.3]]),
    )
)
# Whether the constant can be told.
DENSITIES = {
    "box": (BoxUniform(torch.zeros(2), torch.ones(2)), True),
    "box10": (BoxUniform(torch.zeros(10), torch.ones(10)), True),
    "tiny": (BoxUniform(torch.zeros(2), torch.full((2,), 1e-12)), True),
    "normal5": (td.MultivariateNormal(torch.zeros(5), torch.eye(5)), True),
    "normal20": (td.MultivariateNormal(torch.zeros(20), torch.eye(20)), True),
    "half_cauchy": (independent(td.HalfCauchy(torch.ones(1))), True),
    "cauchy": (independent(td.Cauchy(torch.zeros(2), 1.0)), False),
    "student": (independent(td.StudentT(torch.full((2,), 1.5))), True),
    "log_normal": (independent(td.LogNormal(torch.zeros(2), 2.0)), True),
    "exponential": (independent(td.Exponential(torch.ones(3))), True),
    "gamma": (independent(td.Gamma(torch.full((2,), 0.1), 1.0)), True),
    "mixture": (td.MixtureSameFamily(td.Categorical(torch.ones(3)), MODES), False),
    "multiple": (joint(BOX, td.Gamma(torch.ones(1), 1.0)), True),
    **{name: (tasks.get_task(name).prior, True) for name in tasks.available_tasks()},
}


@pytest.mark.parametrize("name", DENSITIES)
def test_the_constant_of_a_density(name):
    prior, can_be_told = DENSITIES[name]
    assert not discrete_columns(prior).any()
    assert log_normalization(prior) == (0.0, 0.0)
    value, error = log_normalization(WithConstant(prior, -0.7))
    assert (value != 0.0) == can_be_told
    assert value == 0.0 or abs(value + 0.7) < 4.0 * error + 0.01


def test_a_constant_of_probabilities_is_a_sum():
    prior = independent(td.Bernoulli(torch.full((3,), 0.3)))
    assert log_normalization(prior) == (0.0, 0.0)
    assert log_normalization(WithConstant(prior, 0.7))[0] == pytest.approx(0.7)


def test_kinds_of_parameters():
    mixed, poisson = joint(BOX, COIN), independent(td.Poisson(torch.ones(1)))
    assert discrete_columns(mixed).tolist() == [False, True]
    assert discrete_columns(poisson).tolist() == [True]
    assert finite_values(mixed) is finite_values(poisson) is None
    both = finite_values(joint(COIN, COIN))
    assert [values.tolist() for values in both] == [[0.0, 1.0]] * 2
    dice = independent(td.Categorical(torch.ones(2, 6)))
    assert [len(values) for values in finite_values(dice)] == [6, 6]


class OnACurve(td.Uniform):
    """Of two parameters the second is the cube of the first."""

    def __init__(self):
        super().__init__(-1.0, 1.0)
        self._event_shape = torch.Size((2,))

    def sample(self, sample_shape=torch.Size()):
        values = super().sample(sample_shape)[..., 0]
        return torch.stack([values, values**3], dim=-1)


def test_parameters_without_a_density():
    for prior, _ in DENSITIES.values():
        assert why_no_density(prior) is None
    for prior in (td.Dirichlet(torch.ones(3)), OnACurve()):
        assert "determine each other" in why_no_density(prior)
    assert "[0, 1]" in why_no_density(independent(td.Poisson(torch.ones(2))))
    assert why_no_density(BoxUniform(torch.zeros(300), torch.ones(300))) is None

    class WithAtom(BoxUniform):
        def sample(self, sample_shape=torch.Size()):
            theta = super().sample(sample_shape)
            return torch.where(torch.rand_like(theta) < 0.02, 0.5, theta)

    assert "[0]" in why_no_density(WithAtom(torch.zeros(1), torch.ones(1)))


def test_kinds_are_told_without_touching_the_random_state():
    before = torch.get_rng_state()
    log_normalization(DENSITIES["box"][0])
    assert torch.equal(torch.get_rng_state(), before)
