"""Whether a likelihood fits, from simulations alone."""

import pytest
import torch
from torch.distributions import Normal

from sbi_boed_plugin.search.trust import likelihood_mismatch
from tests.oracles import LinearGaussian


class Misfit:
    """A straight line with another width and mean than it should have."""

    def __init__(self, width, shift):
        self.width, self.shift = width, shift

    def _density(self, condition):
        return Normal(condition[:, :1] * condition[:, 1:] + self.shift, self.width)

    def sample(self, sample_shape, condition):
        return self._density(condition).sample(sample_shape)

    def log_prob(self, input, condition):
        return self._density(condition).log_prob(input).sum(dim=-1)


@pytest.mark.parametrize(
    ("width", "shift", "expected"),
    # In a large sample 0, 0.22, 0.24 and 0.21.
    [(1.0, 0.0, 0.0), (1.6, 0.0, 0.22), (0.6, 0.0, 0.24), (1.0, 1.0, 0.21)],
)
def test_a_misfit_is_seen(width, shift, expected):
    torch.manual_seed(0)
    theta, design = torch.randn(1_000, 1), 2.0 * torch.ones(1_000, 1)
    x = LinearGaussian.simulate(theta, design)
    # 1,000 rows: 0.03 of the statistic are noise.
    mismatch = likelihood_mismatch(Misfit(width, shift), theta, design, x)
    assert mismatch == pytest.approx(expected, abs=0.09)
