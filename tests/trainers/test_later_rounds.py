"""Later rounds of `NPE_GKL`: its base learns as that of sbi's `NPE` does."""

import pytest
import torch
from sbi.inference import NPE
from sbi.utils import BoxUniform

from sbi_boed_plugin import NPE_GKL, EnergyConfig
from tests.conftest import NoOpTracker

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
X_O = torch.tensor([[0.3, -0.2]])
QUIET = {"show_progress_bars": False}
# No energy gains that much, any does.
DROPPED = EnergyConfig(max_num_epochs=1, min_standard_errors=1e6)


def simulate(theta):
    return theta.abs() + 0.3 * torch.randn_like(theta)


def two_rounds(cls, model, corrects=False, **kwargs):
    """Train twice; the proposal is what was built after the first time."""
    trainer = cls(PRIOR, model, tracker=NoOpTracker(), **QUIET)
    proposal = None
    for width in (1.0, 0.5):
        torch.manual_seed(0)
        theta = width * PRIOR.sample((100,))
        trainer.append_simulations(theta, simulate(theta), proposal=proposal)
        trainer.train(max_num_epochs=3, **kwargs)
        proposal = trainer.build_posterior().set_default_x(X_O)
        if corrects:
            proposal.posterior_estimator.corrects = True
    return trainer


@pytest.mark.filterwarnings("ignore:The energy does not improve")
@pytest.mark.parametrize("model", ["maf", "mdn"])
def test_the_base_of_a_second_round_is_that_of_npe(model):
    ours = two_rounds(NPE_GKL, model, energy=DROPPED)
    sbis = two_rounds(NPE, model)
    assert ours.use_non_atomic_loss == sbis.use_non_atomic_loss == (model == "mdn")
    base = ours._neural_net.state_dict()
    for name, value in sbis._neural_net.state_dict().items():
        assert torch.equal(base[name], value), name


@pytest.mark.filterwarnings("ignore:The energy does not improve")
def test_a_proposal_with_an_energy_is_no_mixture():
    """Its density is not that of its base: the closed form would be wrong."""
    trainer = two_rounds(NPE_GKL, "mdn", corrects=True, energy=DROPPED)
    assert not trainer.use_non_atomic_loss
