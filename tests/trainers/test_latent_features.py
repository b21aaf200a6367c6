"""Whether the energy of NPE_GKL is given the noise of its base."""

import pytest
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform

from sbi_boed_plugin import NPE_GKL, EnergyConfig, energy_nn
from tests.conftest import NoOpTracker
from tests.hybrids import GaussianBase

pytestmark = pytest.mark.filterwarnings("ignore:The energy does not improve")

PRIOR = BoxUniform(-torch.ones(2), torch.ones(2))
QUIET = {"tracker": NoOpTracker(), "show_progress_bars": False}
BRIEF = EnergyConfig(max_num_epochs=2)
MDN = posterior_nn("mdn", num_components=1, hidden_features=10)


def silent(*rows):
    return GaussianBase(0.5)


def simulations(num=100):
    torch.manual_seed(0)
    theta = PRIOR.sample((num,))
    return theta, theta.abs() + 0.15 * torch.randn_like(theta)


def make(density_estimator=MDN, **kwargs):
    return NPE_GKL(PRIOR, density_estimator, **QUIET, **kwargs)


def train(trainer, **kwargs):
    trainer.append_simulations(*simulations())
    return trainer.train(max_num_epochs=2, energy=BRIEF, **kwargs)


def refine(estimator, **kwargs):
    kwargs |= {"prior": PRIOR, "energy": BRIEF, **QUIET}
    return NPE_GKL.refine(estimator, *simulations(), **kwargs)


@pytest.mark.parametrize("training", ["two_stage", "joint", "refinement"])
@pytest.mark.parametrize("latent_features", [None, True, False])
def test_the_energy_is_given_what_was_asked_for(latent_features, training):
    if training == "refinement":
        base = NPE(PRIOR, MDN, **QUIET).append_simulations(*simulations())
        base = base.train(max_num_epochs=2)
        trainer = refine(base, latent_features=latent_features)
    else:
        trainer = make(latent_features=latent_features)
        train(trainer, training=training)
    posterior = trainer.build_posterior()
    hybrid = posterior.posterior_estimator
    assert hybrid.latent_features == (latent_features is not False)
    # Parameters, data and noise, of two dimensions each.
    assert hybrid.energy.first.in_features == 4 + 2 * hybrid.latent_features
    theta, x = simulations(5)
    assert hybrid.log_prob(theta.unsqueeze(0), x).isfinite().all()
    assert posterior.sample((5,), x=x[:1], show_progress_bars=False).shape == (5, 2)


@pytest.mark.parametrize("training", ["two_stage", "joint"])
def test_a_base_that_cannot_tell_is_refused(training):
    with pytest.raises(ValueError, match="a GaussianBase cannot tell"):
        train(make(silent, latent_features=True), training=training)
    with pytest.raises(ValueError, match="a GaussianBase cannot tell"):
        refine(GaussianBase(), latent_features=True)


def test_a_base_that_cannot_tell_does_without():
    assert not train(make(silent)).latent_features
    assert not refine(GaussianBase()).build_posterior().posterior_estimator.net.training


@pytest.mark.parametrize("sees", [True, False])
def test_an_energy_that_is_given_the_noise_needs_no_parameters(sees):
    hybrid = train(make(energy_net=energy_nn(sees_parameters=sees)))
    assert hybrid.energy.first.in_features == 4 + 2 * sees
    assert hybrid.sample(torch.Size((5,)), torch.zeros(1, 2)).shape == (5, 1, 2)


def test_settings_that_leave_the_energy_without_parameters_are_refused():
    trainer = make(energy_net=energy_nn(sees_parameters=False), latent_features=False)
    with pytest.raises(ValueError, match=r"sees_parameters=True"):
        train(trainer)
